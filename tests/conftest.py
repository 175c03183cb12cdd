"""What all tests share: reproducible property tests, and one thread, so that parallel workers do not fight for cores."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, max_examples=60, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Replays of real data come first: they take longest, and the rest fits beside them."""
    items.sort(key=lambda item: "tests/real" not in item.nodeid)
