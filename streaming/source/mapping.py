"""From columns of logged files to feature columns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, ProblemList, Problems
from streaming.features.columns import Column, Ids, Ragged
from streaming.features.ids import MISSING, ids_of
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.features.transforms import Raw, beyond, derived, from_raw, is_derived, take
from streaming.records.events import NUMBERS_ALLOWED
from streaming.source.settings import TimeColumn, Unit
from streaming.source.tabular import RowFile, as_numbers, numbers

_UNIT_MS = {"s": 1000.0, "ms": 1.0, "us": 0.001}


class SideTable:
    """A side table by key: the raw columns of the features in ``features`` that come from it.

    Keys are compared by id, so 17 is the same key as a number, as a text, and as a float in a column with gaps.
    """

    def __init__(self, rows: RowFile, key: str, features: Mapping[str, Feature]) -> None:
        ids = key_ids(rows, key)
        self._order = np.argsort(ids, kind="stable")
        self._keys = ids[self._order]
        again = np.flatnonzero((self._keys[1:] == self._keys[:-1]) & (self._keys[1:] != MISSING))
        if again.size:
            value = repr(rows.column(key)[int(self._order[again[0]])].as_py())
            raise Problems([Problem(rows.name, f"column {key}", value, "is given twice; allowed: one row per key")])
        self.name = rows.name
        self.problems: list[Problem] = []
        self._raw: dict[str, Raw] = {}
        problems = ProblemList()
        for name, feature in features.items():
            with problems.collect():
                self._raw[name] = raw_of(rows, feature)
        self.problems = problems.found

    def find(self, keys: Ids) -> Ids:
        """Return the rows of keys, given as ids: int64 [n], -1 for a key that is missing or not in the table."""
        places = np.searchsorted(self._keys, keys)
        places[places == len(self._keys)] = 0
        found: Ids = np.where((self._keys[places] == keys) & (keys != MISSING), self._order[places], -1)
        return found

    def take(self, name: str, at: Ids) -> Raw:
        """Return a feature's raw column for impressions whose rows are ``at``."""
        if name not in self._raw:
            raise Problems([])  # reported when the table was read
        return take(self._raw[name], at)


class FeatureMapper:
    """Makes feature columns from the impressions' file and its side tables; ``places`` has the impressions' rows by side table."""

    def __init__(
        self, impressions: RowFile, served_at: Ids, sides: Mapping[str, SideTable], places: Mapping[str, Ids]
    ) -> None:
        self._impressions = impressions
        self._served_at = served_at
        self._sides = sides
        self._places = places

    def columns(self, features: Mapping[str, Feature]) -> dict[str, Column]:
        """Return all features; `Problems` with every column that does not fit."""
        made: dict[str, Column] = {}
        problems = ProblemList()
        for name, feature in features.items():
            with problems.collect():
                made[name] = self._column(name, feature, made)
        if len(made) < len(features):
            raise Problems(problems.found)
        return made

    def _column(self, name: str, feature: Feature, made: Mapping[str, Column]) -> Column:
        if isinstance(feature, SparseFeature) and is_derived(feature):
            if feature.cross is not None:
                pair = [made.get(part) for part in feature.cross]
                if not all(isinstance(part, np.ndarray) and part.dtype == np.int64 for part in pair):
                    raise Problems([Problem("features", f"{name}: cross", ", ".join(feature.cross), _CROSS)])
            return derived(feature, made, self._served_at)
        if feature.side is None:
            return from_raw(feature, raw_of(self._impressions, feature), self._served_at)
        if feature.side not in self._places:
            raise Problems([])  # reported when the side table could not be joined
        return from_raw(feature, self._sides[feature.side].take(name, self._places[feature.side]), self._served_at)


_IDS = "allowed: integers or texts, or lists of them with pool: first, mean or sum"
_CROSS = "allowed: two earlier sparse features of one id each"


def key_ids(rows: RowFile, column: str) -> Ids:
    """Return the ids of a column of keys; `Problems` if they are neither integers nor texts."""
    values = rows.column(column)
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.string())
    try:
        return ids_of(values)
    except (TypeError, pa.ArrowException) as error:
        raise Problems([Problem(rows.name, f"column {column}", str(error), "allowed: integers or texts")]) from None


def raw_of(rows: RowFile, feature: Feature) -> Raw:
    """Return a feature's raw column. Rows with an unreadable value are rejected; `Problems` if the column does not fit."""
    assert feature.column is not None
    raw = _raw_of(rows, feature, feature.column)
    wrong = beyond(feature, raw)
    if wrong is not None and wrong.any():
        values = rows.column(feature.column)
        rows.reject(
            pa.array(wrong.reshape(len(wrong), -1).any(1)), feature.column, values, "malformed", NUMBERS_ALLOWED
        )
        raw = np.where(wrong, np.nan, raw)
    return raw


