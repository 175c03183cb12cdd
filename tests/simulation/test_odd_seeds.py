"""The whole loop, whatever breaks, under the odd seeds."""

from __future__ import annotations

import pytest

from tests.simulation.test_even_seeds import CHUNKS, SEEDS, check


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_what_must_hold_holds(chunk: int) -> None:
    check(range(1, SEEDS, 2)[chunk::CHUNKS])
