"""From what a product has to what the model reads: buckets, transforms, ages, times and crosses.

Files and ranking requests alike become *raw* columns first, which are independent of where they came from: ids as int64 [n] or
`Ragged`, numbers as float64 [n], times as float64 [n] in ms since 1970, vectors as float64 [n, size]; a missing number is NaN.
`from_raw` and `derived` make features of them, so that what is trained is what was served.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Column, Floats, Ids, Ragged
from streaming.features.ids import MISSING, cross
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.records.events import FLOAT32_MAX

Raw: TypeAlias = Ids | Ragged | npt.NDArray[np.float64]
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_LARGEST = float(np.finfo(np.float64).max)
_LIMITS = {"none": FLOAT32_MAX, "log": _LARGEST, "sqrt": FLOAT32_MAX**2, "square": 1.8e19, "age": _LARGEST}


def is_derived(feature: Feature) -> bool:
    """Whether a feature has no column of its own: it comes from the time of the event, or from other features."""
    return isinstance(feature, SparseFeature) and feature.column is None


def from_raw(feature: Feature, raw: Raw, served_at: Ids) -> Column:
    """The feature's column of a raw one without numbers `beyond` 32 bits; ``served_at`` int64 [n] in ms."""
    if isinstance(raw, Ragged) or (isinstance(feature, SparseFeature) and feature.bucket is None):
        return raw.astype(np.int64, copy=False) if isinstance(raw, np.ndarray) else raw
    found = _transformed(feature, raw, served_at)
    if isinstance(feature, SparseFeature):
        return found.astype(np.int64)
    floats: Floats = found.astype(np.float32)
    return floats


def beyond(feature: Feature, raw: Raw) -> npt.NDArray[np.bool_] | None:
    """Where numbers of a raw column make none that is finite in 32 bits; bool in its shape, None where there are no numbers.

    They are refused, wherever they come from.
    """
    if isinstance(raw, Ragged) or raw.dtype == np.int64:
        return None
    match feature:
        case SparseFeature():
            limit = _LARGEST
        case VectorFeature():
            limit = FLOAT32_MAX
        case DenseFeature():
            limit = _LIMITS[feature.transform]
    found: npt.NDArray[np.bool_] = np.abs(raw) > limit
    return found


def _transformed(feature: Feature, raw: npt.NDArray[np.float64] | Ids, served_at: Ids) -> npt.NDArray[np.float64]:
    """What a feature makes of numbers, float64 in their shape; 0 for what is missing."""
    if isinstance(feature, DenseFeature) and feature.transform == "age":
        return np.maximum(_filled((served_at - raw) / 1000.0), 0)
    found = _filled(raw)
    if isinstance(feature, SparseFeature):
        powers: npt.NDArray[np.float64] = np.floor(np.log2(1 + np.maximum(found, 0)))
        return powers
    if isinstance(feature, DenseFeature):
        match feature.transform:
            case "log":
                return np.log1p(np.maximum(found, 0))
            case "sqrt":
                return np.sqrt(np.maximum(found, 0))
            case "square":
                return found**2
    return found


def derived(feature: SparseFeature, made: Mapping[str, Column], served_at: Ids) -> Ids:
    """The ids of a feature without a column; ``made`` has those that it crosses, of n impressions or of one for all."""
    if feature.time is not None:
        return time_ids(served_at, feature.time)
    assert feature.cross is not None
    left, right = (made[part] for part in feature.cross)
    assert isinstance(left, np.ndarray) and isinstance(right, np.ndarray)
    return cross(left.view(np.int64), right.view(np.int64))


def time_ids(served_at: Ids, part: str) -> Ids:
    """The hour or the weekday (Monday is 0) of times in ms, UTC."""
    if part == "hour":
        return served_at // _HOUR_MS % 24
    return (served_at // _DAY_MS + 3) % 7  # 1970 began on a Thursday


def take(raw: Raw, at: Ids) -> Raw:
    """The rows ``at`` int64 [n] of a raw column of any length; what is missing where it is -1."""
    if isinstance(raw, Ragged):
        return raw.take(at)
    known = at >= 0
    missing = MISSING if raw.dtype == np.int64 else np.nan
    if not len(raw):
        return np.full((len(at), *raw.shape[1:]), missing, raw.dtype)
    found: npt.NDArray[np.float64] | Ids = raw[at]
    found[~known] = missing
    return found


def _filled(values: npt.NDArray[np.float64] | Ids) -> npt.NDArray[np.float64]:
    return np.where(np.isnan(values), 0.0, values)
