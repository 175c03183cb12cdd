"""A model trained from a replay's archive is the model that the replay trained."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from basis.problems import GuardedError, Problems
from minutely.parts import make_trainer
from minutely.replays.loop import open_loop
from minutely.services.batch import archive_place, train_from_archive
from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from streaming.log import EXAMPLES
from streaming.source.load import load
from tests.minutely.replays.test_loop import HOUR, MINUTE, NOW, START, make_pipeline, write_log
from trainer.recovery import recover_newest

QUIET = Console(file=io.StringIO())


def test_a_model_that_went_astray_is_not_published_from_the_archive_either(tmp_path: Path) -> None:
    write_log(tmp_path / "log.parquet", requests=200, hours=3)
    pipeline = make_pipeline(tmp_path, archive={})
    events = load(tmp_path, pipeline.source, pipeline.features, NOW)
    with open_loop(
        pipeline, events, tmp_path, LocalFiles(tmp_path / "deltas", durable=False), {"60s": MINUTE}, 0.5
    ) as loop:
        while loop.tick():
            pass
        loop.finish()
    guarded = make_pipeline(tmp_path, archive={}, train={"guards": {"prediction": {"like": [0.99, 1]}, "over": 100}})
    with pytest.raises(GuardedError, match="the running mean prediction of like"):
        train_from_archive(guarded, str(tmp_path / "archive"), None, None, tmp_path / "batch", QUIET)
    assert not (tmp_path / "batch").exists()


def test_the_archive_of_a_replay_gives_the_replay_s_model(tmp_path: Path) -> None:
    write_log(tmp_path / "log.parquet", requests=200, hours=3)
    labels = {"like": {"action": "like", "decided_by": "play", "window": "10m"}}
    pipeline = make_pipeline(tmp_path, archive={}, negatives={"keep": 0.5}, labels=labels)
    events = load(tmp_path, pipeline.source, pipeline.features, NOW)
    files = LocalFiles(tmp_path / "deltas", durable=False)
    with open_loop(pipeline, events, tmp_path, files, {"60s": MINUTE}, 0.5) as loop:
        while loop.tick():
            pass
        loop.finish()
        assert loop.joiner.counts.dropped > 0, "rates travel through the archive"
        place = str(tmp_path / "archive")
        out = tmp_path / "batch"
        summary = train_from_archive(pipeline, place, None, None, out, QUIET)
        assert summary["examples"] == loop.trainer.examples == events.impressions - loop.joiner.counts.dropped
        published = LocalFiles(out / "deltas", durable=False)
        batch = make_trainer(pipeline)
        newest = recover_newest(published, DeltaLog.resume(published, pipeline.form(), 4), batch)
        assert newest is not None
        assert batch.state() == loop.trainer.state()
        for name, table in loop.trainer.tables.items():
            ours, theirs = table.export(), batch.tables[name].export()
            for column in ("ids", "embeddings", "state", "last_seen_seconds", "counts"):
                assert getattr(ours, column).tobytes() == getattr(theirs, column).tobytes()
        end = loop._log.end(EXAMPLES, 0)
        assert newest.offsets == summary["offsets"] == {"examples/0": end}
        assert newest.watermark == loop.joiner.watermark
        assert json.loads((out / "summary.json").read_text())["offsets"] == {"examples/0": end}
        assert 0.5 < summary["metrics"]["like"]["auc"] < 1

        part = train_from_archive(pipeline, place, START + HOUR, START + 2 * HOUR, tmp_path / "part", QUIET)
        assert 0 < part["examples"] < summary["examples"]
        assert part["offsets"] == {}, "a model of a stretch of time is at no offset"
        with pytest.raises(Problems, match="no example in between; allowed: times from 2023-11-14T22 to 2023-11-15T0"):
            train_from_archive(pipeline, place, NOW, None, tmp_path / "none", QUIET)
    assert not (tmp_path / "none").exists()
    assert archive_place(make_pipeline(tmp_path, archive={"dir": place}), None) == place
    with pytest.raises(Problems, match="nowhere: --archive: no archive there; allowed: what minutely archive writes"):
        train_from_archive(pipeline, str(tmp_path / "nowhere"), None, None, tmp_path / "none", QUIET)
