"""`minutely init` on whole data sets: `minutely check` takes what it writes, with no more edits than are listed here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from minutely.built_in_data import movielens_100k
from minutely.cli import cli
from minutely.config import Pipeline, load_pipeline
from tests.commands import ROOT, require_kuairand


class Expected(NamedTuple):
    """What a person would find in a data set, and what they had to replace in the config before `check` took it."""

    impressions: str
    time: str
    request: list[str]
    sides: dict[str, str]
    user: str
    item: tuple[str, str]
    labels: list[str]
    edits: list[tuple[str, str]]


DATA_SETS = {
    "movielens": Expected(
        "ml-100k.inter",
        "timestamp:float",
        ["user_id:token", "timestamp:float"],
        {},
        "user_id:token",
        ("item", "item_id:token"),
        ["like"],
        [],
    ),
    "kuairand": Expected(
        "impressions.parquet",
        "event_time",
        ["user_id", "event_time"],
        {"users": "user_id", "videos": "video_id"},
        "user_id",
        ("video", "video_id"),
        ["click", "long_view", "profile_enter"],
        [],
    ),
    "shop": Expected(
        "impressions.csv", "time", ["request"], {"items": "item"}, "user", ("item", "item"), ["click", "buy"], []
    ),
}


def typed(*command: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(part) for part in command])


def logs_of(name: str, folder: Path) -> Path:
    if name == "movielens":
        return movielens_100k()
    if name == "kuairand":
        require_kuairand()
        return Path(os.environ["MINUTELY_DATA"], "kuairand_pure_14d")
    subprocess.run([sys.executable, ROOT / "examples/shop/make_logs.py", folder / "shop-logs"], check=True)
    return folder / "shop-logs"


@pytest.mark.parametrize("name", DATA_SETS)
def test_what_it_writes_is_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs, expected = logs_of(name, tmp_path), DATA_SETS[name]
    monkeypatch.chdir(tmp_path)
    done = typed("init", logs, "--out", f"{name}.yaml")
    assert done.exit_code == 0, done.output
    assert f"minutely check {name}.yaml" in done.output
    config = Path(f"{name}.yaml")
    for old, new in expected.edits:
        text = config.read_text(encoding="utf-8")
        assert old in text
        config.write_text(text.replace(old, new), encoding="utf-8")
    pipeline = load_pipeline(config)
    assert_is(pipeline, expected)
    checked = typed("check", config)
    assert checked.exit_code == 0, checked.output
    assert "look at" not in checked.output


def assert_is(pipeline: Pipeline, expected: Expected) -> None:
    source = pipeline.source
    assert source.impressions.file == expected.impressions
    assert (source.impressions.time.column, source.impressions.request) == (expected.time, expected.request)
    assert {name: "+".join(side.key) for name, side in source.sides.items()} == expected.sides
    item, column = expected.item
    features = {name: getattr(feature, "column", None) for name, feature in pipeline.features.items()}
    assert features["user"] == expected.user
    assert features[item] == column
    assert pipeline.features["user"].scope == "request"
    assert pipeline.features[item].scope == "impression"
    assert list(pipeline.labels) == expected.labels


def test_the_shop_is_as_a_person_wrote_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against `examples/shop/shop.yaml`: but for names, and the label of what was spent, which is an alternative."""
    logs = logs_of("shop", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert typed("init", logs.name).exit_code == 0
    found, written = load_pipeline(Path("shop-logs.yaml")), load_pipeline(ROOT / "examples/shop/shop.yaml")
    assert found.source == written.source
    features = {"age" if name == "added" else name: feature for name, feature in found.features.items()}
    assert features == dict(written.features)
    assert "# buy_value: {action: buy, window: 10m, loss: tweedie" in Path("shop-logs.yaml").read_text()


def test_a_config_is_replaced_only_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs_of("shop", tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("shop-logs.yaml").write_text("name: mine")
    done = typed("init", "shop-logs")
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "error shop-logs.yaml: file; is there already; allowed: another file with --out, or --force to replace it"
    ]
    assert Path("shop-logs.yaml").read_text() == "name: mine"
    assert typed("init", "shop-logs", "--force").exit_code == 0
    assert load_pipeline(Path("shop-logs.yaml")).name == "shop-logs"
