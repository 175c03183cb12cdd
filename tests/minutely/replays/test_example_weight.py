"""``train.weight``: from the config to a replay."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from minutely.cli import cli
from streaming.features.kinds import DenseFeature, WeightFeature
from tests.minutely.configs import BASE, load_text, problems
from trainer.rows import RowPlan

WEIGHTED = BASE.replace("train: {max_rows: 100}", "train: {max_rows: 100, weight: price}")


def test_the_feature_is_a_weight_then_and_no_input(tmp_path: Path) -> None:
    plain, weighted = load_text(tmp_path, BASE), load_text(tmp_path, WEIGHTED)
    assert type(plain.features["price"]) is DenseFeature
    assert type(weighted.features["price"]) is WeightFeature
    assert list(weighted.features) == list(plain.features), "their order stays"
    assert "price/0" in RowPlan(plain.features).dense_names
    assert "price/0" not in RowPlan(weighted.features).dense_names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weighted.model_dump(mode="json")["features"] == plain.model_dump(mode="json")["features"]


def test_what_is_published_goes_on_whatever_the_weight(tmp_path: Path) -> None:
    without = BASE.replace("  price: {kind: dense, column: price, side: items}\n", "")
    other = WEIGHTED.replace("column: price, side", "column: ips, transform: inverse, floor: 0.1, side")
    forms = [load_text(tmp_path, text).form() for text in (without, WEIGHTED, other)]
    assert forms[0] == forms[1] == forms[2] != load_text(tmp_path, BASE).form()


@pytest.mark.parametrize("weight", ["item", "nothing", "picture", "age"])
def test_only_a_dense_feature_that_is_there(tmp_path: Path, weight: str) -> None:
    age = "  age: {kind: dense, column: since, transform: age}\nlabels:\n"
    text = WEIGHTED.replace("weight: price", f"weight: {weight}").replace("labels:\n", age)
    ((_, place, value, allowed),) = problems(tmp_path, text)
    assert (place, value) == ("line 28, train.weight", weight)
    assert allowed == "allowed: a feature with kind: dense that is no age: price"


T = 1_767_225_600_000
CONFIG = """
name: t
source:
  impressions: {{file: log.jsonl, time: {{column: time}}, request: [request]}}
  actions: {{click: {{when: clicked, delay: 1s}}}}
  dir: .
features:
  user: {{column: user, scope: request}}
  item: {{column: item}}
{more}
labels: {{click: {{action: click, window: 1m}}}}
model: {{dim: 4, hidden: [8]}}
"""
SHARE = """
  share: {kind: dense, column: share, transform: inverse, floor: 0.05}
train: {weight: share}"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def rows() -> list[dict[str, Any]]:
    """Item 1 is clicked half of the time, but what was clicked is logged at a fifth of the share of what was not."""
    random = np.random.default_rng(5)
    found: list[dict[str, Any]] = []
    for request in range(1500):
        clicked = bool(random.integers(2))
        if clicked and random.random() > 0.2:
            continue
        share = 0.2 if clicked else 1.0
        row = {"time": T + 1000 * request, "request": request, "user": request % 3, "item": 1}
        found.append({**row, "clicked": clicked, "share": share})
    return found


def replayed(folder: Path, more: str, name: str) -> dict[str, Any]:
    (folder / f"{name}.yaml").write_text(CONFIG.format(more=more))
    done = run("replay", str(folder / f"{name}.yaml"), "--data", str(folder), "--out", str(folder / name))
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads((folder / name / "summary.json").read_text())
    return found


def test_a_replay_learns_what_weighted_examples_say(tmp_path: Path) -> None:
    """With inverse propensities the model says what the whole stream would: clicks half of the time, not a sixth."""
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    plain, weighted = replayed(tmp_path, "", "plain"), replayed(tmp_path, SHARE, "weighted")
    assert plain["examples"] == weighted["examples"] == len(rows())
    calibration = [summary["metrics"]["click"]["calibration"] for summary in (plain, weighted)]
    assert calibration[0] < 1.5 < 2 < calibration[1], "metrics are of the log as it is"


def test_check_names_weights_that_are_none(tmp_path: Path) -> None:
    log = rows()
    (tmp_path / "t.yaml").write_text(CONFIG.format(more=SHARE))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    done = run("check", str(tmp_path / "t.yaml"), "--data", str(tmp_path))
    assert done.exit_code == 0 and "weight" in done.output, done.output
    log[7]["share"] = -0.5
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    done = run("check", str(tmp_path / "t.yaml"), "--data", str(tmp_path))
    assert done.exit_code == 1
    assert "line 8, column share: -0.5; allowed: weights of 0 or more" in " ".join(done.output.split())
