"""`minutely versions`, `minutely rollback` and `minutely replay --as-of` on the shop's run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from minutely.cli import cli
from minutely.config import load_pipeline
from minutely.parts import make_replica
from paramserver.files import LocalFiles
from tests.commands import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replay that leaves deltas besides its base; its logs and config lie beside it."""
    folder = tmp_path_factory.mktemp("shop")
    subprocess.run([sys.executable, ROOT / "examples/shop/make_logs.py", folder / "shop-logs"], check=True)
    config = yaml.safe_load((ROOT / "examples/shop/shop.yaml").read_text(encoding="utf-8"))
    config["source"]["dir"] = str(folder / "shop-logs")
    config["sync"] = {"sparse_every": "1h", "rows": "float16"}
    (folder / "shop.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = invoke("replay", folder / "shop.yaml", "--out", folder / "run", "--warmup", "0")
    assert done.exit_code == 0, done.output
    return folder / "run"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def versions(*arguments: object) -> dict[str, Any]:
    done = invoke("versions", *arguments, "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == (1 if found["damaged"] else 0), done.output
    return found


def iso(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat()


def test_versions_tells_what_is_there_and_what_holds_it(run: Path) -> None:
    found = versions("--run", run)
    newest, *_ = items = found["versions"]
    assert [(item["version"], item["kind"]) for item in items[-2:]] == [(2, "delta"), (1, "whole")]
    assert newest["kind"] == "base"
    assert newest["held_by"][:2] == ["newest", "base"]
    assert "trainer's state" in newest["held_by"]
    assert any(text.startswith("dense weights of 1 to") for text in items[-1]["held_by"])
    assert (items[-2]["parent"], items[-1]["parent"], newest["parent"]) == (1, 0, -1)
    assert all(item["bytes"] > 0 and item["changed"] >= 0 and item["lineage"] == 1 for item in items)
    assert (found["damaged"], found["pin"], found["hold"]) == ([], 0, None)
    text = invoke("versions", "--deltas", run / "deltas").output
    assert "watermark" in text and "delta" in text
    for arguments, said in (
        (("--deltas", run / "none"), "no such folder"),
        (("--deltas", run, "--run", run), "give one"),
    ):
        done = invoke("versions", *arguments)
        assert done.exit_code != 0
        assert said in " ".join((done.output + str(done.exception)).split())


def test_damaged_versions_are_shown_as_damaged(run: Path, tmp_path: Path) -> None:
    deltas = Path(shutil.copytree(run / "deltas", tmp_path / "deltas"))
    (deltas / "manifest-000000000003.json").write_text("{}")
    rows = next(deltas.glob("000000000005.*.rows.arrow"))
    rows.write_bytes(rows.read_bytes()[:-7])
    next(deltas.glob("000000000004.*.state.arrow")).unlink()
    found = versions("--deltas", deltas)
    assert len(found["damaged"]) == 3
    for part in ("manifest-000000000003.json", rows.name, "000000000004."):
        assert any(part in text for text in found["damaged"]), part
    shown = invoke("versions", "--deltas", deltas)
    assert shown.stdout.count("damaged") == 3 and "3 damaged or missing" in shown.stderr


def test_a_place_without_versions_is_named(tmp_path: Path) -> None:
    """As where a run's folder is given instead of its deltas."""
    assert "nothing is published there" in invoke("versions", "--deltas", tmp_path).stderr


@pytest.mark.parametrize("mark", ["pin", "hold"])
def test_a_damaged_mark_is_named_below_the_versions(run: Path, tmp_path: Path, mark: str) -> None:
    """One line and status 1 were all that came of it."""
    deltas = Path(shutil.copytree(run / "deltas", tmp_path / "deltas"))
    (deltas / f"{mark}.json").write_text("{}")
    found = versions("--deltas", deltas)
    assert found["versions"] and found[mark] is None
    assert len(found["damaged"]) == 1 and f"{mark}.json" in found["damaged"][0]
    shown = invoke("versions", "--deltas", deltas)
    assert f"damaged {mark}.json" in shown.output


@pytest.mark.parametrize("train_from", ["old", "newest"])
def test_rollback_and_replicas_follow_byte_for_byte(run: Path, tmp_path: Path, train_from: str) -> None:
    deltas = Path(shutil.copytree(run / "deltas", tmp_path / "deltas"))
    files = LocalFiles(deltas, durable=False)
    pipeline = load_pipeline(run.parent / "shop.yaml")
    replica, old = make_replica(pipeline, files), make_replica(pipeline, files)
    replica.pull()
    there = versions("--deltas", deltas)["versions"]
    newest = there[0]["version"]
    trainable = [item["version"] for item in there if "trainer's state" in item["held_by"]]
    target = trainable[-1] if train_from == "old" else 3
    wanted = next(item for item in there if item["version"] == target)
    old.load_as_of(wanted["watermark"])
    done = invoke("rollback", target, "--deltas", deltas, "--train-from", train_from)
    assert done.exit_code == 0, done.output + str(done.exception)
    assert f"version {newest + 1} holds what version {target} held" in done.output
    replica.pull()
    assert replica.sparse_version == newest + 1
    assert replica.dense_version == old.dense_version
    for name, table in replica.tables.items():
        ours, theirs = table.export(), old.tables[name].export()
        assert ours.ids.tobytes() == theirs.ids.tobytes()
        assert ours.embeddings.tobytes() == theirs.embeddings.tobytes()
    found = versions("--deltas", deltas)
    assert found["pin"] == (0 if train_from == "old" else newest + 1)
    assert f"goes back to {target}" in found["versions"][0]["held_by"]
    assert found["versions"][0]["kind"] == "whole"
    if train_from == "newest":
        assert "pin" in found["versions"][0]["held_by"]
        assert (
            "from their next pull on they take the newest" in invoke("rollback", "--release", "--deltas", deltas).output
        )
        assert versions("--deltas", deltas)["pin"] == 0
    assert "no rollback holds replicas" in invoke("rollback", "--release", "--deltas", deltas).output


def test_what_cannot_be_rolled_back_to(run: Path, tmp_path: Path) -> None:
    deltas = Path(shutil.copytree(run / "deltas", tmp_path / "deltas"))
    before = sorted(path.name for path in deltas.iterdir())
    for arguments, said in (
        ((999,), "version 999 is not there; allowed: 1 to "),
        ((2, "--train-from", "old"), "version 2: no trainer's state to train from"),
        ((), "give either a VERSION or --release"),
    ):
        done = invoke("rollback", *arguments, "--deltas", deltas)
        assert done.exit_code != 0
        assert said in " ".join((done.output + str(done.exception)).split())
    assert sorted(path.name for path in deltas.iterdir()) == before


def test_replay_as_of_is_what_a_replica_that_stayed_there_would_have_served(run: Path, tmp_path: Path) -> None:
    config = run.parent / "shop.yaml"
    items = versions("--run", run)["versions"]
    chosen = items[len(items) // 2]
    at = chosen["watermark"] + 1
    done = invoke("replay", config, "--as-of", iso(at), "--run", run, "--out", tmp_path / "as-of")
    assert done.exit_code == 0, done.output + str(done.exception)
    assert f"version {chosen['version']}" in done.output
    found = json.loads((tmp_path / "as-of/summary.json").read_text())
    assert (found["version"], found["watermark"], found["as_of"]) == (chosen["version"], chosen["watermark"], at)
    whole = json.loads((run / "summary.json").read_text())
    assert 0 < found["impressions"] < whole["impressions"]
    assert found["metrics"].keys() == whole["metrics"].keys()
    assert all(np.isfinite(found["metrics"]["click"][name]) for name in ("auc", "log_loss"))
    early = invoke(
        "replay", config, "--as-of", iso(items[-1]["watermark"] + 1), "--run", run, "--out", tmp_path / "early"
    )
    assert early.exit_code == 0
    first = json.loads((tmp_path / "early/summary.json").read_text())
    assert first["version"] < found["version"]
    assert first["metrics"] != found["metrics"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--as-of", "1960-01-01"), "no version as of 1960-01-01T00:00:00.000Z: those there are of "),
        (("--as-of", "2100-01-01"), "--as-of: 2100-01-01T00:00:00.000Z; allowed: at most 20"),
        (("--as-of", "soon"), "allowed: a date or a time in ISO 8601"),
        (("--as-of", "2100-01-01", "--warmup", "0.1"), "--warmup: not with --as-of"),
    ],
)
def test_times_that_cannot_be_replayed(run: Path, options: tuple[str, ...], said: str) -> None:
    done = invoke("replay", run.parent / "shop.yaml", "--run", run, *options)
    assert done.exit_code != 0
    assert said in " ".join((done.output.replace("│", " ") + str(done.exception)).split())


def test_another_config_is_refused(run: Path, tmp_path: Path) -> None:
    """Of some changes rows and weights would still fit, and score wrong without a word."""
    config = yaml.safe_load((run.parent / "shop.yaml").read_text())
    config["labels"]["spent"] = {"action": "buy", "window": "20m", "loss": "tweedie", "weight": 0.1}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = invoke("replay", tmp_path / "other.yaml", "--as-of", "2026-01-06", "--run", run, "--out", tmp_path / "out")
    assert done.exit_code == 1
    assert "made by another config" in done.output


def test_a_run_to_replay_from_needs_a_time(run: Path) -> None:
    done = invoke("replay", run.parent / "shop.yaml", "--run", run)
    assert done.exit_code == 2
    assert "--run: only with --as-of" in done.output
