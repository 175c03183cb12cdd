"""The cost of a batch is learned from batches, whatever they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cost import BatchCost


def _learned(sizes: list[int], batch_seconds: float, candidate_seconds: float, noise: float = 0.0) -> BatchCost:
    random, model = np.random.default_rng(1), BatchCost()
    for size in sizes:
        model.observe(size, (batch_seconds + size * candidate_seconds) * (1 + noise * random.normal()))
    return model


def test_both_parts_are_learned() -> None:
    sizes = np.random.default_rng(2).integers(1, 512, 300).tolist()
    exact = _learned(sizes, 2e-3, 5e-6).cost
    assert exact.batch_seconds == pytest.approx(2e-3, rel=0.01)
    assert exact.candidate_seconds == pytest.approx(5e-6, rel=0.01)
    noisy = _learned(sizes, 2e-3, 5e-6, noise=0.1).cost
    assert noisy.of(1, 500) == pytest.approx(4.5e-3, rel=0.1)


@pytest.mark.parametrize("size", [1, 20, 100, 500, 2000])
def test_batches_of_one_size_say_what_they_cost(size: int) -> None:
    model = _learned([size] * 10_000, 2e-3, 5e-6, noise=0.1)
    assert model.cost.of(1, size) == pytest.approx(2e-3 + size * 5e-6, rel=0.1)


def test_it_forgets() -> None:
    model = _learned([1, 100, 500] * 100, 50e-3, 100e-6)
    for size in [1, 100, 500] * 150:
        model.observe(size, 1e-3 + size * 5e-6)
    assert model.cost.of(1, 500) == pytest.approx(3.5e-3, rel=0.05)
    assert model.cost.of(1, 1) == pytest.approx(1e-3, rel=0.05)


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 1e6)), max_size=200))
def test_no_history_makes_it_negative_or_infinite(history: list[tuple[int, float]]) -> None:
    model = BatchCost()
    for candidates, seconds in history:
        model.observe(candidates, seconds)
        assert all(math.isfinite(part) and part >= 0 for part in model.cost), (candidates, seconds)


@pytest.mark.parametrize("seconds", [[5e-3, 4e-3, 3e-3], [0.0, 1e-3, 9e-3]], ids=["no candidates", "no batch"])
def test_the_solution_is_the_least_squares(seconds: list[float]) -> None:
    """Against a search over both parts, where a coefficient of plain least squares would be negative."""
    model, sizes = BatchCost(), [10, 200, 400]
    for size, took in zip(sizes, seconds, strict=True):
        model.observe(size, took)
    assert 0 in model.cost

    def loss(batch: float, candidate: float) -> float:
        apart = batch + np.array(sizes) * candidate - seconds
        return float(
            (0.98 ** np.arange(2, -1, -1) * apart**2).sum() + 1e-3 * (batch**2 + (1000 * candidate - 1e-2) ** 2)
        )

    grid = [loss(a, b) for a in np.linspace(0, 1e-2, 101) for b in np.linspace(0, 5e-5, 101)]
    assert loss(*model.cost) <= min(grid) + 1e-12
