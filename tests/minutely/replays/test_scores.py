"""The file of served scores: its metrics are the summary's, its versions the log's; it is there whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from minutely.cli import cli
from minutely.replays import scores
from streaming.log import IMPRESSIONS
from streaming.records.events import decode_request
from streaming.source.load import load
from tests.commands import execute
from tests.minutely.replays.test_loop import MINUTE, NOW, Ran, make_pipeline, write_log
from tests.trainer.test_recovery import full_disk

NAMES = ["score_like", "label_like", "score_watched", "label_watched"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    write_log(folder / "log.parquet", requests=300)
    path = folder / "scores.yaml"
    path.write_text(yaml.safe_dump(make_pipeline(folder).model_dump(mode="json", exclude_defaults=True)))
    return path


@pytest.fixture(scope="module")
def ran(config: Path) -> Ran:
    pipeline = make_pipeline(config.parent)
    return Ran(pipeline, load(config.parent, pipeline.source, pipeline.features, NOW), {"60s": MINUTE}, warmup=0.3)


def auc_by_pairs(score: np.ndarray, label: np.ndarray) -> float | None:
    pairs = score[label == 1][:, None] - score[label == 0][None, :]
    return float(((pairs > 0) + 0.5 * (pairs == 0)).sum() / pairs.size) if pairs.size else None


def test_a_plain_script_finds_the_summary_s_metrics_in_the_file(config: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "out", tmp_path / "new" / "scores.parquet"
    done = execute(f"minutely replay {config} --warmup 0.3 --out {out} --scores {path}")
    assert done.returncode == 0, done.stderr
    assert f"Scores: {path}" in done.stdout
    assert [item.name for item in path.parent.iterdir()] == ["scores.parquet"]
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    table = pq.read_table(path)
    assert len(table) == summary["impressions"]
    assert (np.diff(table["served_at"].to_numpy().astype(np.int64)) >= 0).all()
    rows = {name: table.filter(table["counts"])[name].to_numpy() for name in table.column_names}
    assert len(rows["counts"]) == summary["impressions"] - np.ceil(0.3 * summary["impressions"])

    found = summary["metrics"]["like"]
    assert auc_by_pairs(rows["score_like"], rows["label_like"]) == found["auc"]
    within, sizes = [], []
    for request in dict.fromkeys(rows["request_id"]):
        mine = rows["request_id"] == request
        auc = auc_by_pairs(rows["score_like"][mine], rows["label_like"][mine])
        if auc is not None:
            within.append(auc)
            sizes.append(mine.sum())
    assert np.average(within, weights=sizes) == found["gauc"]
    assert np.mean(within) == found["gauc_mean"]
    assert found["gauc"] != found["gauc_mean"]
    error = rows["score_watched"].astype(float) - rows["label_watched"]
    assert np.sqrt(np.average(error**2)) == summary["metrics"]["watched"]["rmse"]

    report = (out / "report.html").read_text(encoding="utf-8")
    for name in ("like gauc", "like gauc_mean"):
        assert f"{name} " in done.stdout
        assert f"<td>{name}</td>" in report


def test_each_row_says_what_the_log_says(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records of what was served went through the log, and another way than the file."""
    monkeypatch.setattr(scores, "_ROWS_AT_ONCE", 64)
    path = tmp_path / "scores.parquet"
    scores.write_scores(path, ran.loop)
    assert pq.ParquetFile(path).num_row_groups == -(-ran.loop.impressions // 64)
    found = iter(pq.read_table(path).to_pylist())
    users = iter(np.asarray(ran.loop.events.features["user"]).tolist())
    versions = set()
    for payload in ran.log[IMPRESSIONS]:
        request = decode_request(payload, NOW)
        logged = np.frombuffer(request.scores, np.float32).reshape(-1, 2)
        for impression_id, (like, watched) in zip(request.impression_ids, logged.tolist(), strict=True):
            row = next(found)
            assert (row["request_id"], row["impression_id"]) == (request.request_id, impression_id)
            assert row["served_at"].timestamp() * 1000 == request.served_at
            assert (row["sparse_version"], row["dense_version"]) == (request.sparse_version, request.dense_version)
            assert (row["score_like"], row["score_watched"]) == (like, watched)
            assert row["user"] == next(users)
            versions.add((row["sparse_version"], row["dense_version"]))
    assert next(found, None) is None
    assert (0, 0) in versions and len(versions) > 20, "also of what was served before the first version"


def test_columns_follow_the_config(config: Path, ran: Ran, tmp_path: Path) -> None:
    scores.write_scores(tmp_path / "with.parquet", ran.loop)
    ends = ["sparse_version", "dense_version", "counts"]
    assert pq.read_schema(tmp_path / "with.parquet").names == [
        *("request_id", "impression_id", "served_at", "user"),
        *(*NAMES, *ends),
    ]
    features = {"item": {"column": "item"}}
    pipeline = make_pipeline(config.parent, features=features)
    events = load(config.parent, pipeline.source, pipeline.features, NOW)
    scores.write_scores(tmp_path / "without.parquet", Ran(pipeline, events, {"60s": MINUTE}).loop)
    schema = pq.read_schema(tmp_path / "without.parquet")
    assert schema.names == ["request_id", "impression_id", "served_at", *NAMES, *ends]
    assert schema.field("served_at").type == pa.timestamp("ms", "UTC")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("there.parquet", "is there already; allowed: a new file"),
        ("out", "is the folder of --out; allowed: a new file"),
        ("there.parquet/scores.parquet", "cannot be written"),
        (f"{'long' * 70}.parquet", "File name too long; allowed: a new file"),
    ],
)
def test_a_place_that_is_no_new_file_is_told_before_the_replay(
    config: Path, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "there.parquet").write_text("mine")
    command = ["replay", str(config), "--out", str(tmp_path / "out"), "--scores", str(tmp_path / name)]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    assert "--scores: " in done.stderr and said in done.stderr
    assert [item.name for item in tmp_path.iterdir()] == ["there.parquet"]
    assert (tmp_path / "there.parquet").read_text() == "mine"


def test_of_a_full_disk_nothing_is_left(ran: Ran, tmp_path: Path) -> None:
    with full_disk(4096), pytest.raises(OSError, match="scores not written: File too large") as raised:
        scores.write_scores(tmp_path / "scores.parquet", ran.loop)
    assert str(tmp_path / "scores.parquet") in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_scores_are_of_a_replay_that_trains(config: Path) -> None:
    command = ["replay", str(config), "--as-of", "2024-01-01", "--scores", "x.parquet", "--cold-start"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2
    assert "--cold-start, --scores: not with --as-of" in " ".join(done.output.replace("│", " ").split())
