"""KuaiRand-Pure through the whole loop, all 222,869 impressions: bars of served AUC, freshness, what cadences are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.commands import require_kuairand, run

CHECK = "minutely check kuairand"
COMPARE = "minutely compare kuairand"


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    require_kuairand()
    folder: Path = tmp_path_factory.mktemp("kuairand")
    return run(COMPARE, folder / "compare")


def test_everything_was_served_joined_and_trained_once(summary: dict[str, Any]) -> None:
    assert summary["impressions"] == summary["examples"] == 222_869
    assert summary["dead_letters"] == 0
    assert summary["replica_equals_table"]


def test_served_auc_and_freshness(summary: dict[str, Any]) -> None:
    assert summary["metrics"]["click"]["auc"] >= 0.73
    assert summary["metrics"]["long_view"]["auc"] >= 0.73
    assert summary["metrics"]["like"]["auc"] >= 0.79, "a value's loss does not drown a rare class"
    assert summary["freshness_seconds"]["p99"] <= 61


def test_what_cadences_are_worth(summary: dict[str, Any]) -> None:
    minute, day, never = (summary["cadences"][name]["metrics"]["click"]["auc"] for name in ("60s", "24h", "never"))
    assert minute >= day > never


def test_values_average_what_came(summary: dict[str, Any]) -> None:
    """By the squared error of their logarithm they averaged .42 of it."""
    assert 0.9 <= summary["metrics"]["play_time"]["calibration"] <= 1.1
