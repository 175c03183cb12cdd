"""Metrics against their definitions, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics import auc, auc_by_request, class_metrics, log_loss, value_metrics

probabilities = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.9, 1.0]) | st.floats(0, 1, width=32)
rows = st.lists(st.tuples(probabilities, st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=25)
Rows = list[tuple[float, int, int]]


def by_pairs(scores: list[float], labels: list[int]) -> float | None:
    pairs = [
        (positive > negative) + 0.5 * (positive == negative)
        for positive, is_positive in zip(scores, labels, strict=True)
        if is_positive
        for negative, is_other in zip(scores, labels, strict=True)
        if not is_other
    ]
    return sum(pairs) / len(pairs) if pairs else None


def split(given_rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, labels, requests = zip(*given_rows, strict=True)
    return np.array(scores, np.float32), np.array(labels, np.float32), np.array(requests) * 1000


@given(rows)
def test_auc_is_the_share_of_pairs_in_order(given_rows: Rows) -> None:
    scores, labels, _ = split(given_rows)
    expected = by_pairs(scores.tolist(), labels.tolist())
    assert auc(scores, labels) == (None if expected is None else pytest.approx(expected, abs=1e-12))


@given(rows)
def test_weights_count_an_example_as_if_it_were_there_so_often(given_rows: Rows) -> None:
    scores, labels, times = split(given_rows)
    times = times // 1000 + 1
    often, labels_often = np.repeat(scores, times), np.repeat(labels, times)
    found, expected = class_metrics(scores, labels, weights=times), class_metrics(often, labels_often)
    assert (found["gauc"], found["gauc_mean"]) == (None, None)
    found |= {f"value {name}": value for name, value in value_metrics(scores, labels, times).items()}
    expected |= {f"value {name}": value for name, value in value_metrics(often, labels_often).items()}
    for name, value in expected.items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12))


@given(rows)
def test_gauc_is_the_mean_of_requests_with_both_labels_by_their_impressions(given_rows: Rows) -> None:
    """And ``gauc_mean`` the plain one, which a request of two impressions moves as much as one of twenty."""
    scores, labels, requests = split(given_rows)
    found, sizes = [], []
    for request in np.unique(requests):
        mine = requests == request
        within = by_pairs(scores[mine].tolist(), labels[mine].tolist())
        if within is not None:
            found.append(within)
            sizes.append(int(mine.sum()))
    each, weights = auc_by_request(scores, labels, requests)
    assert each.tolist() == pytest.approx(found, abs=1e-12)
    assert weights.tolist() == sizes
    metrics = class_metrics(scores, labels, requests)
    if not found:
        assert (metrics["gauc"], metrics["gauc_mean"]) == (None, None)
        return
    weighted = sum(within * size for within, size in zip(found, sizes, strict=True)) / sum(sizes)
    assert metrics["gauc"] == pytest.approx(weighted, abs=1e-12)
    assert metrics["gauc_mean"] == pytest.approx(sum(found) / len(found), abs=1e-12)


def test_large_requests_move_gauc_and_not_gauc_mean() -> None:
    scores = np.array([0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.8, 0.7])
    labels = np.array([1, 0, 1, 0, 0, 0, 1, 1])
    requests = np.array([7, 7, 3, 3, 3, 3, 5, 5])  # right, wrong throughout, without a negative
    found = class_metrics(scores, labels, requests)
    assert found["gauc"] == pytest.approx((2 * 1 + 4 * 0) / 6)
    assert found["gauc_mean"] == pytest.approx((1 + 0) / 2)


@given(rows)
def test_log_loss_and_normalized_entropy(given_rows: Rows) -> None:
    scores, labels, requests = split(given_rows)
    losses = []
    for score, label in zip(scores.astype(float), labels, strict=True):
        clipped = min(max(score, 1e-7), 1 - 1e-7)
        losses.append(-math.log(clipped if label else 1 - clipped))
    loss = sum(losses) / len(losses)
    assert log_loss(scores, labels) == pytest.approx(loss, rel=1e-9)
    found = class_metrics(scores, labels, requests)
    rate = float(labels.mean())
    assert found["log_loss"] == pytest.approx(loss, rel=1e-9)
    assert found["auc"] == auc(scores, labels)
    if 0 < rate < 1:
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        assert found["normalized_entropy"] == pytest.approx(loss / entropy)
    else:
        assert found["normalized_entropy"] is None
    assert found["calibration"] == (pytest.approx(float(scores.mean(dtype=float)) / rate) if rate else None)


def test_predicting_the_base_rate_is_a_normalized_entropy_of_one() -> None:
    labels = np.array([1, 0, 0, 0, 1])
    found = class_metrics(np.full(5, 0.4), labels, np.arange(5))
    assert found["normalized_entropy"] == pytest.approx(1)
    assert found["calibration"] == pytest.approx(1)
    assert found["auc"] == 0.5
    assert (found["gauc"], found["gauc_mean"]) == (None, None), "no request has both labels"


def test_nothing_has_no_metrics_and_no_warnings() -> None:
    nothing = np.empty(0)
    assert set(class_metrics(nothing, nothing, nothing).values()) == {None}
    assert set(value_metrics(nothing, nothing).values()) == {None}


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=20))
def test_errors_of_values(pairs: list[tuple[float, float]]) -> None:
    scores, labels = (np.array(side) for side in zip(*pairs, strict=True))
    found = value_metrics(scores, labels)
    errors = [score - label for score, label in pairs]
    assert found["rmse"] == pytest.approx(math.sqrt(sum(error**2 for error in errors) / len(errors)))
    assert found["mae"] == pytest.approx(sum(map(abs, errors)) / len(errors))
    if labels.mean():
        assert found["calibration"] == pytest.approx(scores.mean() / labels.mean())
    else:
        assert found["calibration"] is None
