"""From columns of logged files to feature columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from basis.problems import Problem, ProblemList, Problems
from streaming.features.arrow_columns import plain, sparse_of, vectors_of
from streaming.features.columns import Column, Ids
from streaming.features.ids import IDS_ALLOWED, MISSING, NO_ID, as_ids
from streaming.features.kinds import NUMBERS_ALLOWED, DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.features.transforms import Raw, beyond, derived, from_raw, is_derived, missing_in, take
from streaming.source.settings import TimeColumn
from streaming.source.tabular import RowFile, numbers
from streaming.source.times import read_times


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
        self.missing: dict[str, float] = {}
        """The share of impressions without a value, by feature with a column."""

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
            raw = raw_of(self._impressions, feature)
        elif feature.side in self._places:
            raw = self._sides[feature.side].take(name, self._places[feature.side])
        else:
            raise Problems([])  # reported when the side table could not be joined
        self.missing[name] = missing_in(raw)
        return from_raw(feature, raw, self._served_at)


_IDS = """allowed: without pool, integers or texts; with it, lists of them, or texts that split: "," takes apart"""
_NO_NUMBERS = f"{IDS_ALLOWED}; other numbers with kind: dense, or bucket: log2"
_CROSS = "allowed: two earlier sparse features of one id each"


def key_ids(rows: RowFile, column: str) -> Ids:
    """Return the ids of a column of keys; `Problems` if they are neither integers nor texts."""
    values = rows.column(column)
    if pa.types.is_temporal(values.type):
        values = values.cast(pa.string())
    try:
        found, broken = as_ids(values)
    except (TypeError, pa.ArrowException) as error:
        raise Problems([Problem(rows.name, f"column {column}", str(error), "allowed: integers or texts")]) from None
    rows.reject_broken(broken, column, values, NO_ID, IDS_ALLOWED)
    return found


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
        if isinstance(feature, VectorFeature):
            return vectors_of(values, feature.size)
        found, broken = sparse_of(values, feature)
    except (TypeError, ValueError, pa.ArrowException) as error:
        allowed = f"allowed: lists of {feature.size} numbers" if isinstance(feature, VectorFeature) else _IDS
        raise Problems([Problem(rows.name, f"column {column}", str(error), allowed)]) from None
    rows.reject_broken(broken, column, values, NO_ID, _NO_NUMBERS)
    return found


def times(rows: RowFile, column: TimeColumn) -> pa.Array:
    """Return a column of times as int64 ms since 1970; unreadable ones become null and their rows are rejected."""
    values = rows.column(column.column)
    try:
        found, broken = read_times(values, column)
    except (TypeError, pa.ArrowException) as error:
        raise Problems([Problem(rows.name, f"column {column.column}", str(error), _TIMES)]) from None
    rows.reject_broken(broken, column.column, values, "not a time", _TIMES)
    return found


_TIMES = "allowed: times as numbers, timestamps, ISO 8601 texts such as 2024-01-31T12:00:00Z, or texts that `format` describes"
