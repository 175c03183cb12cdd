"""The scale of dense features: no row moves it far, and it forgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import auc
from trainer.norm import START_ROWS, RunningNorm

WEEK, MINUTE = 7 * 86_400_000, 60_000


def learned(batches: Sequence[np.ndarray], every_ms: int = 0) -> RunningNorm:
    norm = RunningNorm(batches[0].shape[1])
    for at, batch in enumerate(batches):
        norm.learn(torch.from_numpy(batch.astype(np.float32)), 1 + at * every_ms, WEEK)
    return norm


def scale_of(norm: RunningNorm) -> float:
    return float((norm.squares / norm.count).sqrt()[0])


@given(st.lists(st.integers(0, 90), min_size=1, max_size=8), st.integers(0, 2**32), st.sampled_from([0.01, 1.0, 1e4]))
def test_without_extremes_it_is_mean_and_variance_of_all_rows(sizes: list[int], seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    norm = RunningNorm(3)
    seen = np.empty((0, 3))
    for size in sizes:
        batch = (rng.uniform(-1, 1, (size, 3)) * scale + [0, 5 * scale, -1e3]).astype(np.float32)
        seen = np.concatenate((seen, batch.astype(np.float64)))
        norm.learn(torch.from_numpy(batch), 5, WEEK)
        out = norm(torch.from_numpy(batch))
        assert (out.shape, out.dtype) == ((size, 3), torch.float32)
        if len(seen):
            expected = np.clip((batch - seen.mean(0)) / np.maximum(seen.std(0), 1e-6), -10, 10)
            np.testing.assert_allclose(out.numpy(), expected, atol=1e-3)


def test_what_is_served_teaches_nothing_and_what_is_far_out_is_cut() -> None:
    norm = learned([np.zeros((1000, 1))])
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    assert norm(torch.tensor([[1e6], [-1e6], [0.0]])).tolist() == [[10], [-10], [0]]
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("size", [1, 64, 1000])
@pytest.mark.parametrize("at", [0, 31, 127, 128, 500])
@pytest.mark.parametrize("value", [1e6, -3e38])
def test_one_row_moves_it_by_a_bounded_amount_wherever_it_stands(size: int, at: int, value: float) -> None:
    rows = np.random.default_rng(5).uniform(0, 10, (1000, 1))
    rows[at] = value
    norm = learned([rows[start : start + size] for start in range(0, len(rows), size)])
    assert 4.6 < float(norm.mean[0]) < 5.4
    assert 2.7 < scale_of(norm) < 3.3


def test_a_feature_that_is_rare_keeps_its_scale() -> None:
    rng = np.random.default_rng(1)
    rows = np.where(rng.random((5000, 1)) < 0.05, rng.uniform(1, 3, (5000, 1)), 0)
    found = scale_of(learned([rows[at : at + 20] for at in range(0, 5000, 20)]))
    assert 0.8 * rows.std() < found < 1.1 * rows.std()


@pytest.mark.parametrize("usual", [0.0, -1.0])
@pytest.mark.parametrize("share", [0.005, 0.0005])
@pytest.mark.parametrize("kind", ["near 100", "log-normal"])
def test_a_number_that_is_nearly_always_the_same_is_told_apart_where_it_is_another(
    usual: float, share: float, kind: str
) -> None:
    """What decides a click by being above its median is still there in what the model gets, and on its scale."""
    rng = np.random.default_rng(6)
    rows = np.full((100_000, 1), usual)
    rare = np.flatnonzero(rng.random(len(rows)) < share)
    values = rng.normal(100, 10, len(rare)) if kind == "near 100" else rng.lognormal(0, 1, len(rare))
    rows[rare, 0] += values
    norm = learned([rows[at : at + 1000] for at in range(0, len(rows), 1000)], every_ms=MINUTE)
    out = norm(torch.from_numpy(rows[rare])).numpy()[:, 0]
    assert auc(out, (values > np.median(values)).astype(np.float64)) == 1
    assert 0.5 < np.median(out) < 16
    assert abs(float(norm(torch.tensor([[usual]])))) < 0.5


def test_numbers_that_are_never_usual_mute_nothing_and_a_feature_may_become_rare() -> None:
    rng = np.random.default_rng(7)
    rows = rng.uniform(0, 10, (20_000, 1))
    rows[rng.random(len(rows)) < 0.004] = 1e6
    assert scale_of(learned([rows[at : at + 500] for at in range(0, len(rows), 500)])) < 6
    rows = np.concatenate((rng.normal(5, 2, (5000, 1)), np.zeros((45_000, 1))))
    rare = 5000 + np.flatnonzero(rng.random(45_000) < 0.005)
    rows[rare, 0] = rng.normal(100, 10, len(rare))
    norm = learned([rows[at : at + 500] for at in range(0, len(rows), 500)], every_ms=600 * MINUTE)
    out = norm(torch.from_numpy(rows[rare])).numpy()[:, 0]
    assert auc(out, (rows[rare, 0] > 100).astype(np.float64)) == 1
    assert 1 < np.median(out) < 20


@pytest.mark.parametrize("share", [0.005, 0.008])
def test_stand_ins_that_keep_coming_mute_nothing(share: float) -> None:
    """They took the scale of 0 to 10 to 70,000, slowly."""
    rng = np.random.default_rng(8)
    rows = rng.uniform(0, 10, (150_000, 1))
    rows[rng.random(len(rows)) < share] = 1e6
    assert scale_of(learned([rows[at : at + 500] for at in range(0, len(rows), 500)], every_ms=600 * MINUTE)) < 8


def test_a_feature_without_variance_comes_to_life() -> None:
    rows = np.concatenate((np.full((1000, 1), 7.0), np.random.default_rng(2).normal(7, 3, (2000, 1))))
    assert scale_of(learned([rows[at : at + 10] for at in range(0, 3000, 10)])) > 1.5


@pytest.mark.parametrize("factor", [100, 0.01])
def test_it_follows_a_feature_that_changes_its_range(factor: float) -> None:
    rng = np.random.default_rng(3)
    days = [rng.normal(5, 2, (200, 1)) for _ in range(30)] + [rng.normal(5, 2, (200, 1)) * factor for _ in range(90)]
    norm = learned(days, every_ms=86_400_000)
    assert 0.5 < scale_of(norm) / (2 * factor) < 4
    assert abs(float(norm.mean[0]) / (5 * factor) - 1) < 0.5


def test_a_long_pause_leaves_the_scale() -> None:
    norm = learned([np.random.default_rng(4).normal(5, 2, (10_000, 1))])
    before = scale_of(norm)
    norm.learn(torch.tensor([[5.0]]), 100 * 365 * 86_400_000, WEEK)
    assert abs(scale_of(norm) / before - 1) < 0.05
    assert START_ROWS <= float(norm.count[0]) <= START_ROWS + 1


@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.integers(0, 2**32), st.data())
def test_it_goes_on_from_its_state_as_if_nothing_had_been(sizes: list[int], seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    batches = [torch.from_numpy(rng.normal(size=(size, 2)).astype(np.float32)) for size in sizes]
    stop = data.draw(st.integers(0, len(sizes)))
    whole, first, second = RunningNorm(2), RunningNorm(2), RunningNorm(2)
    for at, batch in enumerate(batches):
        whole.learn(batch, at * MINUTE, WEEK)
        if at < stop:
            first.learn(batch, at * MINUTE, WEEK)
    second.load_state_dict(first.state_dict())
    second.go_on(first.learning())
    for at, batch in enumerate(batches[stop:], stop):
        second.learn(batch, at * MINUTE, WEEK)
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in second.state_dict().items())


def test_rows_that_are_no_numbers_are_passed_over() -> None:
    norm = RunningNorm(2)
    norm.learn(torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [3.0, float("inf")], [3.0, 4.0]]), 1, WEEK)
    assert (norm.count.tolist(), norm.mean.tolist()) == ([2, 2], [2, 3])
