"""The whole loop under half of the seeds, whatever breaks."""

from __future__ import annotations

import pytest

from tests.simulation.seeds import check


@pytest.mark.parametrize("chunk", range(10))
def test_what_must_hold_holds(chunk: int) -> None:
    check(0, chunk, 10)
