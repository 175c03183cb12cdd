"""What `make replay` and `make compare` run, on the real MovieLens-100K: bars of served AUC, freshness, what cadences are worth."""

from __future__ import annotations

from typing import Any

import pytest

from tests.commands import run
from tests.real.movielens import first_ratings

REPLAY = "minutely replay movielens"
COMPARE = "minutely compare movielens"
ROWS = "minutely rows user 196"

COMPARED = 40_000
"""Ratings in the comparison, which takes five replicas through them; the replay takes all."""


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(REPLAY, tmp_path_factory.mktemp("movielens") / "replay")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("movielens")
    return run(f"{COMPARE} --data {first_ratings(COMPARED, folder / 'data')}", folder / "compare")


@pytest.mark.parametrize(("ran", "ratings"), [("replayed", 100_000), ("compared", COMPARED)])
def test_everything_was_served_joined_and_trained_once(ran: str, ratings: int, request: pytest.FixtureRequest) -> None:
    summary = request.getfixturevalue(ran)
    assert (summary["impressions"], summary["engagements"], summary["examples"]) == (ratings,) * 3
    assert summary["dead_letters"] == 0
    assert summary["replica_equals_table"]
    assert not summary["interrupted"]


def test_served_auc_and_freshness(replayed: dict[str, Any]) -> None:
    assert replayed["metrics"]["like"]["auc"] >= 0.75
    assert replayed["freshness_seconds"]["p99"] <= 61
    assert abs(replayed["metrics"]["like"]["calibration"] - 1) < 0.05


def test_fresher_is_better(compared: dict[str, Any]) -> None:
    scores = [compared["cadences"][name]["metrics"]["like"]["auc"] for name in ("60s", "5m", "1h", "24h", "never")]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)
    assert scores[0] - scores[-1] >= 0.04
