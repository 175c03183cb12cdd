"""Raw columns from the plain values that a record or a ranking request has for a feature, by the same rules as files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.features.arrow_columns import as_numbers, as_times, lists_of, plain, sparse_of, vectors_of
from streaming.features.columns import Ids, Ragged
from streaming.features.ids import as_ids
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature, numbers_allowed
from streaming.features.transforms import Raw, beyond
from streaming.features.values import as_arrow, plain_ids, plain_lists, plain_numbers, plain_vectors


def ids(values: Sequence[Any]) -> Ids:
    """Return the ids of integers, texts, booleans and nulls, in any mixture; int64 [n]."""
    found = plain_ids(values)
    if found is not None:
        return found
    _check_whole(values)
    found, broken = as_ids(as_arrow(values))
    _check("id", values, broken)
    return found


def lists(values: Sequence[Any]) -> Ragged:
    """Return the ids of lists; null is an empty list."""
    found = plain_lists(values)
    if found is not None:
        return found
    _check_lists(values)
    found, broken = lists_of(as_arrow(values))
    _check("list of ids", values, broken)
    return found


def numbers(values: Sequence[Any]) -> npt.NDArray[np.float64]:
    """Return numbers, and texts that spell numbers, as float64 [n]; NaN for null."""
    found = plain_numbers(values)
    return plain(_whole("number", values, *as_numbers(as_arrow(values)))) if found is None else found


def vectors(values: Sequence[Any], size: int) -> npt.NDArray[np.float64]:
    """Return lists of ``size`` numbers as float64 [n, size]; NaN for null."""
    for value in values:
        if isinstance(value, list) and len(value) != size:
            raise ValueError(f"a list of {len(value)} numbers")
    found = plain_vectors(values, size)
    if found is None:
        found, broken = vectors_of(as_arrow(values), size)
        _check(f"list of {size} numbers", values, broken)
    return found


def raw_of_values(feature: Feature, values: Sequence[Any]) -> Raw:
    """Return the raw column of a product's values, one per impression; any kind of error if they do not fit the feature."""
    raw = _raw_of_values(feature, values)
    wrong = beyond(feature, raw)
    if wrong is not None and wrong.any():
        place = int(wrong.reshape(len(wrong), -1).any(1).argmax())
        raise ValueError(f"{values[place]!r:.60}; {numbers_allowed(feature)}")
    return raw


def _raw_of_values(feature: Feature, values: Sequence[Any]) -> Raw:
    match feature:
        case VectorFeature():
            return vectors(values, feature.size)
        case DenseFeature(transform="age"):
            return plain(_whole("time", values, *as_times(as_arrow(values), feature.unit)))
        case DenseFeature() | SparseFeature(bucket="log2"):
            return numbers(values)
        case SparseFeature(split=None, pool=None):
            return ids(values)
        case SparseFeature(split=None, pool="mean" | "sum"):
            return lists(values)
        case SparseFeature():
            _check_lists(values)
            found, broken = sparse_of(as_arrow(values), feature)
            _check("id", values, broken)
            return found


def _check_whole(values: Sequence[Any]) -> None:
    """Raise ``TypeError`` for numbers that have no id and would pass for texts beside texts."""
    for value in values:
        if isinstance(value, float) and not (value.is_integer() or value != value):
            raise TypeError("numbers with fractions")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise TypeError("an integer beyond 64 bits")


def _check_lists(values: Sequence[Any]) -> None:
    for value in values:
        if isinstance(value, list):
            _check_whole(value)


def _whole(kind: str, values: Sequence[Any], found: pa.Array, broken: pa.Array | None) -> pa.Array:
    _check(kind, values, broken)
    return found


def _check(kind: str, values: Sequence[Any], broken: pa.Array | None) -> None:
    """Raise ``ValueError`` for the first value that is broken."""
    at = -1 if broken is None else broken.index(True).as_py()
    if at >= 0:
        raise ValueError(f"{values[at]!r:.60} is not {'an' if kind[0] in 'aeiou' else 'a'} {kind}")
