"""The cold start: which impressions are a user's first, and a replay that measures both default rows as they were served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from minutely.cli import cli
from minutely.replays.cold_start import DEFAULT_ROWS, FIRST, first_rows, is_admitting, is_default_row
from streaming.features.ids import MISSING
from streaming.source.load import load
from tests.commands import execute
from tests.minutely.replays.test_loop import MINUTE, NOW, Ran, make_pipeline, write_log
from trainer.metrics import auc

NOBODY = {"member": {"column": "user", "scope": "request"}, "item": {"column": "item"}}
ADMISSION = {"learning_rate": 0.1, "only": {"user": {"admit_after": 6}, "item": {"admit_after": 3}}}


@given(st.lists(st.sampled_from([1, 2, 3, -9, MISSING]), max_size=60))
def test_the_first_impressions_of_each_user(users: list[int]) -> None:
    seen: dict[int, int] = {}
    expected = []
    for row, user in enumerate(users):
        seen[user] = seen.get(user, 0) + 1
        if user != MISSING and seen[user] <= FIRST:
            expected.append(row)
    assert first_rows(np.array(users, np.int64)).tolist() == expected


def written(folder: Path, name: str, **changes: Any) -> Path:
    """A config's file."""
    config = folder / f"{name}.yaml"
    pipeline = make_pipeline(folder, **changes)
    config.write_text(yaml.safe_dump(pipeline.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
    return config


def replayed(folder: Path, name: str, options: str = "--cold-start", **changes: Any) -> tuple[dict[str, Any], str]:
    """A replay on the command line: its summary, and what it printed."""
    config, out = written(folder, name, **changes), folder / name
    done = execute(f"minutely replay {config} --warmup 0.3 --out {out} {options}")
    assert done.returncode == 0, done.stderr
    kept = {"config.yaml", "dead-letters.jsonl", "deltas", "summary.json", "report.html"}
    assert {item.name for item in out.iterdir()} == kept
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert summary["replica_equals_table"]
    return summary, done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cold")
    write_log(path / "log.parquet", requests=300)
    return path


@pytest.fixture(scope="module")
def fixed(folder: Path) -> tuple[dict[str, Any], str]:
    return replayed(folder, "fixed", tables=ADMISSION)


def test_both_default_rows_are_measured_and_printed(folder: Path, fixed: tuple[dict[str, Any], str]) -> None:
    summary, printed = fixed
    found = summary["cold_start"]
    assert list(found["auc"]) == ["fixed", "learned"]
    assert list(found["auc"]["fixed"]) == ["like"], "a value label has no AUC"
    assert found["auc"]["fixed"] != found["auc"]["learned"]
    pipeline = make_pipeline(folder)
    events = load(folder, pipeline.source, pipeline.features, NOW)
    scored_from = int(np.ceil(0.3 * events.impressions))
    rows = first_rows(np.asarray(events.features["user"]))
    rows = rows[rows >= scored_from]
    assert (found["user"], found["impressions"]) == ("user", len(rows))
    for metrics in found["auc"].values():
        assert f"{metrics['like']:.4f}" in printed


def test_whichever_is_configured_the_figures_are_the_same(folder: Path, fixed: tuple[dict[str, Any], str]) -> None:
    """What the config serves with, and what is served beside it, change places."""
    learned, _ = replayed(folder, "learned", tables={**ADMISSION, "default_row": "learned"})
    assert learned["cold_start"] == fixed[0]["cold_start"]
    assert learned["metrics"] != fixed[0]["metrics"]


def test_the_user_is_the_feature_that_the_config_names(folder: Path, fixed: tuple[dict[str, Any], str]) -> None:
    tables = {"only": {"member": {"admit_after": 6}}}
    found = replayed(folder, "member", features=NOBODY, tables=tables, user="member")[0]["cold_start"]
    assert (found["user"], found["impressions"]) == ("member", fixed[0]["cold_start"]["impressions"])


def test_without_the_option_the_log_is_replayed_once(folder: Path, fixed: tuple[dict[str, Any], str]) -> None:
    summary, printed = replayed(folder, "once", "", tables=ADMISSION)
    assert summary["cold_start"] is None
    assert "default_row" in fixed[1] and "default_row" not in printed
    assert summary["metrics"] == fixed[0]["metrics"]


NO_ADMISSION = "no table has admission, so an id has its row at once; needed: tables.admit_after"
NO_USER = "no feature is the user's id; needed: user: NAME at the top of the config, of a sparse feature of one id: member, item"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, [NO_ADMISSION]),
        ({"features": NOBODY, "tables": {"admit_after": 3}}, [NO_USER]),
        ({"features": NOBODY}, [NO_ADMISSION, NO_USER]),
    ],
)
def test_what_a_cold_start_needs_is_said_before_the_replay(
    folder: Path, tmp_path: Path, changes: dict[str, Any], said: list[str]
) -> None:
    command = ["replay", str(written(folder, "lacking", **changes)), "--cold-start", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    assert done.stderr.count("--cold-start: ") == len(said)
    for part in said:
        assert f"error synthetic: --cold-start: {part}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_figure_is_of_served_scores(folder: Path, fixed: tuple[dict[str, Any], str]) -> None:
    """The same figure from a loop of its own, whose scores other tests hold to be those served at the time."""
    pipeline = make_pipeline(folder, tables=ADMISSION)
    events = load(folder, pipeline.source, pipeline.features, NOW)
    ran = Ran(pipeline, events, {"60s": MINUTE}, warmup=0.3)
    rows = first_rows(np.asarray(events.features["user"]))
    rows = rows[rows >= ran.loop.scored_from]
    expected = auc(ran.loop.primary.scores[rows, 0], ran.loop.truth["like"][rows])
    assert fixed[0]["cold_start"]["auc"]["fixed"]["like"] == expected


def test_what_a_config_serves_with_already(folder: Path) -> None:
    plain = make_pipeline(folder, tables={"default_row": "learned"})
    assert not is_admitting(plain), "without admission every id has a row, so there is nothing to compare"
    only = {"user": {"admit_after": 6, "default_row": "learned"}}
    one = make_pipeline(folder, tables={"only": only})
    assert is_admitting(one)
    assert [is_default_row(one, each) for each in DEFAULT_ROWS] == [False, True], "items have rows at once"
    both = make_pipeline(folder, tables={"only": {**only, "item": {"admit_after": 2}}})
    assert [is_default_row(both, each) for each in DEFAULT_ROWS] == [False, False]
