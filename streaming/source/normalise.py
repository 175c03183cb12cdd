"""Rows of logs as they are read: checked, named and with their raw features, whatever comes before or after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, ProblemList, Problems
from streaming.features.arrow_columns import texts_of
from streaming.features.columns import Ids, Ragged
from streaming.features.ids import IDS_ALLOWED, NO_ID, inexact
from streaming.features.kinds import Feature
from streaming.features.transforms import Raw, is_derived
from streaming.records.events import MAX_ID_LENGTH
from streaming.source.actions import columns_of, happened_on, plain_numbers, usable_values
from streaming.source.explode import explode
from streaming.source.mapping import FeatureMapper, SideTable, key_ids, shown_key
from streaming.source.rejects import Findings
from streaming.source.settings import (
    ActionColumn,
    EngagementFile,
    ImpressionFile,
    OneAction,
    SideFile,
    SourceSettings,
)
from streaming.source.spool import Spool
from streaming.source.tabular import RowFile, Walk, numbers
from streaming.source.time_bounds import TimeBounds

_MAX_KEY = MAX_ID_LENGTH - 16  # leaves room for a place, or for the id of a run of `minutely produce`


class Impressions:
    """Reads impressions into the spool. Its columns: ``place`` among all, ``file_at`` among those of the files, ``at_ms``, the
    number of its ``source``, ``request``, ``named`` with the request and the impression, ``side{i}`` the row of a side table,
    ``raw{i}`` of a feature, and ``delay{i}`` and ``value{i}`` of an action that happened.
    """

    def __init__(
        self,
        settings: SourceSettings,
        features: Mapping[str, Feature],
        sides: Mapping[str, SideTable],
        bounds: TimeBounds,
    ) -> None:
        self.settings = settings
        self.features = features
        self.bounds = bounds
        self.mapper = FeatureMapper(features, sides)
        self.raw = [name for name, item in features.items() if not is_derived(item) and item.side is None]
        self.sides = [name for name in settings.sides if name in sides]
        self.count = 0
        self.matched = dict.fromkeys(self.sides, 0)
        self._tables = sides

    @property
    def columns(self) -> list[str]:
        """The spool's columns that `assemble` needs beside the requests."""
        of_actions = [f"{what}{number}" for number in range(len(self.settings.actions)) for what in ("delay", "value")]
        own = [f"raw{number}" for number in range(len(self.raw))]
        return ["file_at", "named", *(f"side{number}" for number in range(len(self.sides))), *own, *of_actions]

    def read(self, walks: Sequence[tuple[ImpressionFile, Walk]], findings: Findings, spool: Spool) -> None:
        """Read all rows of all sources; ``findings`` are theirs.

        Raises:
            Problems: columns that do not fit, or no row that can be used.
        """
        problems = ProblemList()
        for source, (file, walk) in enumerate(walks):
            with problems.collect():
                self._read(source, file, walk, spool)
        problems.raise_any()
        name = ", ".join(walk.name for _, walk in walks)
        if any(file.request and file.impression for file, _ in walks):
            self._drop_repeated(name, findings, spool)

    def _read(self, source: int, file: ImpressionFile, walk: Walk, spool: Spool) -> None:
        def use(rows: RowFile) -> None:
            if file.explode is not None:
                explode(rows, file.explode)
            spool.add("impressions", self._normalised(rows, file, source))

        before = self.count
        walk.take(use)
        if self.count == before:
            raise _none_usable(walk)

    def _drop_repeated(self, name: str, findings: Findings, spool: Spool) -> None:
        first = next(file for file in self.settings.impression_files if file.impression)
        columns = "+".join([*(first.request or ()), *(first.impression or ())])
        for again in spool.repeated():
            rows = RowFile(name, again, again.column("file_at").combine_chunks(), findings)
            every = pa.repeat(True, again.num_rows)
            rows.reject(every, columns, again.column("named"), "repeated", "is given twice in its request")
        spool.drop_repeated()

    def _normalised(self, rows: RowFile, file: ImpressionFile, source: int) -> pa.Table:
        settings, problems = self.settings, ProblemList()
        at, keys, named = _usable(rows, file, self.bounds)
        count = len(at)
        place = np.arange(self.count, self.count + count)
        columns: dict[str, pa.Array] = {
            "place": pa.array(place),
            "file_at": rows.at,
            "at_ms": at,
            "source": pa.repeat(pa.scalar(source, pa.int32()), count),
            "request": pa.array(place) if keys is None else keys,
            "named": pa.nulls(count, pa.string()) if named is None else named,
        }
        for number, name in enumerate(self.sides):
            with problems.collect():
                places = _joined_rows(rows, settings.sides[name], self._tables[name])
                columns[f"side{number}"] = pa.array(places)
        with problems.collect():
            raw = self.mapper.raw(rows)
            columns |= {f"raw{number}": to_spool(raw[name]) for number, name in enumerate(self.raw)}
        for number, action in enumerate(settings.actions.values()):
            with problems.collect():
                happened, delays, values = happened_on(rows, action)
                columns[f"delay{number}"] = pa.array(delays, mask=~happened)
                columns[f"value{number}"] = pa.array(values)
        if problems.found or rows.missing:
            raise Problems(problems.found)
        self.count += count
        return pa.table(columns)


