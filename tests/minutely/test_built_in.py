"""Built-in configs by name: a file of that name wins, and a wrong name says which there are."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from basis.problems import Problems
from minutely.built_in import BUILT_IN, find_config
from minutely.cli import cli

ALLOWED = "allowed: a configuration file, or the name of a built-in one: kuairand, kuairand-live, movielens"


def test_a_name_is_a_built_in_one_only_where_no_such_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = Path("movielens")
    assert find_config(named) == BUILT_IN["movielens"]
    named.mkdir()
    assert find_config(named) == BUILT_IN["movielens"], "a folder is no config"
    named.rmdir()
    named.write_text("name: mine")
    assert find_config(named) == named
    with pytest.raises(Problems, match=r"movielens\.yaml: file: no such file"):
        find_config(Path("movielens.yaml"))
    with pytest.raises(Problems, match="is a folder"):
        find_config(tmp_path)


def test_a_file_of_that_name_is_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("movielens").write_text("name: mine")
    done = CliRunner().invoke(cli, ["check", "movielens"])
    assert done.exit_code == 1
    assert "error movielens: line 1, source; missing" in done.output


@pytest.mark.parametrize(
    "command", ["replay", "compare", "check", "join", "archive", "train", "serve", "produce", "dead-letters"]
)
def test_a_wrong_name_says_which_there_are(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "movielense"])
    assert (done.exit_code, done.output) == (1, f"error movielense: file: no such file; {ALLOWED}\n")
    assert "kuairand, kuairand-live, movielens" in CliRunner().invoke(cli, [command, "--help"]).output.replace(
        "\n", " "
    )
