"""What `make replay` and `make compare` run, on the real MovieLens-100K: bars of served AUC, freshness, equality of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commands import run

REPLAY = "minutely replay configs/movielens.yaml"
COMPARE = "minutely compare configs/movielens.yaml"
ROWS = "minutely rows user 196"

Summaries = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def summaries(tmp_path_factory: pytest.TempPathFactory) -> Summaries:
    folder: Path = tmp_path_factory.mktemp("movielens")
    return run(REPLAY, folder / "replay"), run(COMPARE, folder / "compare")


def test_everything_was_served_joined_and_trained_once(summaries: Summaries) -> None:
    for summary in summaries:
        assert (summary["impressions"], summary["engagements"], summary["examples"]) == (100_000,) * 3
        assert summary["dead_letters"] == 0
        assert summary["replica_equals_table"]
        assert not summary["interrupted"]


def test_served_auc_and_freshness(summaries: Summaries) -> None:
    replay, _ = summaries
    assert replay["metrics"]["like"]["auc"] >= 0.75
    assert replay["freshness_seconds"]["p99"] <= 61
    assert abs(replay["metrics"]["like"]["calibration"] - 1) < 0.05


def test_a_comparison_s_minute_is_the_replay_bit_for_bit(summaries: Summaries) -> None:
    replay, compare = summaries
    minute = compare["cadences"]["60s"]
    assert minute["metrics"] == replay["metrics"]
    assert minute["freshness_seconds"] == replay["freshness_seconds"]


def test_fresher_is_better(summaries: Summaries) -> None:
    _, compare = summaries
    scores = [compare["cadences"][name]["metrics"]["like"]["auc"] for name in ("60s", "5m", "1h", "24h", "never")]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)
    assert scores[0] - scores[-1] >= 0.05