def read_engagements(walk: Walk, file: EngagementFile, bounds: TimeBounds, spool: Spool) -> None:
    """Read the rows of a file of engagements into the spool.

    Raises:
        Problems: columns that do not fit, or no row that can be used.
    """
    count = spool.logged
    walk.take(lambda rows: spool.add("logged", _engagements(rows, file, bounds, spool.logged)))
    if spool.logged == count:
        raise _none_usable(walk)


def _engagements(rows: RowFile, file: EngagementFile, bounds: TimeBounds, first: int) -> pa.Table:
    values = pa.array(np.ones(rows.table.num_rows))
    if file.value:
        raw, values = rows.column(file.value), numbers(rows, file.value)
        given = pc.or_(values.is_valid(), raw.is_null(nan_is_null=True))  # other values are rejected already
        values = values.fill_null(1.0)
        mask = usable_values(rows, file.value, plain_numbers(values), np.asarray(given.to_numpy(zero_copy_only=False)))
        values = values.filter(pa.array(mask))
        rows.keep(pa.array(mask))
    rows.table = rows.table.append_column("minutely.value", values)
    at, requests, named = _usable(rows, file, bounds)
    return pa.table(
        {
            "place": pa.array(np.arange(first, first + len(at))),
            "at_ms": at,
            "request": requests,
            "named": named,
            "action": _actions(rows, file),
            "value": rows.column("minutely.value"),
        }
    )


def _actions(rows: RowFile, file: EngagementFile) -> pa.Array:
    """Return the name of each row's action."""
    if isinstance(file.action, OneAction):
        return pa.repeat(pa.scalar(file.action.name, pa.string()), rows.table.num_rows)
    found = _key(rows, action_columns(file))
    if isinstance(file.action, str):
        return found
    names = pa.array(list(file.action.names.values()), pa.string())
    at = pc.index_in(found, value_set=pa.array(list(file.action.names), found.type))
    return pc.coalesce(names.take(at), found.cast(pa.string()))


def action_columns(file: EngagementFile) -> list[str]:
    """Return the column that names a file's actions, if there is one."""
    match file.action:
        case OneAction():
            return []
        case ActionColumn():
            return [file.action.column]
    return [file.action]


def _none_usable(walk: Walk) -> Problems:
    allowed = "allowed: at least one row with a time and a request"
    return Problems([Problem(walk.name, "rows", "none is usable", allowed)])


def _usable(
    rows: RowFile, file: ImpressionFile | EngagementFile, bounds: TimeBounds
) -> tuple[pa.Array, pa.Array | None, pa.Array | None]:
    """Return times, request keys, and those with the impressions' of the rows that have all; the others are rejected."""
    at, good = bounds.usable(rows, file.time)
    keys = named = None
    for column in dict.fromkeys([*(file.request or ()), *(file.impression or ())]):
        if (broken := inexact(rows.column(column))) is not None:
            rows.reject_broken(pc.and_(good, broken), column, rows.column(column), NO_ID, IDS_ALLOWED)
            good = pc.and_not(good, broken)
    if file.request is not None:
        keys = _key(rows, file.request)
        good = _with_key(rows, file.request, keys, good)
    elif isinstance(file, ImpressionFile) and file.explode is not None:
        keys = rows.at.cast(pa.string())  # a row of its file is a request
    if file.impression is not None and file.request is not None:
        good = _with_key(rows, file.impression, _key(rows, file.impression), good)
        columns = [*file.request, *file.impression]
        named = _key(rows, columns)
        good = _with_key(rows, columns, named, good)
    if isinstance(file, EngagementFile):
        good = _with_key(rows, action_columns(file), _actions(rows, file), good)
    if not pc.all(good).as_py():
        at, keys, named = (None if each is None else each.filter(good) for each in (at, keys, named))
        rows.keep(good)
    return at, keys, named


