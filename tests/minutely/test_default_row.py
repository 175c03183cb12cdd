"""The learned default row, where nearly all that is served is new: what it makes of scores, as they were served."""

from __future__ import annotations

from pathlib import Path

import pytest

from minutely.config import Pipeline
from streaming.source import LoggedEvents, load
from tests.minutely.news import make_news, write_news
from tests.minutely.test_loop import MINUTE, NOW, Ran


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("news")
    write_news(path)
    return path


def served(pipeline: Pipeline, events: LoggedEvents) -> dict[str, float]:
    metrics: dict[str, float] = Ran(pipeline, events, {"60s": MINUTE}, warmup=0.3).summary["metrics"]["click"]
    return metrics


@pytest.mark.parametrize("emit", ["decided", "window"])
def test_newcomers_are_served_as_newcomers_turn_out(folder: Path, emit: str) -> None:
    """The first examples of an article are its clicks; what is served without a row are all its first impressions."""
    pipeline = make_news(folder)
    events = load(folder, pipeline.source, pipeline.features, NOW)
    fixed, learned = (
        served(make_news(folder, tables={"admit_after": 3, "default_row": row}, join={"emit": emit}), events)
        for row in ("fixed", "learned")
    )
    assert 0.85 < learned["calibration"] < 1.18, (fixed, learned)
    assert learned["normalized_entropy"] < fixed["normalized_entropy"], (fixed, learned)
