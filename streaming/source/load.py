"""Own logs: reads files of impressions, with side tables, as requests and engagements in the order of event time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, ProblemList, Problems
from streaming.features.arrow_columns import texts_of
from streaming.features.columns import Column, Columns, Ids, Ragged
from streaming.features.kinds import Feature
from streaming.features.transforms import is_derived
from streaming.records.events import MAX_ID_LENGTH, MAX_IMPRESSIONS
from streaming.source.actions import columns_of, happened_on, plain_numbers, usable_values
from streaming.source.explode import explode
from streaming.source.files import Folder, find
from streaming.source.logged_events import Bools, Engagements, LoggedEvents
from streaming.source.mapping import FeatureMapper, SideTable, key_ids, shown_key
from streaming.source.settings import EngagementFile, ImpressionFile, SourceSettings
from streaming.source.tabular import RowFile, as_problems, numbers, read
from streaming.source.time_bounds import TimeBounds

_MAX_KEY = MAX_ID_LENGTH - 16  # leaves room for a place, or for the id of a run of `minutely produce`


def load(folder: Folder, settings: SourceSettings, features: Mapping[str, Feature], now_ms: int) -> LoggedEvents:
    """Read a pipeline's logs. ``now_ms`` is the wall clock's time, which bounds those of events.

    Raises:
        Problems: everything that is wrong with the files as a whole, with the rows that could not be used.
    """
    problems = ProblemList()
    files: list[RowFile] = []
    sides: dict[str, SideTable] = {}
    for name in settings.sides:
        with problems.collect():
            sides[name] = read_side(folder, settings, name, features, files)
            problems.found += sides[name].problems
    if settings.engagements is not None:
        with problems.collect():
            find(folder, settings.engagements)
    with problems.collect():
        rows = read(folder, settings.impressions, _impression_columns(settings, features))
        problems.found += rows.missing
        if settings.impressions.explode is not None:
            explode(rows, settings.impressions.explode)
        files.append(rows)
        return _Loader(rows, settings, now_ms, problems, files).load(folder, sides, features)
    raise Problems(problems.found + as_problems([reject for file in files for reject in file.rejects]))


def read_side(
    folder: Folder, settings: SourceSettings, name: str, features: Mapping[str, Feature], files: list[RowFile]
) -> SideTable:
    """Read a side table, and append its file, with the rejected rows, to ``files``. `Problems` if it cannot be read; the table's
    own ``problems`` are columns that do not fit."""
    side = settings.sides[name]
    rows = read(folder, side, [*side.key, *feature_columns(features, name)])
    files.append(rows)
    wanted = {each: item for each, item in features.items() if not is_derived(item) and item.side == name}
    try:
        table = SideTable(rows, side.key, wanted)
    except Problems as problems:
        raise Problems([*rows.missing, *problems.problems]) from None
    table.problems += rows.missing
    return table


class _Loader:
    """The steps from files to events, over the rows of the impressions' file."""

    def __init__(
        self, rows: RowFile, settings: SourceSettings, now_ms: int, problems: ProblemList, files: list[RowFile]
    ) -> None:
        self._problems = problems
        self._files = files
        self._rows = rows
        self._settings = settings
        self._bounds = TimeBounds.of(settings, now_ms)

    def load(self, folder: Folder, sides: Mapping[str, SideTable], features: Mapping[str, Feature]) -> LoggedEvents:
        rows = self._rows
        served_at, request_keys = self._usable(rows, self._settings.impressions)
        order, starts, request_served_at, request_of_row, request_ids = _group(served_at, request_keys)
        spread = np.maximum.reduceat(served_at[order], starts[:-1]) - request_served_at
        rows.take(pa.array(order))
        served_at_of_row = request_served_at[request_of_row]
        places: dict[str, Ids] = {}
        for name, side in self._settings.sides.items():
            if name in sides:
                with self._problems.collect():
                    places[name] = self._joined(sides[name], side.on_columns)
        with self._problems.collect():
            mapper = FeatureMapper(rows, served_at_of_row, np.diff(starts)[request_of_row], sides, places)
            columns = mapper.columns(features)
            _check_shared(rows, features, columns, starts, request_of_row)
        with self._problems.collect():
            impression_ids = self._impression_ids(request_ids, request_of_row, starts)
            engagements = self._engagements(folder, served_at_of_row, request_of_row, request_ids, impression_ids)
        self._problems.raise_any()
        rejects = [reject for file in self._files for reject in file.rejects]
        return LoggedEvents(
            starts,
            request_served_at,
            spread,
            request_of_row,
            request_ids,
            impression_ids,
            columns,
            engagements,
            {name: float((found >= 0).mean()) for name, found in places.items()},
            mapper.missing,
            rejects,
        )

    def _joined(self, side: SideTable, on: Sequence[str]) -> Ids:
        """Return the impressions' rows in a side table."""
        places = side.find([key_ids(self._rows, column) for column in on])
        if (places < 0).all():
            allowed = f"none is a key of {side.name}; allowed: keys of the same form"
            raise Problems([Problem(self._rows.name, f"column {'+'.join(on)}", shown_key(self._rows, on, 0), allowed)])
        return places

    def _usable(self, rows: RowFile, file: ImpressionFile | EngagementFile) -> tuple[Ids, pa.Array | None]:
        """Return times and request keys of the rows that have both; the others are rejected."""
        at, good = self._bounds.usable(rows, file.time)
        keys = None
        if file.request is not None:
            keys = _key(rows, file.request)
            good = self._with_key(rows, file.request, keys, good)
        elif isinstance(file, ImpressionFile) and file.explode is not None:
            keys = rows.at.cast(pa.string())  # a row of its file is a request
        if file.impression is not None and keys is not None:
            good = self._with_key(rows, file.impression, _key(rows, file.impression), good)
            columns = [*(file.request or ()), *file.impression]
            both = _key(rows, columns)
            good = self._with_key(rows, columns, both, good)
            if isinstance(file, ImpressionFile):
                good = _first_of_each(rows, file.impression, both, good)
        if isinstance(file, EngagementFile):
            good = self._with_key(rows, [file.action], _key(rows, [file.action]), good)
        if not pc.any(good).as_py():
            allowed = "allowed: at least one row with a time and a request"
            raise Problems([Problem(rows.name, "rows", "none is usable", allowed)])
        if not pc.all(good).as_py():
            at, keys = at.filter(good), None if keys is None else keys.filter(good)
            rows.keep(good)
        return np.asarray(at.to_numpy(zero_copy_only=False), np.int64), keys

    def _with_key(self, rows: RowFile, columns: Sequence[str], keys: pa.Array, good: pa.Array) -> pa.Array:
        length = pc.utf8_length(keys).fill_null(0)
        usable = pc.and_(pc.greater(length, 0), pc.less_equal(length, _MAX_KEY))
        broken = pc.and_(good, pc.invert(usable))
        rows.reject(broken, "+".join(columns), keys, "malformed", f"no key of 1 to {_MAX_KEY} characters")
        return pc.and_(good, usable)

    def _impression_ids(self, request_ids: pa.Array, request_of_row: Ids, starts: Ids) -> pa.Array:
        """Return the request's key with the impression's own key, else with its place, which makes it unique."""
        requests = request_ids.take(pa.array(request_of_row))
        file = self._settings.impressions
        if file.request is None or file.impression is None:
            place = np.arange(len(request_of_row)) - starts[request_of_row]
            return pc.binary_join_element_wise(requests, pa.array(place).cast(pa.string()), ".")
        return _key(self._rows, [*file.request, *file.impression])

    def _engagements(
        self, folder: Folder, served_at: Ids, request_of_row: Ids, request_ids: pa.Array, impression_ids: pa.Array
    ) -> Engagements:
        names = list(self._settings.actions)
        at, row, code, value = [], [], [], []
        for index, action in enumerate(self._settings.actions.values()):
            with self._problems.collect():
                happened, delays, values = happened_on(self._rows, action, served_at, self._bounds)
                chosen = np.flatnonzero(happened)
                at.append(served_at[chosen] + delays[chosen])
                row.append(chosen)
                code.append(np.full(len(chosen), index, np.int32))
                value.append(values[chosen])
        requests = request_ids.take(pa.array(request_of_row))
        rows = np.concatenate([*row, np.empty(0, np.int64)]).astype(np.int64)
        all_requests, all_impressions = requests.take(pa.array(rows)), impression_ids.take(pa.array(rows))
        file = self._settings.engagements
        if file is not None:
            found = self._from_file(folder, file, impression_ids, names)
            at.append(found.happened_at)
            code.append(found.action)
            value.append(found.value)
            rows = np.concatenate((rows, found.row))
            all_requests = pa.concat_arrays([all_requests, found.request_id])
            all_impressions = pa.concat_arrays([all_impressions, found.impression_id])
        self._problems.raise_any()
        times_ = np.concatenate(at).astype(np.int64)
        codes = np.concatenate(code).astype(np.int32)
        order = np.lexsort((rows, codes, times_))
        return Engagements(
            times_[order],
            rows[order],
            codes[order],
            names,
            np.concatenate(value)[order],
            all_requests.take(pa.array(order)),
            all_impressions.take(pa.array(order)),
        )

    def _from_file(self, folder: Folder, file: EngagementFile, known: pa.Array, names: list[str]) -> Engagements:
        """Return engagements of a file of their own; new actions are added to ``names``."""
        columns = [file.time.column, *file.request, *file.impression, file.action]
        rows = read(folder, file, columns + ([file.value] if file.value else []))
        self._problems.found += rows.missing
        self._files.append(rows)
        values = pa.array(np.ones(rows.table.num_rows))
        if file.value:
            raw, values = rows.column(file.value), numbers(rows, file.value)
            given = pc.or_(values.is_valid(), raw.is_null(nan_is_null=True))  # other values are rejected already
            values = values.fill_null(1.0)
            mask = usable_values(
                rows, file.value, plain_numbers(values), np.asarray(given.to_numpy(zero_copy_only=False))
            )
            values = values.filter(pa.array(mask))
            rows.keep(pa.array(mask))
        rows.table = rows.table.append_column("minutely.value", values)
        at, requests = self._usable(rows, file)
        assert requests is not None
        impressions = _key(rows, [*file.request, *file.impression])
        row = pc.index_in(impressions, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
        actions = _key(rows, [file.action]).dictionary_encode()
        code_of = {name: code for code, name in enumerate(names)}
        codes = [code_of.setdefault(name, len(code_of)) for name in actions.dictionary.to_pylist()]
        names[:] = code_of
        return Engagements(
            at,
            row.astype(np.int64),
            np.array(codes, np.int32)[actions.indices.to_numpy()],
            names,
            plain_numbers(rows.column("minutely.value")),
            requests,
            impressions,
        )


def _first_of_each(rows: RowFile, columns: Sequence[str], keys: pa.Array, good: pa.Array) -> pa.Array:
    """Return the good rows whose key no good row before them has; the others are rejected."""
    again = keys.filter(good)
    first = np.zeros(len(again), np.bool_)
    first[np.unique(again.dictionary_encode().indices.to_numpy(), return_index=True)[1]] = True
    kept = np.asarray(good.to_numpy(zero_copy_only=False)).copy()
    kept[kept] = first
    repeated = pc.and_not(good, pa.array(kept))
    rows.reject(repeated, "+".join(columns), _key(rows, columns), "repeated", "is given twice in its request")
    return pa.array(kept)


def _group(served_at: Ids, keys: pa.Array | None) -> tuple[Ids, Ids, Ids, Ids, pa.Array]:
    """Return the order of rows by request, starts of requests, their times, the request of each row, and the requests' ids."""
    count = len(served_at)
    if keys is None:
        group = np.arange(count)
        names = pa.array(range(count)).cast(pa.string())
    else:
        encoded = keys.dictionary_encode()
        group, names = encoded.indices.to_numpy().astype(np.int64), encoded.dictionary
    first = np.full(len(names), np.iinfo(np.int64).max)
    np.minimum.at(first, group, served_at)
    rank = np.argsort(first, kind="stable")  # at equal times, the order of the dictionary, which is that of the file
    place = np.empty(len(names), np.int64)
    place[rank] = np.arange(len(names))
    request_of_row = place[group]
    order = np.argsort(request_of_row, kind="stable")
    sizes = np.bincount(request_of_row, minlength=len(names))
    if sizes.max() > MAX_IMPRESSIONS:
        largest = names[int(rank[sizes.argmax()])].as_py()
        allowed = f"{sizes.max()} impressions; allowed: {MAX_IMPRESSIONS} a request"
        raise Problems([Problem("impressions", "request", repr(largest), allowed)])
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))
    return order, starts, first[rank], request_of_row[order], names.take(pa.array(rank)).cast(pa.string())


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


