"""Ids of values: integers as they are, texts hashed to 64 bits, the same in every file format, record, request and command.

One rule: a value's id is that of its text, and a text that spells an integer of 64 bits is that integer. So neither the format
nor the other values of a column change an id. An integer beyond 64 bits has none, nor has a whole float beyond 2^53, whose last
digits are lost already: both are refused, since ids of others would share their rows.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

_INT64 = range(-(2**63), 2**63)
_EXACT = 2**53
_TRUTH = {"true": 1, "false": 0}
NO_ID = "no id"
IDS_ALLOWED = "allowed: integers of 64 bits, whole numbers up to 2^53 where they are floats, or texts"


def text_id(text: str) -> int:
    """Return the id of a text: the integer that it spells in the usual way, else its XXH3-64 as a signed number.

    Whole numbers written as floats (``17.0``) count as integers, since programs often turn a column of integers with gaps into
    floats. ``true`` and ``false`` are 1 and 0, as in formats with booleans.

    Raises:
        ValueError: the text spells an integer beyond 64 bits, or a whole float beyond 2^53.
    """
    if text[:1] in _FIRST:
        number = _spelled(text)
        if number is not None:
            if number not in _INT64:
                raise ValueError(f"{text} is beyond 64 bits; {IDS_ALLOWED}")
            return number
    elif len(text) <= 5 and (truth := _TRUTH.get(text.lower())) is not None:
        return truth
    hashed = xxhash.xxh3_64_intdigest(text.encode())
    return hashed - 2**64 if hashed >= 2**63 else hashed


_FIRST = frozenset("-0123456789")
_LONGEST = 24  # a text with more digits is no integer of any format
_PLAIN_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"
_FLOAT = r"^-?[0-9]+(\.[0-9]*([eE][+-]?[0-9]+)?|(,[0-9]+)?[eE]\+[0-9]+)$"
"""How programs write floats, some with a comma; ``12e34`` without a point or a sign is as likely a part of a hash."""
_float = re.compile(_FLOAT)


def _spelled(text: str) -> int | None:
    """Return the integer that a text spells as `str` of an int or float does; None if it spells none.

    Raises:
        ValueError: it spells a whole float beyond 2^53, in any way.
    """
    if len(text) <= _LONGEST and text.removeprefix("-").isdecimal():
        number = int(text)
        return number if str(number) == text else None
    if _float.fullmatch(text) is None:
        return None
    value = float(text.replace(",", "."))
    if value.is_integer() and abs(value) > _EXACT:
        raise ValueError(f"{text} is a float beyond 2^53, whose last digits are lost; {IDS_ALLOWED}")
    return int(value) if str(value) == text and value.is_integer() else None


MISSING = text_id("")
"""The id of a missing value; it has a row like any other id."""


def as_ids(values: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array | None]:
    """Return ids, `MISSING` for null and NaN, and which values have none (None: all have one); their id is `MISSING` too.

    ``TypeError`` for other types than integers, texts, booleans and floats.
    """
    kind = values.type
    if pa.types.is_null(kind):
        return np.full(len(values), MISSING), None
    if pa.types.is_decimal(kind):
        digits = whole_decimals(values)
        ids, broken = _large_ids(digits)
        fractions = pc.and_(values.is_valid(), digits.is_null())
        broken = fractions if broken is None else pc.or_(fractions, broken)
        return ids, broken if pc.any(broken).as_py() else None
    if pa.types.is_uint64(kind):
        large = pc.greater(values, pa.scalar(_INT64[-1], kind)).fill_null(False)
        if pc.any(large).as_py():
            return as_ids(pc.if_else(large, pa.scalar(None, kind), values))[0], large
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return np.asarray(values.cast(pa.int64()).fill_null(MISSING).to_numpy(zero_copy_only=False)), None
    if pa.types.is_floating(kind):
        return _whole_ids(values)
    if pa.types.is_string(kind):
        return _text_ids(values.dictionary_encode())
    raise TypeError(f"type {kind}")


def whole_decimals(values: pa.Array) -> pa.Array:
    """Return the digits of decimals as texts, all of them, which a float does not have; null for fractions."""
    if values.type.precision == values.type.scale:  # no room for a digit before the point
        values = values.cast(pa.decimal256(76, values.type.scale))
    whole = pc.if_else(pc.equal(pc.trunc(values), values), values, None)  # floor may need one more digit
    kind = pa.decimal128(38, 0) if pa.types.is_decimal128(values.type) else pa.decimal256(76, 0)
    return whole.cast(kind).cast(pa.string())


def inexact(values: pa.Array) -> pa.Array | None:
    """Return which values are whole floats beyond 2^53, or their texts: others are written alike (None: no value is)."""
    kind = values.type
    if pa.types.is_floating(kind):
        found = pc.greater(pc.abs(values.cast(pa.float64())), float(_EXACT)).fill_null(False)
    elif pa.types.is_string(kind):
        found = pc.match_substring_regex(values, _FLOAT).fill_null(False)
        if pc.any(found).as_py():
            found = as_ids(pc.if_else(found, values, None))[1]
    else:
        return None
    return found if found is not None and pc.any(found).as_py() else None


def cross(left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the ids of pairs of ids, mixed by SplitMix64's finalizer so that pairs collide only by chance."""
    return _mix(_mix(left.view(np.uint64)) + right.view(np.uint64)).view(np.int64)


def _whole_ids(values: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array | None]:
    """Return the ids of whole floats; NaN is missing."""
    numbers = np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False))  # null becomes NaN
    with np.errstate(invalid="ignore"):  # a signalling NaN, which msgpack and Parquet carry, is missing like any other
        whole = (np.abs(numbers) <= _EXACT) & (np.floor(numbers) == numbers)
    broken = ~whole & ~np.isnan(numbers)
    ids = np.full(len(numbers), MISSING)
    ids[whole] = numbers[whole].astype(np.int64)
    return ids, pa.array(broken) if broken.any() else None


def _large_ids(digits: pa.Array) -> tuple[npt.NDArray[np.int64], pa.Array | None]:
    """Return the ids of integers of any length, as texts."""
    long = pc.greater(pc.utf8_length(digits), _LONGEST).fill_null(False)
    ids, broken = as_ids(pc.if_else(long, None, digits))
    return ids, pc.or_(long, broken) if broken is not None else long if pc.any(long).as_py() else None


def _text_ids(encoded: Any) -> tuple[npt.NDArray[np.int64], pa.Array | None]:
    texts = encoded.dictionary
    plain = pc.match_substring_regex(texts, _PLAIN_INTEGER).fill_null(False)
    unique = np.full(len(texts) + 1, MISSING)
    unique[:-1] = pc.if_else(plain, texts, None).cast(pa.int64()).fill_null(MISSING).to_numpy(zero_copy_only=False)
    wrong = np.zeros(len(unique), np.bool_)
    others = pc.indices_nonzero(pc.and_not(texts.is_valid(), plain))
    for at, text in zip(others.to_pylist(), texts.take(others).to_pylist(), strict=True):
        try:
            unique[at] = text_id(text)
        except ValueError:
            wrong[at] = True
    index = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)
    return unique[index], pa.array(wrong[index]) if wrong.any() else None


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
