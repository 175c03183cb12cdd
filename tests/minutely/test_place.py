"""Where versions are published, as commands are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from basis.problems import Problems
from minutely.cli import cli
from minutely.place import open_files
from minutely.run import Run
from paramserver.signed_files import KEY_VARIABLE
from tests.paramserver.published import Writer


def versions(deltas: Path, key: str | None) -> str:
    done = CliRunner().invoke(cli, ["versions", "--deltas", str(deltas)], env={KEY_VARIABLE: key})
    return f"{done.exit_code} {done.output} {done.exception}"


def test_a_place_is_signed_where_the_environment_has_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "right" * 8)
    Writer(open_files(str(tmp_path), durable=False), keep_deltas=3).publish()
    assert versions(tmp_path, "right" * 8).startswith("0 ")
    assert f"manifest-000000000001.json: not signed with the key in {KEY_VARIABLE}" in versions(tmp_path, "wrong" * 8)
    assert f"set {KEY_VARIABLE} to its key" in versions(tmp_path, None)
    refused = versions(tmp_path, "too-short")
    assert f"environment: {KEY_VARIABLE}: 9 bytes; allowed: at least 32 bytes" in refused
    assert "too-short" not in refused, "no key is shown"


def test_a_run_without_a_summary_is_named(tmp_path: Path) -> None:
    """Such as one whose model a guard held back: the same command again was refused for a folder that is not empty. It may be at
    work still."""
    for name, value in (("config.yaml", "has a run without a summary, at work or"), ("summary.json", "is not empty")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(Problems, match=value):
            Run.check_free(tmp_path)
