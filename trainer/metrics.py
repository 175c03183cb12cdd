"""Metrics of scores against labels, by arrays: AUC, per-request AUC, log loss, normalized entropy, calibration."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def auc(scores: Array, labels: Array) -> float | None:
    """The share of (positive, negative) pairs that the scores order rightly, ties as half; None with one class only.

    By the rank sum of Mann and Whitney. ``scores`` and ``labels`` (0 or 1) are [n].
    """
    positive = np.asarray(labels) > 0.5
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    return float((mean_rank[place[positive]].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def gauc(scores: Array, labels: Array, requests: Array) -> float | None:
    """AUC within requests, weighted by their impressions; None where no request has both labels. All [n].

    Computed on pairs of the sorted rows of each request, like `auc`, for all requests at once.
    """
    positive = (np.asarray(labels) > 0.5).astype(np.int64)
    _, group = np.unique(requests, return_inverse=True)
    size = np.bincount(group)
    ones = np.bincount(group, weights=positive)
    mixed = (ones > 0) & (ones < size)
    if not mixed.any():
        return None
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
    each = (sums - ones * (ones + 1) / 2) / (ones * zeros)
    return float(np.average(each, weights=size[mixed]))


def log_loss(scores: Array, labels: Array) -> float:
    """Mean negative log likelihood, natural logarithm; scores are probabilities."""
    clipped = np.clip(np.asarray(scores, np.float64), 1e-7, 1 - 1e-7)
    positive = np.asarray(labels) > 0.5
    return float(-np.where(positive, np.log(clipped), np.log1p(-clipped)).mean())


def class_metrics(scores: Array, labels: Array, requests: Array) -> dict[str, float | None]:
    """The metrics of a class label; None where one is not defined. Normalized entropy as in He et al., ADKDD 2014."""
    if not len(scores) or not np.isfinite(scores).all():
        return dict.fromkeys(("auc", "gauc", "log_loss", "normalized_entropy", "calibration"))
    rate = float(np.asarray(labels, np.float64).mean())
    loss = log_loss(scores, labels)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else None
    return {
        "auc": auc(scores, labels),
        "gauc": gauc(scores, labels, requests),
        "log_loss": loss,
        "normalized_entropy": None if entropy is None else float(loss / entropy),
        "calibration": float(np.asarray(scores, np.float64).mean() / rate) if rate else None,
    }


def value_metrics(scores: Array, labels: Array) -> dict[str, float | None]:
    """The metrics of a value label: root mean square and mean absolute error, calibration as mean over mean."""
    if not len(scores) or not np.isfinite(scores).all():
        return dict.fromkeys(("rmse", "mae", "calibration"))
    error = np.asarray(scores, np.float64) - np.asarray(labels, np.float64)
    mean = float(np.asarray(labels, np.float64).mean())
    return {
        "rmse": float(np.sqrt((error**2).mean())),
        "mae": float(np.abs(error).mean()),
        "calibration": float(np.asarray(scores, np.float64).mean() / mean) if mean else None,
    }
