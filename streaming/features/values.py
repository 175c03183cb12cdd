"""Turns plain values of JSON and msgpack, one per impression, into Arrow arrays and raw columns.

This is where ranking requests and features of JSON records get their types. Most are ints and texts, or
floats alone, and become raw columns directly; the rest is read as files are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.features.columns import Ids, Ragged
from streaming.features.ids import text_id

_NUMBERS = {int, float, bool, type(None)}
_IDS = {int, str, type(None)}


def as_arrow(values: Sequence[Any]) -> pa.Array:
    """Return values of one kind as an array; integers beyond 64 bits and values of several kinds become texts.

    ``TypeError`` for lists beside other values, for objects, and for lists within lists: Arrow's types would nest as deep as they
    do, which takes seconds if that is deep.
    """
    kinds = set(map(type, values))
    if dict in kinds:
        raise TypeError("an object")
    within = chain.from_iterable(value for value in values if isinstance(value, list)) if list in kinds else ()
    if not {list, dict}.isdisjoint(map(type, within)):
        raise TypeError("a list or an object within a list")
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        if list not in kinds:
            return pa.array([_text(value) for value in values], pa.string())
    if not kinds <= {list, type(None)}:
        raise TypeError("lists beside single values")
    lengths = [0 if value is None else len(value) for value in values]
    offsets = [
        None if value is None else end - length
        for value, length, end in zip(values, lengths, np.cumsum(lengths).tolist(), strict=True)
    ]
    flat = as_arrow(list(chain.from_iterable(value for value in values if value is not None)))
    return pa.ListArray.from_arrays(pa.array([*offsets, sum(lengths)], pa.int32()), flat)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, int | float):
        return str(value)
    raise TypeError(f"a value that is a {type(value).__name__}")


def plain_ids(values: Sequence[Any]) -> Ids | None:
    """Return the ids of ints, texts and nulls in any mixture; None if there is anything else."""
    kinds = set(map(type, values))
    if not values or not kinds <= _IDS:
        return None
    if kinds != {int}:  # Arrow accepts no mixture, and turning all into texts takes three times as long
        values = [
            each if type(each) is int else text_id(each or "") for each in values
        ]  # "" has the id of a missing value
    try:  # takes half as long as numpy's way, and a twentieth of Arrow's
        return np.frombuffer(struct.pack(f"<{len(values)}q", *values), "<i8")
    except struct.error:
        return None


def plain_lists(values: Sequence[Any]) -> Ragged | None:
    """Return the ids of lists of ints, texts and nulls, an empty list for null; None if there is anything else."""
    if not set(map(type, values)) <= {list, type(None)}:
        return None
    values = [each or [] for each in values]
    flat = list(chain.from_iterable(values))
    ids = plain_ids(flat) if flat else np.empty(0, np.int64)
    return None if ids is None else Ragged(np.cumsum([0, *map(len, values)]), ids)


def plain_numbers(values: Sequence[Any]) -> npt.NDArray[np.float64] | None:
    """Return numbers and nulls (NaN) as float64 [n]; None if there is anything else."""
    if not set(map(type, values)) <= _NUMBERS:
        return None
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return None


def plain_vectors(values: Sequence[Any], size: int) -> npt.NDArray[np.float64] | None:
    """Return lists of ``size`` numbers and nulls (NaN) as float64 [n, size]; None if there is anything else."""
    if not all(type(each) is list and len(each) == size for each in values):
        return None
    flat = plain_numbers(list(chain.from_iterable(values)))
    return None if flat is None else flat.reshape(-1, size)
