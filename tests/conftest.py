"""What all tests share: reproducible property tests, and one thread, so that parallel workers do not fight for cores."""

from __future__ import annotations

import os
from itertools import zip_longest

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, max_examples=60, suppress_health_check=list(HealthCheck)
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


_LONG = ("tests/real", "tests/simulation", "tests/paramserver/test_native")
_WAITING = ("tests/faults", "tests/kafka", "tests/serving", "tests/stack")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that compute, the longest first, alternate with those that mostly wait for brokers and other processes, so that
    one uses the core that the other leaves, and short ones are left for the end."""
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.nodeid.split("::")[0], []).append(item)
    computing = sorted(
        (name for name in files if not name.startswith(_WAITING)), key=lambda it: not it.startswith(_LONG)
    )
    waiting = [name for name in files if name.startswith(_WAITING)]
    order = [name for pair in zip_longest(computing, waiting) for name in pair if name is not None]
    items[:] = [item for name in order for item in files[name]]
