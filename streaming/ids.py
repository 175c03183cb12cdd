"""Ids of values: integers as they are, texts hashed to 64 bits, the same in every file format and on the command line."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

_INT64 = range(-(2**63), 2**63)


def text_id(text: str) -> int:
    """The id of a text: the integer that it spells in the usual way, else its XXH3-64, as a signed number."""
    if len(text) <= 20 and (text.isdecimal() or text[:1] == "-"):
        try:
            number = int(text)
        except ValueError:
            number = 0
        if str(number) == text and number in _INT64:
            return number
    hashed = xxhash.xxh3_64_intdigest(text.encode())
    return hashed - 2**64 if hashed >= 2**63 else hashed


MISSING = text_id("")
"""The id that stands for a missing value: it has a row like any other."""


def ids_of(values: pa.Array) -> npt.NDArray[np.int64]:
    """The ids of an Arrow array of integers, texts, booleans or whole numbers, int64 [n]; ``TypeError`` for others."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        table = ids_of(values.dictionary)
        return (
            table[values.indices.to_numpy(zero_copy_only=False)]
            if not values.null_count
            else ids_of(values.dictionary_decode())
        )
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return np.asarray(values.cast(pa.int64(), safe=False).fill_null(MISSING).to_numpy(zero_copy_only=False))
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_nan(values), None, values)
        whole = pc.equal(pc.floor(values), values)
        if not pc.all(whole, skip_nulls=True).as_py():
            raise TypeError("numbers with fractions")
        return np.asarray(values.cast(pa.int64()).fill_null(MISSING).to_numpy(zero_copy_only=False))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _text_ids(values.dictionary_encode())
    raise TypeError(f"type {kind}")


def cross(left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The ids of pairs of ids, mixed by the finalizer of SplitMix64 so that no pair meets another but by chance."""
    return _mix(_mix(left.view(np.uint64)) + right.view(np.uint64)).view(np.int64)


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
