"""The seeds that every test run takes, in two files, so that two processes share them. ``SIMULATED_SEEDS`` sets their number."""

from __future__ import annotations

import os

from tests.simulation.simulate import begin, failure

SEEDS = int(os.environ.get("SIMULATED_SEEDS", "1000"))


def check(first: int, chunk: int, chunks: int) -> None:
    """Runs the even (``first`` 0) or the odd (1) seeds of a part of all."""
    begin()
    seeds = range(first, SEEDS, 2)
    said = [found for seed in seeds[chunk::chunks] if (found := failure(seed))]
    assert not said, f"{len(said)} seeds failed\n{said[0]}"
