"""Where nearly all that is served is new: what the learned default row makes of scores, and who is told where they are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from streaming.join import calibration
from streaming.join.calibration import ServedCalibration
from streaming.join.core import Joiner
from streaming.join.negatives import Negatives
from streaming.log import IMPRESSIONS, INPUTS, Record
from streaming.records.events import decode_request
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from tests.commands import execute
from tests.minutely.news import PER_REQUEST, make_news, write_news
from tests.minutely.replays.test_loop import MINUTE, NOW, Ran
from tests.streaming.join.join_world import roomy_state

ADMISSION = {"admit_after": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("news")
    write_news(path)
    return path


@pytest.fixture(scope="module")
def events(folder: Path) -> LoggedEvents:
    pipeline = make_news(folder)
    return load(folder, pipeline.source, pipeline.features, NOW)


def ran(folder: Path, events: LoggedEvents, **changes: Any) -> Ran:
    return Ran(make_news(folder, **changes), events, {"60s": MINUTE}, warmup=0.3)


@pytest.mark.parametrize("emit", ["decided", "window"])
def test_newcomers_are_served_as_newcomers_turn_out(folder: Path, events: LoggedEvents, emit: str) -> None:
    """The first examples of an article are its clicks; what is served without a row are all its first impressions."""
    fixed, learned = (
        ran(folder, events, tables={**ADMISSION, "default_row": row}, join={"emit": emit}).summary
        for row in ("fixed", "learned")
    )
    ours, theirs = learned["metrics"]["click"], fixed["metrics"]["click"]
    assert 0.85 < ours["calibration"] < 1.18, (theirs, ours)
    assert ours["normalized_entropy"] < theirs["normalized_entropy"], (theirs, ours)
    assert learned["warnings"] == []
    (warning,) = fixed["warnings"]
    assert warning.startswith("click: served scores average 0.")
    assert f"(calibration {theirs['calibration']:.3g})" in warning


def test_a_replay_says_that_scores_are_wrong(tmp_path: Path) -> None:
    """Weights that go out once a day are those of nothing on the first; ``null`` is for who does not want to hear of it."""
    write_news(tmp_path, hours=4)
    for name, guards in (("told", {}), ("quiet", {"served_calibration": None})):
        pipeline = make_news(tmp_path, sync={"dense_every": "24h"}, train={"guards": guards})
        config, out = tmp_path / f"{name}.yaml", tmp_path / name
        config.write_text(yaml.safe_dump(pipeline.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
        done = execute(f"minutely replay {config} --warmup 0 --out {out}")
        assert done.returncode == 0, done.stderr
        for said in (done.stdout, (out / "report.html").read_text()):
            assert ("served scores average" in said) == (name == "told")


@pytest.mark.parametrize("keep", [1.0, 0.1])
def test_a_joiner_compares_what_was_served_with_what_came_of_it(
    folder: Path, events: LoggedEvents, keep: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As joiners on Kafka do: from the records alone, dropped negatives included, and only what a model scored."""
    log = ran(folder, events).log
    pipeline, told = make_news(folder), list[str]()
    monkeypatch.setattr(calibration, "_BLOCK", 50)
    monkeypatch.setattr(calibration, "_BLOCKS", 1000)  # the whole log
    served = ServedCalibration(pipeline.labels, (0.5, 1.5), told.append, told.append)
    spec = pipeline.join_spec()._replace(negatives=Negatives(keep, 1))
    joiner = Joiner(spec, roomy_state(), served=served)
    for topic in INPUTS:
        for offset, record in enumerate(log[topic]):
            joiner.add(topic, Record(offset, record, NOW))
    joiner.advance(NOW)
    assert (joiner.counts.dropped > 0) == (keep < 1)

    requests = [decode_request(record, NOW) for record in log[IMPRESSIONS]]
    scored = np.repeat([request.sparse_version > 0 for request in requests], PER_REQUEST)
    assert 0 < scored.sum() < len(scored), "before the first version nothing was scored by a model"
    sums = served.sums["click"]
    assert sums.impressions == pytest.approx(scored.sum(), abs=50)
    scores = np.concatenate([np.frombuffer(request.scores, np.float32) for request in requests])
    truth = events.truth(pipeline.labels["click"])
    assert sums.calibration == pytest.approx(scores[scored].mean() / truth[scored].mean(), rel=0.02)
    assert told
    assert told[0].startswith("click: served scores average")
