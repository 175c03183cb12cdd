"""From Arrow columns of files, side tables and requests to raw columns: ids, lists, vectors, numbers and times.

Texts are Arrow's ``string`` and lists its ``list`` here: files are read so (`streaming.source.files.duck`), and requests come so.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.features.columns import Ids, Ragged
from streaming.features.ids import as_ids, whole_decimals
from streaming.features.kinds import SparseFeature, Unit

UNIT_MS = {"s": 1000.0, "ms": 1.0, "us": 0.001, "ns": 0.000001}
_EXTENDED = (
    (r"\s*UTC$|z$", "Z"),
    (r"^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)", r"\1-\2-\3T\4:\5:\6"),
    (r"^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)", r"\1-\2-\3T\4:\5"),
    (r"(:\d\d[.,]\d{3})\d+", r"\1"),
)
"""ISO 8601's basic form, UTC written otherwise, and parts of milliseconds, as the extended form that Arrow reads."""
_EXACT = 2.0**53
_WHOLE_FLOAT = r"^(0|-?[1-9][0-9]{0,15})\.0$"
_INT64 = r"^-?([0-9]{1,18}|[1-8][0-9]{18})$"
_DECIMAL_COMMA = r"^\s*[+-]?\d+,\d+\s*$"
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def texts_of(values: pa.Array) -> pa.Array:
    """Return values as texts that are equal where they mean the same, whichever type they have: 17, 17.0 and ``"17.0"``, and times
    of any unit. Null for null and NaN; an Arrow exception for other types, such as lists."""
    kind = values.type
    if pa.types.is_decimal(kind) and kind.scale > 0:
        return pc.coalesce(whole_decimals(values), pc.replace_substring_regex(values.cast(pa.string()), r"0+$", ""))
    if pa.types.is_floating(kind):
        exact = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), _EXACT)).fill_null(False)
        whole = pc.if_else(exact, values, None).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(whole, pc.if_else(pc.is_nan(values), None, values).cast(pa.string()))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return values.cast(pa.timestamp("us"), safe=False).cast(pa.string())
    return pc.replace_substring_regex(values.cast(pa.string()), _WHOLE_FLOAT, r"\1")


def sparse_of(values: pa.Array, feature: SparseFeature) -> tuple[Ids | Ragged, pa.Array | None]:
    """Return a column's ids for a sparse feature, and the rows with a value that has no id (None: no row);
    ``TypeError`` or an Arrow exception if it has none at all."""
    if feature.split is not None:
        values = split_texts(values.cast(pa.string()), feature.split)
    elif feature.pool is None:
        return as_ids(values)
    if feature.pool == "first":
        filled = pc.if_else(pc.equal(pc.list_value_length(as_lists(values)), 0), None, as_lists(values))
        return as_ids(pc.list_element(filled, 0))
    return lists_of(values)


def split_texts(values: pa.Array, separator: str) -> pa.Array:
    """Return texts as lists, null for an empty text: nothing stands in it."""
    return pc.split_pattern(pc.if_else(pc.equal(values, ""), None, values), separator)


def lists_of(values: pa.Array) -> tuple[Ragged, pa.Array | None]:
    """Return the ids of lists, an empty list for null, and the lists with a value that has no id (None: no list);
    ``TypeError`` or an Arrow exception if these are not lists of ids."""
    values = as_lists(values)
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    ids, broken = as_ids(values.flatten())
    rows = None
    if broken is not None:
        owner = np.repeat(np.arange(len(lengths)), lengths)
        rows = np.zeros(len(lengths), np.bool_)
        rows[owner[np.asarray(broken)]] = True
    return Ragged(np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))), ids), None if rows is None else pa.array(
        rows
    )


def as_lists(values: pa.Array) -> pa.Array:
    """Return lists, of nothing for nothing but nulls; ``TypeError`` if these are no lists."""
    kind = values.type
    if pa.types.is_null(kind):
        return values.cast(pa.list_(pa.int64()))
    if not pa.types.is_list(kind):
        raise TypeError(f"type {kind}: one value an impression, lists of ids are expected")
    return values


def vectors_of(values: pa.Array, size: int) -> tuple[npt.NDArray[np.float64], pa.Array | None]:
    """Return lists of numbers as float64 [n, size], NaN where missing, and which are no such lists (None: all are); ``TypeError``
    for other types."""
    kind = values.type
    out = np.full((len(values), size), np.nan)
    if pa.types.is_null(kind):
        return out, None
    if not pa.types.is_list(kind):
        raise TypeError(f"type {kind}")
    fits = np.asarray(pc.equal(pc.list_value_length(values), size).fill_null(False).to_numpy(zero_copy_only=False))
    flat, wrong = as_numbers(values.filter(pa.array(fits)).flatten())
    out[fits] = plain(flat).reshape(-1, size)
    broken = ~fits & np.asarray(values.is_valid().to_numpy(zero_copy_only=False))
    if wrong is not None:
        broken[fits] = np.asarray(wrong.to_numpy(zero_copy_only=False)).reshape(-1, size).any(1)
    return out, pa.array(broken) if broken.any() else None