def _with_key(rows: RowFile, columns: Sequence[str], keys: pa.Array, good: pa.Array) -> pa.Array:
    length = pc.utf8_length(keys).fill_null(0)
    usable = pc.and_(pc.greater(length, 0), pc.less_equal(length, _MAX_KEY))
    broken = pc.and_(good, pc.invert(usable))
    rows.reject(broken, "+".join(columns), keys, "malformed", f"no key of 1 to {_MAX_KEY} characters")
    return pc.and_(good, usable)


def _key(rows: RowFile, columns: Sequence[str]) -> pa.Array:
    """Return the values of columns as one text."""
    try:
        parts = [texts_of(rows.column(column)) for column in columns]
    except pa.ArrowException as error:
        allowed = "allowed: integers or texts"
        raise Problems([Problem(rows.name, f"column {'+'.join(columns)}", str(error), allowed)]) from None
    return parts[0] if len(parts) == 1 else _joined(*parts)


def _joined(*parts: pa.Array) -> pa.Array:
    """Join texts by slashes, escaped so that different texts stay different."""
    escaped = [pc.replace_substring(pc.replace_substring(part, "\\", "\\\\"), "/", "\\/") for part in parts]
    return pc.binary_join_element_wise(*escaped, "/")


def _joined_rows(rows: RowFile, side: SideFile, table: SideTable) -> Ids:
    """Return the impressions' rows in a side table; a problem if no impression has one."""
    on = side.on_columns
    places = table.find([key_ids(rows, column) for column in on])
    name, detail = "+".join(on), f"no key of {table.name}"
    if (places >= 0).any():
        rows.findings.clear(rows.name, name, detail)
    elif len(places):
        allowed = f"none is a key of {table.name}; allowed: keys of the same form"
        problem = Problem(rows.name, f"column {name}", shown_key(rows, on, 0), allowed)
        rows.findings.suspect(rows.name, name, detail, problem)
    return places


def to_spool(raw: Raw) -> pa.Array:
    """Return a raw column as the spool has it."""
    if isinstance(raw, Ragged):
        return pa.LargeListArray.from_arrays(pa.array(raw.offsets), pa.array(raw.values))
    if raw.ndim > 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(raw.reshape(-1)), raw.shape[1])
    return pa.array(raw)


def from_spool(column: pa.Array) -> Raw:
    """Return a column of the spool as it was given to `to_spool`."""
    if pa.types.is_fixed_size_list(column.type):
        values: Raw = column.flatten().to_numpy().reshape(-1, column.type.list_size)
        return values
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.list_value_length(column).to_numpy()
        return Ragged(
            np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64))), column.flatten().to_numpy()
        )
    plain: Raw = column.to_numpy()
    return plain


def feature_columns(features: Mapping[str, Feature], side: str | None) -> list[str]:
    """Return the columns of the impressions, or of a side table, that features are made from."""
    return [item.column for item in features.values() if not is_derived(item) and item.side == side and item.column]


def impression_columns(settings: SourceSettings, file: ImpressionFile, features: Mapping[str, Feature]) -> list[str]:
    """Return all columns of a file that a log's impressions need."""
    wanted = [file.time.column, *(file.request or []), *(file.impression or []), *feature_columns(features, None)]
    wanted += [column for side in settings.sides.values() for column in side.on_columns]
    wanted += file.explode.columns if file.explode is not None else []
    for action in settings.actions.values():
        wanted += columns_of(action)
    return wanted


def engagement_columns(file: EngagementFile) -> list[str]:
    """Return all columns that a file of engagements needs."""
    columns = [file.time.column, *file.request, *file.impression, *action_columns(file)]
    return columns + ([file.value] if file.value else [])