def _raw_of(rows: RowFile, feature: Feature, column: str) -> Raw:
    if isinstance(feature, DenseFeature) and feature.transform == "age":
        return plain(times(rows, TimeColumn(column=column, unit=feature.unit)))
    if isinstance(feature, DenseFeature) or (isinstance(feature, SparseFeature) and feature.bucket):
        return plain(numbers(rows, column))
    values = rows.column(column)
    try:
        return vectors_of(values, feature.size) if isinstance(feature, VectorFeature) else sparse_of(values, feature)
    except (TypeError, ValueError, pa.ArrowException) as error:
        allowed = f"allowed: lists of {feature.size} numbers" if isinstance(feature, VectorFeature) else _IDS
        raise Problems([Problem(rows.name, f"column {column}", str(error), allowed)]) from None


def sparse_of(values: pa.Array, feature: SparseFeature) -> Ids | Ragged:
    """Return a column's ids for a sparse feature; ``TypeError`` or an Arrow exception if it has none."""
    if feature.split is not None:
        values = pc.split_pattern(values.cast(pa.string()), feature.split)
    elif feature.pool is None:
        return ids_of(values)
    if feature.pool == "first":
        filled = pc.if_else(pc.equal(pc.list_value_length(_lists(values)), 0), None, _lists(values))
        return ids_of(pc.list_element(filled, 0))
    return lists_of(values)


def lists_of(values: pa.Array) -> Ragged:
    """Return the ids of lists, an empty list for null; ``TypeError`` or an Arrow exception if these are not lists of ids."""
    values = _lists(values)
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return Ragged(np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))), ids_of(values.flatten()))


def _lists(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_null(kind):
        return values.cast(pa.list_(pa.int64()))
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise TypeError(f"type {kind}: one value an impression, lists of ids are expected")
    return values


def vectors_of(values: pa.Array, size: int) -> npt.NDArray[np.float64]:
    """Return lists of numbers as float64 [n, size], NaN where missing; ``TypeError`` or ``ValueError`` for anything else."""
    kind = values.type
    out = np.full((len(values), size), np.nan)
    if pa.types.is_null(kind):
        return out
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise TypeError(f"type {kind}")
    lengths = pc.list_value_length(values).fill_null(size)
    wrong = pc.unique(lengths.filter(pc.not_equal(lengths, size))).to_pylist()
    if wrong:
        raise ValueError(f"a list of {wrong[0]} numbers")
    valid = np.asarray(values.is_valid().to_numpy(zero_copy_only=False))
    flat = values.drop_null().flatten().cast(pa.float64())
    out[valid] = flat.to_numpy(zero_copy_only=False).reshape(-1, size)
    return out


def times(rows: RowFile, column: TimeColumn) -> pa.Array:
    """Return a column of times as int64 ms since 1970; unreadable ones become null and their rows are rejected."""
    values = rows.column(column.column)
    try:
        found, broken = as_times(values, column.unit)
    except TypeError as error:
        raise Problems([Problem(rows.name, f"column {column.column}", str(error), _TIMES)]) from None
    rows.reject_broken(broken, column.column, values, "not a time", _TIMES)
    return found


_TIMES = "allowed: times as numbers, timestamps or ISO 8601 texts"


def as_times(values: pa.Array, unit: Unit) -> tuple[pa.Array, pa.Array | None]:
    """Return times as int64 ms since 1970, and which values are not times (None: all are); ``TypeError`` for other types."""
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()), None
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        found, broken = as_numbers(values)
        return to_ms(found, unit), broken
    looks_iso = pc.match_substring_regex(values, r"^\d{4}-\d{2}-\d{2}").fill_null(False)
    found, _ = as_numbers(pc.if_else(looks_iso, None, values))
    found = to_ms(found, unit)
    if pc.any(looks_iso).as_py():
        found = pc.coalesce(_iso(values, looks_iso), found)
    return found, pc.and_(pc.is_valid(values), pc.is_null(found))


def plain(values: pa.Array) -> npt.NDArray[np.float64]:
    """Return numbers, or times in ms, as a raw column: float64 [n], NaN where missing."""
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def to_ms(values: pa.Array, unit: Unit) -> pa.Array:
    """Turn numbers in a unit into int64 ms, null for NaN; times past the year 280,000 stay just past it."""
    scaled = pc.round(pc.multiply(values, _UNIT_MS[unit]))
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