def as_numbers(values: pa.Array, decimal: str = ".") -> tuple[pa.Array, pa.Array | None]:
    """Return values as float64, null where missing (null or NaN), and which are not numbers (None: all are). ``decimal`` begins
    the fraction of a number that is a text.

    ``TypeError`` for other types than numbers and texts.
    """
    kind = values.type
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        found = values.cast(pa.float64(), safe=False)
        return (pc.if_else(pc.is_nan(found), None, found) if pa.types.is_floating(kind) else found), None
    if not pa.types.is_string(kind):
        raise TypeError(f"type {kind}")
    if decimal != ".":  # a point in such a number parts thousands, which no number may have
        values = pc.replace_substring(pc.replace_substring(values, ".", "?"), decimal, ".")
    lower = pc.utf8_lower(values)
    values = pc.if_else(pc.is_in(lower, pa.array(["nan", ""], lower.type)), None, values)
    values = pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", values))
    broken = pc.and_(pc.is_valid(values), pc.invert(pc.match_substring_regex(values, _NUMBER).fill_null(False)))
    whole = pc.if_else(broken, None, values) if pc.any(broken).as_py() else values
    return pc.utf8_trim_whitespace(whole).cast(pa.float64()), broken


def have_decimal_comma(texts: pa.Array) -> pa.Array:
    """Return which texts are numbers whose fraction begins with a comma; null for null."""
    return pc.match_substring_regex(texts, _DECIMAL_COMMA)


def as_times(values: pa.Array, unit: Unit) -> tuple[pa.Array, pa.Array | None]:
    """Return times as int64 ms since 1970, and which values are not times (None: all are); ``TypeError`` for other types.

    Texts are numbers in ``unit`` or ISO 8601; without a zone they are UTC.
    """
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _floored(values), None
    if unit == "ns" and pa.types.is_integer(kind):  # more digits than a float has
        if pa.types.is_uint64(kind):  # beyond 64 bits with a sign, no time is near either
            values = pc.min_element_wise(values, pa.scalar(2**63 - 1, kind), skip_nulls=False)
        return _floored(values.cast(pa.int64()).cast(pa.timestamp("ns"))), None
    if not pa.types.is_string(kind):
        found, broken = as_numbers(values)
        return to_ms(found, unit), broken
    for written, extended in _EXTENDED:
        values = pc.replace_substring_regex(values, written, extended)
    looks_iso = pc.match_substring_regex(values, r"^\d{4}-\d{2}-\d{2}").fill_null(False)
    found, _ = as_numbers(pc.if_else(looks_iso, None, values))
    found = to_ms(found, unit)
    if unit == "ns":
        whole = pc.if_else(pc.match_substring_regex(values, _INT64), values, None).cast(pa.int64())
        found = pc.coalesce(as_times(whole, unit)[0], found)
    if pc.any(looks_iso).as_py():
        found = pc.coalesce(_iso(values, looks_iso), found)
    return found, pc.and_(pc.is_valid(values), pc.is_null(found))


def _floored(values: pa.Array) -> pa.Array:
    """Return timestamps or dates as int64 ms, the last that was over: rounding would put some before what caused them."""
    if pa.types.is_timestamp(values.type):
        values = pc.floor_temporal(values.cast(pa.timestamp(values.type.unit)), unit="millisecond")
    return values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())


def plain(values: pa.Array) -> npt.NDArray[np.float64]:
    """Return numbers, or times in ms, as a raw column: float64 [n], NaN where missing."""
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def to_ms(values: pa.Array, unit: Unit) -> pa.Array:
    """Turn numbers in a unit into int64 ms, of parts the last that was over, null for NaN; times past the year 280,000 stay just
    past it."""
    # A float of seconds may lie just below the millisecond that it was written as: whole microseconds come first.
    scaled = pc.floor(pc.divide(pc.round(pc.multiply(values, UNIT_MS[unit] * 1000)), 1000.0))
    finite = pc.if_else(pc.is_nan(scaled), None, scaled)
    return pc.max_element_wise(pc.min_element_wise(finite, 9e15, skip_nulls=False), -9e15, skip_nulls=False).cast(
        pa.int64()
    )


def _iso(values: pa.Array, looks_iso: pa.Array) -> pa.Array:
    """Turn ISO 8601 texts into int64 ms, null for other texts; times without an offset are UTC."""
    has_zone = pc.match_substring_regex(values, r"(Z|[+-]\d{2}:?\d{2})$").fill_null(False)
    try:
        plain_ = pc.if_else(pc.and_(looks_iso, pc.invert(has_zone)), values, None).cast(pa.timestamp("ms"))
        zoned = pc.if_else(pc.and_(looks_iso, has_zone), values, None).cast(pa.timestamp("ms", "UTC"))
        return pc.coalesce(plain_.cast(pa.int64()), zoned.cast(pa.int64()))
    except pa.ArrowInvalid:  # one bad date fails the cast of all
        wanted = pc.if_else(looks_iso, values, None).to_pylist()
        return pa.array([None if text is None else _iso_ms(text) for text in wanted], pa.int64())


def _iso_ms(text: str) -> int | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)
