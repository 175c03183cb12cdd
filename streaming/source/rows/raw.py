"""Raw columns of rows: numbers, times, keys, and what features are made from. Rows with an unreadable value are rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, Problems
from streaming.features.arrow_columns import as_numbers, have_decimal_comma, plain, sparse_of, vectors_of
from streaming.features.columns import Ids
from streaming.features.ids import IDS_ALLOWED, MISSING, NO_ID, as_ids
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature, numbers_allowed
from streaming.features.transforms import Raw, beyond, is_derived
from streaming.source.rows.rows import Rows
from streaming.source.rows.times import read_times
from streaming.source.settings import TimeColumn, WhenEquals

NO_NUMBER = "not a number; `missing` of its file names texts that mean that a value is missing"
_IDS = """allowed: without pool, integers or texts; with it, lists of them, or texts that split: "," takes apart"""
_NO_NUMBERS = f"{IDS_ALLOWED}; other numbers with kind: dense, or bucket: log2"


def shown_key(rows: Rows, columns: Sequence[str], row: int) -> str:
    """Return the key of a row as messages show it."""
    return ", ".join(repr(rows.column(column)[row].as_py()) for column in columns)


def key_ids(rows: Rows, column: str) -> Ids:
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


def equal(rows: Rows, when: WhenEquals) -> npt.NDArray[np.bool_]:
    """Return the rows whose column has one of some values, which are compared by id, so that neither format nor type matters."""
    wanted, _ = as_ids(pa.array(when.equals, pa.string()))
    found = key_ids(rows, when.column)
    is_equal: npt.NDArray[np.bool_] = np.isin(found, wanted) & (found != MISSING)
    return is_equal


def raw_of(rows: Rows, feature: Feature) -> Raw:
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


def _raw_of(rows: Rows, feature: Feature, column: str) -> Raw:
    if isinstance(feature, DenseFeature) and feature.transform == "age":
        return plain(times(rows, TimeColumn(column=column, unit=feature.unit)))
    if isinstance(feature, DenseFeature) or (isinstance(feature, SparseFeature) and feature.bucket):
        return plain(numbers(rows, column))
    values = rows.column(column)
    try:
        if isinstance(feature, VectorFeature):
            vectors, broken = vectors_of(values, feature.size)
            rows.reject_broken(
                broken, column, values, f"not a list of {feature.size} numbers", _vectors_allowed(feature)
            )
            return vectors
        found, broken = sparse_of(values, feature)
    except (TypeError, pa.ArrowException) as error:
        allowed = _vectors_allowed(feature) if isinstance(feature, VectorFeature) else _IDS
        raise Problems([Problem(rows.name, f"column {column}", str(error), allowed)]) from None
    rows.reject_broken(broken, column, values, NO_ID, _NO_NUMBERS)
    return found


def _vectors_allowed(feature: VectorFeature) -> str:
    return f"allowed: lists of {feature.size} numbers"


def times(rows: Rows, column: TimeColumn) -> pa.Array:
    """Return a column of times as int64 ms since 1970; unreadable ones become null and their rows are rejected."""
    values = rows.column(column.column)
    try:
        found, broken = read_times(values, column)
    except (TypeError, pa.ArrowException) as error:
        raise Problems([Problem(rows.name, f"column {column.column}", str(error), _TIMES)]) from None
    rows.reject_broken(broken, column.column, values, "not a time", _TIMES)
    return found


_TIMES = "allowed: times as numbers, timestamps, ISO 8601 texts such as 2024-01-31T12:00:00Z, or texts that `format` describes"


def numbers(rows: Rows, column: str) -> pa.Array:
    """Return a column as float64, null where missing. Rows with anything but a number are rejected; `Problems` if all are."""
    values = rows.column(column)
    try:
        found, broken = as_numbers(values, rows.decimal)
    except TypeError as error:
        raise Problems([Problem(rows.name, f"column {column}", str(error), "allowed: numbers")]) from None
    allowed = 'allowed: numbers; a text that stands for what is missing: missing: ["THE-TEXT"]'
    if rows.decimal == "." and pa.types.is_string(values.type) and pc.any(have_decimal_comma(values)).as_py():
        allowed += '; where a comma stands for the point, decimal: ","'
    rows.reject_broken(broken, column, values, NO_NUMBER, allowed)
    return found


def feature_columns(features: Mapping[str, Feature], side: str | None) -> list[str]:
    """Return the columns of the impressions, or of a side table, that features are made from."""
    return [item.column for item in of_columns(features, side).values() if item.column is not None]


def of_columns(features: Mapping[str, Feature], side: str | None) -> dict[str, Feature]:
    """Return the features that are made from columns of the impressions, or of a side table."""
    return {name: item for name, item in features.items() if not is_derived(item) and item.side == side}
