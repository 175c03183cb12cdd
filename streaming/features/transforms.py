"""From a product's values to the model's inputs: buckets, transforms, ages, times and crosses.

Files and ranking requests first become *raw* columns, the same whatever they came from: ids as int64 [n] or `Ragged`, numbers as
float64 [n], times as float64 [n] in ms since 1970, vectors as float64 [n, size]; a missing number is NaN.
`from_raw` and `derived` turn them into features, so that a model is trained on what it was served with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.features.columns import Column, Floats, Ids, Ragged, missing_number
from streaming.features.ids import MISSING, cross
from streaming.features.kinds import FLOAT32_MAX, DenseFeature, Feature, SparseFeature, VectorFeature, WeightFeature

Raw: TypeAlias = Ids | Ragged | npt.NDArray[np.float64]
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_LARGEST = float(np.finfo(np.float64).max)
_LIMITS = {"log": _LARGEST, "sqrt": FLOAT32_MAX**2, "square": 1.8e19, "inverse": _LARGEST, "age": _LARGEST}
"""The largest numbers that are finite in 32 bits once they are transformed."""


def is_derived(feature: Feature) -> TypeGuard[SparseFeature | DenseFeature]:
    """Whether a feature has no column of its own, but comes from the event's time, from the request, or from other features."""
    return feature.column is None


def from_raw(feature: Feature, raw: Raw, served_at: Ids) -> Column:
    """Turn a raw column without numbers `beyond` 32 bits into the feature's; ``served_at`` int64 [n] in ms."""
    if isinstance(raw, Ragged):
        assert isinstance(feature, SparseFeature)
        return raw if feature.last is None else last_of(raw, feature.last)
    if isinstance(feature, SparseFeature) and feature.bucket is None:
        return raw.astype(np.int64, copy=False)
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which is missing like any other
        found = _transformed(feature, raw, served_at)
    if isinstance(feature, SparseFeature):
        return found.astype(np.int64)
    floats: Floats = found.astype(np.float32)
    return floats


def beyond(feature: Feature, raw: Raw) -> npt.NDArray[np.bool_] | None:
    """Return where numbers of a raw column give no finite 32-bit float, or no weight: bool in its shape, None if it has no numbers.

    Such numbers are refused, wherever they come from.
    """
    if isinstance(raw, Ragged) or raw.dtype == np.int64:
        return None
    match feature:
        case SparseFeature():
            limit = _LARGEST
        case VectorFeature():
            limit = FLOAT32_MAX
        case DenseFeature():
            limit = _LIMITS.get(feature.transform, FLOAT32_MAX)
    found: npt.NDArray[np.bool_] = np.abs(raw) > limit
    return found | (raw < 0) if isinstance(feature, WeightFeature) else found


def _transformed(feature: Feature, raw: npt.NDArray[np.float64] | Ids, served_at: Ids) -> npt.NDArray[np.float64]:
    """Transform numbers for a feature, float64 in their shape; missing ones become what `missing_number` says."""
    found = raw
    if isinstance(feature, SparseFeature):
        found = np.floor(np.log2(1 + np.maximum(raw, 0)))
    elif isinstance(feature, DenseFeature):
        match feature.transform:
            case "age":
                found = np.maximum((served_at - raw) / 1000.0, 0)
            case "log":
                found = np.log1p(np.maximum(raw, 0))
            case "sqrt":
                found = np.sqrt(np.maximum(raw, 0))
            case "square":
                found = raw**2
            case "inverse":
                assert feature.floor is not None
                found = 1 / np.maximum(raw, feature.floor)
    return np.where(np.isnan(found), missing_number(feature), found)


def derived(feature: SparseFeature | DenseFeature, made: Mapping[str, Column], served_at: Ids, sizes: Ids) -> Column:
    """Return a feature without a column, for n impressions or one for all: ``made`` has the features it crosses, ``served_at`` the
    event times (ms), ``sizes`` how many impressions the request of each has."""
    if feature.request is not None:
        return from_raw(feature, sizes.astype(np.float64), served_at)
    assert isinstance(feature, SparseFeature)
    if feature.time is not None:
        return time_ids(served_at, feature.time, feature.zone)
    assert feature.cross is not None
    left, right = (made[part] for part in feature.cross)
    assert isinstance(left, np.ndarray) and isinstance(right, np.ndarray)
    return cross(left.view(np.int64), right.view(np.int64))


def time_ids(served_at: Ids, part: str, zone: str | None = None) -> Ids:
    """Return the hour or the weekday (Monday is 0) of times in ms, in a time zone, UTC by default."""
    if zone is not None:
        times = pa.array(served_at, pa.timestamp("ms", "UTC")).cast(pa.timestamp("ms", zone))
        found = pc.hour(times) if part == "hour" else pc.day_of_week(times)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)
    if part == "hour":
        return served_at // _HOUR_MS % 24
    return (served_at // _DAY_MS + 3) % 7  # 1970 began on a Thursday


def last_of(lists: Ragged, count: int) -> Ragged:
    """Return at most the last ``count`` ids of each list."""
    lengths = np.diff(lists.offsets)
    kept = np.minimum(lengths, count)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(kept)))
    source = np.repeat(lists.offsets[1:] - kept - offsets[:-1], kept) + np.arange(offsets[-1])
    return Ragged(offsets, lists.values[source])


def take(raw: Raw, at: Ids) -> Raw:
    """Return the rows ``at`` int64 [n] of a raw column of any length; -1 gives a missing value."""
    if isinstance(raw, Ragged):
        return raw.take(at)
    known = at >= 0
    missing = MISSING if raw.dtype == np.int64 else np.nan
    if not len(raw):
        return np.full((len(at), *raw.shape[1:]), missing, raw.dtype)
    found: npt.NDArray[np.float64] | Ids = raw[at]
    found[~known] = missing
    return found


def missing_in(raw: Raw) -> int:
    """Return how many of a raw column have no value: missing ids and numbers, empty lists, vectors without any number."""
    if isinstance(raw, Ragged):
        found = raw.offsets[1:] == raw.offsets[:-1]
    elif raw.dtype == np.int64:
        found = raw == MISSING
    else:
        found = np.isnan(raw).reshape(len(raw), -1).all(1)
    return int(found.sum())
