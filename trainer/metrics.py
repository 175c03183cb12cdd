"""Metrics of scores against labels, by arrays: AUC, per-request AUC, log loss, normalized entropy, calibration."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def auc(scores: Array, labels: Array, weights: Array | None = None) -> float | None:
    """The share of (positive, negative) pairs that the scores order rightly, ties as half; None with one class only.

    ``scores`` and ``labels`` (0 or 1) are [n]; a pair counts as often as the product of its ``weights`` [n] says.
    """
    positive = np.asarray(labels) > 0.5
    if positive.all() or not positive.any():
        return None
    weights = np.ones(len(positive)) if weights is None else np.asarray(weights, np.float64)
    _, place = np.unique(scores, return_inverse=True)
    above, below = (np.bincount(place, weights * side) for side in (positive, ~positive))
    return float((above * (np.cumsum(below) - below / 2)).sum() / (above.sum() * below.sum()))


def auc_by_request(scores: Array, labels: Array, requests: Array) -> tuple[Array, Array]:
    """The AUC within each of the m requests that have both labels, and how many impressions each has; all given are [n], both [m].

    Computed on pairs of the sorted rows of each request, like `auc`, for all requests at once.
    """
    positive = (np.asarray(labels) > 0.5).astype(np.int64)
    _, group = np.unique(requests, return_inverse=True)
    size = np.bincount(group)
    ones = np.bincount(group, weights=positive)
    mixed = (ones > 0) & (ones < size)
    if not mixed.any():
        return np.empty(0), size[mixed]
    keep = mixed[group]
    scores, positive, group = np.asarray(scores)[keep], positive[keep], group[keep]
    order = np.lexsort((scores, group))
    scores, positive, group = scores[order], positive[order], group[order]
    new_group = np.concatenate(([True], group[1:] != group[:-1]))
    new_value = new_group | np.concatenate(([True], scores[1:] != scores[:-1]))
    starts = np.flatnonzero(new_value)
    counts = np.diff(np.append(starts, len(scores)))
    first_of_group = np.flatnonzero(new_group)
    begin = np.repeat(first_of_group, np.diff(np.append(first_of_group, len(scores))))
    mean_rank = np.repeat(starts + (counts - 1) / 2, counts) - begin + 1
    sums = np.bincount(group, weights=mean_rank * positive, minlength=len(size))[mixed]
    ones, zeros = ones[mixed], (size - ones)[mixed]
    return (sums - ones * (ones + 1) / 2) / (ones * zeros), size[mixed]


def log_loss(scores: Array, labels: Array, weights: Array | None = None) -> float:
    """Mean negative log likelihood, natural logarithm; scores are probabilities."""
    clipped = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    positive = np.asarray(labels) > 0.5
    return float(np.average(-np.where(positive, np.log(clipped), np.log1p(-clipped)), weights=weights))


def class_metrics(
    scores: Array, labels: Array, requests: Array | None = None, weights: Array | None = None
) -> dict[str, float | None]:
    """The metrics of a class label; None where one is not defined. Normalized entropy as in He et al., ADKDD 2014.

    ``gauc`` is the mean of the requests' own AUC weighted by their impressions, ``gauc_mean`` the plain one.
    ``weights`` [n] say how many examples of the stream each one stands for, where negatives were sampled; those two, which count
    each impression of a request once, are None then, as they are without ``requests``.

    >>> import numpy as np
    >>> from trainer.metrics import class_metrics
    >>> scores, labels = np.array([0.9, 0.2, 0.6, 0.5, 0.1]), np.array([1, 0, 0, 0, 1])
    >>> found = class_metrics(scores, labels, requests=np.array([1, 1, 2, 2, 2]))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'auc': 0.5, 'gauc': 0.4, 'gauc_mean': 0.5, 'log_loss': 0.848, 'normalized_entropy': 1.26, 'calibration': 1.15}
    """
    if not len(scores) or not np.isfinite(scores).all():
        return dict.fromkeys(("auc", "gauc", "gauc_mean", "log_loss", "normalized_entropy", "calibration"))
    rate = float(np.average(np.asarray(labels, np.float64), weights=weights))
    loss = log_loss(scores, labels, weights)
    each, sizes = np.empty(0), np.empty(0)
    if requests is not None and weights is None:
        each, sizes = auc_by_request(scores, labels, requests)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else None
    return {
        "auc": auc(scores, labels, weights),
        "gauc": float(np.average(each, weights=sizes)) if len(each) else None,
        "gauc_mean": float(each.mean()) if len(each) else None,
        "log_loss": loss,
        "normalized_entropy": None if entropy is None else float(loss / entropy),
        "calibration": float(np.average(np.asarray(scores, np.float64), weights=weights) / rate) if rate else None,
    }


def value_metrics(scores: Array, labels: Array, weights: Array | None = None) -> dict[str, float | None]:
    """The metrics of a value label: root mean square and mean absolute error, calibration as mean over mean."""
    if not len(scores) or not np.isfinite(scores).all():
        return dict.fromkeys(("rmse", "mae", "calibration"))
    error = np.asarray(scores, np.float64) - np.asarray(labels, np.float64)
    mean = float(np.average(np.asarray(labels, np.float64), weights=weights))
    return {
        "rmse": float(np.sqrt(np.average(error**2, weights=weights))),
        "mae": float(np.average(np.abs(error), weights=weights)),
        "calibration": float(np.average(np.asarray(scores, np.float64), weights=weights) / mean) if mean else None,
    }
