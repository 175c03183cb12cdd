"""The whole loop, whatever breaks, under the even seeds; `tests.simulation.test_odd_seeds` has the others, for another process.

``SIMULATED_SEEDS`` sets how many there are in all.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.simulate import begin, failure

SEEDS = int(os.environ.get("SIMULATED_SEEDS", "1000"))
CHUNKS = 10


def check(seeds: range) -> None:
    begin()
    said = [found for seed in seeds if (found := failure(seed))]
    assert not said, f"{len(said)} seeds failed\n{said[0]}"


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_what_must_hold_holds(chunk: int) -> None:
    check(range(0, SEEDS, 2)[chunk::CHUNKS])