def _check_shared(
    rows: RowFile, features: Mapping[str, Feature], columns: Columns, starts: Ids, request_of_row: Ids
) -> None:
    """Check that each feature of the request is the same for all its impressions."""
    problems = []
    first = starts[request_of_row]
    for name, feature in features.items():
        column = columns[name]
        if feature.scope != "request" or len(starts) == len(request_of_row) + 1:
            continue
        if (differs := np.flatnonzero(_differ(column, first))).size:
            file, line = rows.place(int(differs[0]))
            allowed = "differs within its request; allowed: scope: impression"
            problems.append(Problem(file, f"feature {name}, {line}", "scope: request", allowed))
    if problems:
        raise Problems(problems)


def _differ(column: Column, first: Ids) -> Bools:
    """Return which impressions have another value than the impressions ``first`` int64 [n]; bool [n]."""
    if not isinstance(column, Ragged):
        found: Bools = (column != column[first]).reshape(len(first), -1).any(1)
        return found
    lengths, other = np.diff(column.offsets), column.take(first)
    differs: Bools = lengths != np.diff(other.offsets)
    same = column.take(np.flatnonzero(~differs)), other.take(np.flatnonzero(~differs))
    owner = np.repeat(np.flatnonzero(~differs), lengths[~differs])
    differs[owner[same[0].values != same[1].values]] = True
    return differs


def feature_columns(features: Mapping[str, Feature], side: str | None) -> list[str]:
    """Return the columns of the impressions, or of a side table, that features are made from."""
    return [item.column for item in features.values() if not is_derived(item) and item.side == side and item.column]


def _impression_columns(settings: SourceSettings, features: Mapping[str, Feature]) -> list[str]:
    file = settings.impressions
    wanted = [file.time.column, *(file.request or []), *(file.impression or []), *feature_columns(features, None)]
    wanted += [column for side in settings.sides.values() for column in side.on_columns]
    wanted += file.explode.columns if file.explode is not None else []
    for action in settings.actions.values():
        wanted += columns_of(action)
    return wanted
