"""From columns of logged files to feature columns."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, ProblemList, Problems
from streaming.columns import Column, Floats, Ids, Ragged
from streaming.features import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.ids import cross, ids_of
from streaming.source_settings import TimeColumn, Unit
from streaming.tabular import RowFile, numbers

_UNIT_MS = {"s": 1000.0, "ms": 1.0, "us": 0.001}
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000


class SideTable:
    """A side table and where the impressions' keys stand in it; -1 where a key does not."""

    def __init__(self, rows: RowFile, key: str, wanted: pa.Array) -> None:
        keys = rows.column(key)
        same = pa.types.is_integer(keys.type) and pa.types.is_integer(wanted.type)
        try:
            keys, wanted = (values.cast(pa.int64() if same else pa.string()) for values in (keys, wanted))
        except pa.ArrowException as error:
            raise Problems([Problem(rows.name, f"column {key}", str(error), "allowed: integers or texts")]) from None
        counts = pc.value_counts(keys)
        repeated = counts.filter(pc.and_(pc.greater(counts.field("counts"), 1), pc.is_valid(counts.field("values"))))
        if len(repeated):
            value = repr(repeated.field("values")[0].as_py())
            raise Problems([Problem(rows.name, f"column {key}", value, "stands there twice; allowed: one row a key")])
        self.rows = rows
        self._at = pc.index_in(wanted, value_set=keys, skip_nulls=True)
        if self._at.null_count == len(self._at):
            allowed = "none of the impressions' keys is in it; allowed: keys of the same form"
            raise Problems([Problem(rows.name, f"column {key}", repr(keys[0].as_py()), allowed)])

    def take(self, values: pa.Array) -> pa.Array:
        """The values of a side column for each impression, null where its key is unknown."""
        return pc.take(values, self._at)


def time_ids(served_at: Ids, part: str) -> Ids:
    """The hour or the weekday (Monday is 0) of times in ms, UTC."""
    if part == "hour":
        return served_at // _HOUR_MS % 24
    return (served_at // _DAY_MS + 3) % 7  # 1970 began on a Thursday


class FeatureMapper:
    """Makes feature columns out of the impressions' file and its side tables."""

    def __init__(self, impressions: RowFile, served_at: Ids, sides: Mapping[str, SideTable]) -> None:
        self._impressions = impressions
        self._served_at = served_at
        self._sides = sides

    def columns(self, features: Mapping[str, Feature]) -> dict[str, Column]:
        """All features; `Problems` with every column that does not fit."""
        made: dict[str, Column] = {}
        problems = ProblemList()
        for name, feature in features.items():
            with problems.collect():
                made[name] = self._column(name, feature, made)
        if len(made) < len(features):
            raise Problems(problems.found)
        return made

    def _column(self, name: str, feature: Feature, made: Mapping[str, Column]) -> Column:
        match feature:
            case SparseFeature(cross=(left, right)):
                first, second = made.get(left), made.get(right)
                pair = [part for part in (first, second) if isinstance(part, np.ndarray) and part.dtype == np.int64]
                if len(pair) != 2:
                    raise Problems([Problem("features", f"{name}: cross", f"{left}, {right}", _CROSS)])
                return cross(pair[0].view(np.int64), pair[1].view(np.int64))
            case SparseFeature(time=time) if time is not None:
                return time_ids(self._served_at, time)
            case SparseFeature(bucket="log2"):
                values = self._numbers(feature.side, feature.column or "")
                powers = np.floor(np.log2(1 + np.maximum(_filled(values), 0)))
                buckets: Ids = powers.astype(np.int64)
                return buckets
            case SparseFeature():
                return self._ids(feature)
            case DenseFeature():
                return self._dense(feature)
            case VectorFeature():
                return self._vector(feature)

    def _file(self, side: str | None) -> RowFile:
        if side is None:
            return self._impressions
        if side not in self._sides:
            raise Problems([])  # told when the side table could not be joined
        return self._sides[side].rows

    def _raw(self, side: str | None, column: str) -> pa.Array:
        values = self._file(side).column(column)
        return values if side is None else self._sides[side].take(values)

    def _numbers(self, side: str | None, column: str) -> pa.Array:
        values = numbers(self._file(side), column)
        return values if side is None else self._sides[side].take(values)

    def _ids(self, feature: SparseFeature) -> Column:
        assert feature.column is not None
        values = self._raw(feature.side, feature.column)
        try:
            if feature.split is not None:
                values = pc.split_pattern(values.cast(pa.string()), feature.split)
            elif feature.pool is None:
                return ids_of(values)
            if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
                raise TypeError(f"type {values.type}, one value an impression")
            if feature.pool == "first":
                filled = pc.if_else(pc.equal(pc.list_value_length(values), 0), None, values)
                return ids_of(pc.list_element(filled, 0))
            lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            return Ragged(np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))), ids_of(values.flatten()))
        except (TypeError, pa.ArrowException) as error:
            place = f"column {feature.column}"
            raise Problems([Problem(self._file(feature.side).name, place, str(error), _IDS)]) from None

    def _dense(self, feature: DenseFeature) -> Floats:
        if feature.transform == "age":
            time = TimeColumn(column=feature.column, unit=feature.unit)
            values = times(self._file(feature.side), time)
            milliseconds = values if feature.side is None else self._sides[feature.side].take(values)
            age = pc.divide(pc.subtract(pa.array(self._served_at), milliseconds).cast(pa.float64()), 1000.0)
            return np.maximum(_filled(age), 0).astype(np.float32)
        found = _filled(self._numbers(feature.side, feature.column))
        match feature.transform:
            case "log":
                found = np.log1p(np.maximum(found, 0))
            case "sqrt":
                found = np.sqrt(np.maximum(found, 0))
            case "square":
                found = np.clip(found, -1e19, 1e19) ** 2
        return np.clip(found, -3e38, 3e38).astype(np.float32)

    def _vector(self, feature: VectorFeature) -> Floats:
        values = self._raw(feature.side, feature.column)
        place, file = f"column {feature.column}", self._file(feature.side).name
        allowed = f"allowed: lists of {feature.size} numbers"
        if not (
            pa.types.is_list(values.type)
            or pa.types.is_large_list(values.type)
            or pa.types.is_fixed_size_list(values.type)
        ):
            raise Problems([Problem(file, place, f"type {values.type}", allowed)])
        lengths = pc.list_value_length(values).fill_null(feature.size)
        wrong = pc.unique(lengths.filter(pc.not_equal(lengths, feature.size))).to_pylist()
        if wrong:
            raise Problems([Problem(file, place, f"a list of {wrong[0]} numbers", allowed)])
        valid = np.asarray(values.is_valid().to_numpy(zero_copy_only=False))
        out = np.zeros((len(values), feature.size), np.float32)
        try:
            numbers_ = values.drop_null().flatten().cast(pa.float64()).fill_null(0)
        except pa.ArrowException as error:
            raise Problems([Problem(file, place, str(error), allowed)]) from None
        flat = np.clip(np.nan_to_num(numbers_.to_numpy(zero_copy_only=False)), -3e38, 3e38).astype(np.float32)
        out[valid] = flat.reshape(-1, feature.size)
        return out


