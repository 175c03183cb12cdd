"""From columns of logged files to feature columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from basis.problems import Problem, ProblemList, Problems
from streaming.features.arrow_columns import plain, sparse_of, vectors_of
from streaming.features.columns import Column, Ids
from streaming.features.ids import IDS_ALLOWED, MISSING, NO_ID, as_ids
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature, numbers_allowed
from streaming.features.transforms import Raw, beyond, derived, from_raw, is_derived, missing_in, take
from streaming.source.settings import TimeColumn
from streaming.source.tabular import RowFile, numbers
from streaming.source.times import read_times


class SideTable:
    """A side table by key: the raw columns of the features in ``features`` that come from it.

    A key has one column or several. Keys are compared by the ids of all of them, so 17 is the same key as a number, as a text, and
    as a float in a column with gaps.
    """

    def __init__(self, rows: RowFile, key: Sequence[str], features: Mapping[str, Feature]) -> None:
        keys, has_key = _keys_of([key_ids(rows, column) for column in key])
        self._order = np.flatnonzero(has_key)
        self._order = self._order[np.argsort(keys[self._order], kind="stable")]
        self._keys = keys[self._order]
        again = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if again.size:
            value = shown_key(rows, key, int(self._order[again[0]]))
            allowed = "is given twice; allowed: one row per key"
            raise Problems([Problem(rows.name, f"column {'+'.join(key)}", value, allowed)])
        self.name = rows.name
        self.problems: list[Problem] = []
        self._raw: dict[str, Raw] = {}
        problems = ProblemList()
        for name, feature in features.items():
            with problems.collect():
                self._raw[name] = raw_of(rows, feature)
        self.problems = problems.found

    def find(self, columns: Sequence[Ids]) -> Ids:
        """Return the rows of keys, given as the ids of each of their columns, [n] or [1] for one that all keys share: int64 [n],
        -1 for a key that is missing, wholly or in part, or not in the table."""
        keys, has_key = _keys_of(columns)
        if not len(self._keys):
            return np.full(len(keys), -1)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found: Ids = np.where((self._keys[places] == keys) & has_key, self._order[places], -1)
        return found

    def take(self, name: str, at: Ids) -> Raw:
        """Return a feature's raw column for impressions whose rows are ``at``."""
        if name not in self._raw:
            raise Problems([])  # reported when the table was read
        return take(self._raw[name], at)


class FeatureMapper:
    """Makes feature columns of raw ones, a piece of the log after another; ``sides`` are its side tables."""

    def __init__(self, features: Mapping[str, Feature], sides: Mapping[str, SideTable]) -> None:
        self._features = features
        self._sides = sides
        self._count = 0
        self._missing: dict[str, float] = {}

    @property
    def missing(self) -> dict[str, float]:
        """The share of impressions without a value, by feature with a column."""
        return {name: count / self._count for name, count in self._missing.items()}

    def raw(self, rows: RowFile) -> dict[str, Raw]:
        """Return the raw columns of the features that are made from the rows' own columns.

        Raises:
            Problems: every column that does not fit; nothing of columns that are missing, which ``rows`` tell.
        """
        wanted = {name: item for name, item in self._features.items() if item.side is None and not is_derived(item)}
        made: dict[str, Raw] = {}
        problems = ProblemList()
        for name, feature in wanted.items():
            with problems.collect():
                made[name] = raw_of(rows, feature)
        if len(made) < len(wanted):
            raise Problems(problems.found)
        return made

    def columns(
        self, raw: Mapping[str, Raw], places: Mapping[str, Ids], served_at: Ids, sizes: Ids
    ) -> dict[str, Column]:
        """Return all features of impressions: of their own raw columns, and of the rows at ``places`` of each side table;
        ``sizes`` has how many impressions the request of each has.

        Raises:
            Problems: two features cannot be crossed.
        """
        made: dict[str, Column] = {}
        for name, feature in self._features.items():
            if is_derived(feature):
                if isinstance(feature, SparseFeature) and feature.cross is not None:
                    pair = [made.get(part) for part in feature.cross]
                    if not all(isinstance(part, np.ndarray) and part.dtype == np.int64 for part in pair):
                        raise Problems([Problem("features", f"{name}: cross", ", ".join(feature.cross), _CROSS)])
                made[name] = derived(feature, made, served_at, sizes)
                continue
            found = raw[name] if feature.side is None else self._sides[feature.side].take(name, places[feature.side])
            self._missing[name] = self._missing.get(name, 0) + missing_in(found)
            made[name] = from_raw(feature, found, served_at)
        self._count += len(served_at)
        return made


_IDS = """allowed: without pool, integers or texts; with it, lists of them, or texts that split: "," takes apart"""
_NO_NUMBERS = f"{IDS_ALLOWED}; other numbers with kind: dense, or bucket: log2"
_CROSS = "allowed: two earlier sparse features of one id each"


def _keys_of(columns: Sequence[Ids]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return a value for each key, and which keys have all their parts.

    The value of several columns is their ids end to end, as bytes: two keys have the same only if all their ids are equal.
    """
    spread = np.broadcast_arrays(*columns)
    has_key = np.all([ids != MISSING for ids in spread], axis=0)
    if len(spread) == 1:
        return spread[0], has_key
    return np.stack(spread, axis=1).view(f"S{8 * len(spread)}")[:, 0], has_key


def shown_key(rows: RowFile, columns: Sequence[str], row: int) -> str:
    """Return the key of a row as messages show it."""
    return ", ".join(repr(rows.column(column)[row].as_py()) for column in columns)


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
        of_rows = pa.array(wrong.reshape(len(wrong), -1).any(1))
        rows.reject(of_rows, feature.column, values, "malformed", numbers_allowed(feature))
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
