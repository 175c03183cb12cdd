"""Plain values, as JSON and msgpack have them, one an impression, as Arrow arrays and as raw columns.

What a column of a JSON file, a feature of a JSON record and a column of a ranking request are is decided here. Most are ints and
texts, or floats alone, which become raw columns directly; all else takes the way of files.
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
    """Values of any one kind as an array; integers beyond 64 bits, and values of several kinds, as their texts.

    ``TypeError`` where lists stand beside other values, and where there are objects, or lists within lists: of those Arrow makes
    types as deep as they are, in seconds where that is deep.
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
    """The ids of ints, texts and nulls in any mixture, None where there is anything else."""
    kinds = set(map(type, values))
    if not values or not kinds <= _IDS:
        return None
    if kinds != {int}:  # Arrow takes no mixture, and making texts of all takes three times as long
        values = [
            each if type(each) is int else text_id(each or "") for each in values
        ]  # "" has the id of what is missing
    try:  # half the time of numpy's way, a twentieth of Arrow's
        return np.frombuffer(struct.pack(f"<{len(values)}q", *values), "<i8")
    except struct.error:
        return None


def plain_lists(values: Sequence[Any]) -> Ragged | None:
    """The ids of lists of ints, texts and nulls, none for null; None where there is anything else."""
    if not set(map(type, values)) <= {list, type(None)}:
        return None
    values = [each or [] for each in values]
    flat = list(chain.from_iterable(values))
    ids = plain_ids(flat) if flat else np.empty(0, np.int64)
    return None if ids is None else Ragged(np.cumsum([0, *map(len, values)]), ids)


def plain_numbers(values: Sequence[Any]) -> npt.NDArray[np.float64] | None:
    """Numbers and nulls (NaN) alone as float64 [n], None where there is anything else."""
    if not set(map(type, values)) <= _NUMBERS:
        return None
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return None


def plain_vectors(values: Sequence[Any], size: int) -> npt.NDArray[np.float64] | None:
    """Lists of ``size`` numbers and nulls alone as float64 [n, size], None where there is anything else."""
    if not all(type(each) is list and len(each) == size for each in values):
        return None
    flat = plain_numbers(list(chain.from_iterable(values)))
    return None if flat is None else flat.reshape(-1, size)
