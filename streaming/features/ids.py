"""Ids of values: integers as they are, texts hashed to 64 bits, the same in every file format, record, request and command.

One rule: a value's id is that of its text, and a text that spells an integer of 64 bits is that integer. So neither the format
nor the other values of a column change an id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

_INT64 = range(-(2**63), 2**63)
_TRUTH = {"true": 1, "false": 0}


def text_id(text: str) -> int:
    """Return the id of a text: the integer that it spells in the usual way, else its XXH3-64 as a signed number.

    Whole numbers written as floats (``17.0``) count as integers, since programs often turn a column of integers with gaps into
    floats. ``true`` and ``false`` are 1 and 0, as in formats with booleans.
    """
    if text[:1] in _FIRST and len(text) <= _LONGEST:
        number = _spelled(text)
        if number is not None:
            if number in _INT64:
                return number
            text = str(number)
    elif len(text) <= 5 and (truth := _TRUTH.get(text.lower())) is not None:
        return truth
    hashed = xxhash.xxh3_64_intdigest(text.encode())
    return hashed - 2**64 if hashed >= 2**63 else hashed


_FIRST = frozenset("-0123456789")
_LONGEST = 24  # the longest text of a float


def _spelled(text: str) -> int | None:
    """Return the integer that a text spells as `str` of an int or float does; None if it spells none."""
    try:
        if text[-1:].isdecimal() and "e" not in text and "." not in text:
            number = int(text)
            return number if str(number) == text else None
        value = float(text)
        return int(value) if value.is_integer() and str(value) == text else None
    except ValueError:
        return None


MISSING = text_id("")
"""The id of a missing value; it has a row like any other id."""


def ids_of(values: pa.Array) -> npt.NDArray[np.int64]:
    """Return the ids of an Arrow array of integers, texts, booleans or whole floats, int64 [n]; ``TypeError`` for others."""
    kind = values.type
    if pa.types.is_null(kind):
        return np.full(len(values), MISSING)
    if pa.types.is_dictionary(kind):
        table = ids_of(values.dictionary)
        return (
            table[values.indices.to_numpy(zero_copy_only=False)]
            if not values.null_count
            else ids_of(values.dictionary_decode())
        )
    if pa.types.is_uint64(kind):
        large = pc.greater(values, pa.scalar(_INT64[-1], pa.uint64()))
        if pc.any(large).as_py():
            return _text_ids(values.cast(pa.string()).dictionary_encode())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return np.asarray(values.cast(pa.int64(), safe=False).fill_null(MISSING).to_numpy(zero_copy_only=False))
    if pa.types.is_floating(kind):
        return _whole_ids(values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text_ids(values.dictionary_encode())
    raise TypeError(f"type {kind}")


def cross(left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the ids of pairs of ids, mixed by SplitMix64's finalizer so that pairs collide only by chance."""
    return _mix(_mix(left.view(np.uint64)) + right.view(np.uint64)).view(np.int64)


def _whole_ids(values: pa.Array) -> npt.NDArray[np.int64]:
    """Return the ids of whole floats; NaN is missing."""
    numbers = np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))  # null becomes NaN
    known = ~np.isnan(numbers)
    if not (np.isfinite(numbers) & (np.floor(numbers) == numbers) | ~known).all():
        raise TypeError("numbers with fractions")
    ids = np.full(len(numbers), MISSING)
    small = known & (numbers >= -(2.0**63)) & (numbers < 2.0**63)
    ids[small] = numbers[small].astype(np.int64)
    for place in np.flatnonzero(known & ~small).tolist():
        ids[place] = text_id(str(int(numbers[place])))
    return ids


def _text_ids(encoded: Any) -> npt.NDArray[np.int64]:
    unique = np.array(
        [*(MISSING if text is None else text_id(text) for text in encoded.dictionary.to_pylist()), MISSING]
    )
    index = encoded.indices.fill_null(len(unique) - 1).to_numpy(zero_copy_only=False)
    ids: npt.NDArray[np.int64] = unique.astype(np.int64, copy=False)[index]
    return ids


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