_IDS = "allowed: integers or texts, or lists of them with pool: first, mean or sum"
_CROSS = "allowed: two sparse features of one id that stand before it"


def times(rows: RowFile, column: TimeColumn) -> pa.Array:
    """A column of times as int64 ms since 1970; rows without a readable one become null and are rejected."""
    values = rows.column(column.column)
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return values.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        looks_iso = pc.match_substring_regex(values, r"^\d{4}-\d{2}-\d{2}").fill_null(False)
        if 2 * pc.sum(looks_iso).as_py() > len(values):
            return _iso(rows, column.column, values, looks_iso)
    return to_ms(numbers(rows, column.column), column.unit)


def to_ms(values: pa.Array, unit: Unit) -> pa.Array:
    """Numbers in a unit as int64 ms, null where they are not finite; those past the year 280,000 stay just past it."""
    scaled = pc.round(pc.multiply(values, _UNIT_MS[unit]))
    finite = pc.if_else(pc.is_nan(scaled), None, scaled)
    return pc.max_element_wise(pc.min_element_wise(finite, 9e15, skip_nulls=False), -9e15, skip_nulls=False).cast(
        pa.int64()
    )


def _iso(rows: RowFile, column: str, values: pa.Array, looks_iso: pa.Array) -> pa.Array:
    """Texts as in ISO 8601 as int64 ms; without an offset they are UTC."""
    has_zone = pc.match_substring_regex(values, r"(Z|[+-]\d{2}:?\d{2})$").fill_null(False)
    try:
        plain = pc.if_else(pc.and_(looks_iso, pc.invert(has_zone)), values, None).cast(pa.timestamp("ms"))
        zoned = pc.if_else(pc.and_(looks_iso, has_zone), values, None).cast(pa.timestamp("ms", "UTC"))
        found = pc.coalesce(plain.cast(pa.int64()), zoned.cast(pa.int64()))
    except pa.ArrowInvalid:  # one text that is no date spoils the cast of all
        found = pa.array([None if text is None else _iso_ms(text) for text in values.to_pylist()], pa.int64())
    broken = pc.and_(pc.is_valid(values), pc.is_null(found))
    if pc.any(broken).as_py():
        rows.reject(broken, column, values, "malformed", "not a time")
    return found


def _iso_ms(text: str) -> int | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _filled(values: pa.Array) -> npt.NDArray[np.float64]:
    """Numbers with 0 for what is missing or not finite."""
    return np.nan_to_num(np.asarray(values.fill_null(0).to_numpy(zero_copy_only=False), np.float64), posinf=0, neginf=0)
