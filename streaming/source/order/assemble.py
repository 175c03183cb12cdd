"""From the spool to a log in the order of event time, whose columns are on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, Problems
from streaming.features.columns import Column, Columns, Ids, Ragged
from streaming.features.kinds import Feature
from streaming.records.events import MAX_IMPRESSIONS
from streaming.source.logged_events import Bools, Engagements, LoggedEvents
from streaming.source.order.impressions import Impressions
from streaming.source.order.on_disk import Array, FeatureColumn, Mapped, Texts
from streaming.source.order.spool import Spool, from_spool
from streaming.source.rows.rejects import Findings
from streaming.source.rows.rows import Items, Rows

_DELAY = "delay of an action"


class _Requests(NamedTuple):
    """The requests of a log, as `LoggedEvents` has them."""

    starts: Ids
    served_at: Ids
    spread: Ids
    ids: pa.Array


def assemble(
    spool: Spool, mapped: Mapped, read: Impressions, findings: Findings, rejects: Sequence[Findings]
) -> LoggedEvents:
    """Return the log that was read into the spool. ``findings`` are those of the impressions, ``rejects`` those of all files.

    Raises:
        Problems: a request is too large, or its impressions differ in what a request has once.
    """
    size, name = spool.group()
    if size > MAX_IMPRESSIONS:
        allowed = f"{size} impressions; allowed: {MAX_IMPRESSIONS} a request"
        raise Problems([Problem("impressions", "request", repr(name), allowed)])
    requests = _requests(spool, mapped)
    writer = _Writer(spool, mapped, read, findings, requests)
    for rows in _whole_requests(spool.impressions(read.columns)):
        writer.add(rows)
    request_of_row, impression_ids, features = writer.finish()
    return LoggedEvents(
        requests.starts,
        requests.served_at,
        requests.spread,
        request_of_row,
        requests.ids,
        impression_ids,
        features,
        _engagements(spool, mapped, list(read.settings.actions)),
        {name: count / len(request_of_row) for name, count in read.matched.items()},
        read.mapper.missing,
        [reject for each in rejects for reject in each.rejects],
        sum((each.more for each in rejects), Counter()),
        findings.empty,
        spool.mixed(),
        mapped.release,
    )


def _requests(spool: Spool, mapped: Mapped) -> _Requests:
    starts, served_at, spread, ids = Array(mapped), Array(mapped), Array(mapped), Texts(mapped)
    starts.append(np.zeros(1, np.int64))
    end = 0
    for rows in spool.requests():
        ends = end + np.cumsum(rows.column("size").to_numpy(), dtype=np.int64)
        end = int(ends[-1]) if len(ends) else end
        starts.append(ends)
        served_at.append(rows.column("served_at").to_numpy())
        spread.append(rows.column("spread").to_numpy())
        ids.append(rows.column("request").combine_chunks())
    return _Requests(starts.finish(), served_at.finish(), spread.finish(), ids.finish())


def _whole_requests(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Cut tables, which are in the order of requests, between requests."""
    rest: pa.Table | None = None
    for each in tables:
        table = each if rest is None else pa.concat_tables([rest, each])
        number = table.column("number").to_numpy()
        last = int(np.searchsorted(number, number[-1])) if len(number) else 0
        if last:
            yield table.slice(0, last).combine_chunks()
        rest = table.slice(last)
    if rest is not None and rest.num_rows:
        yield rest.combine_chunks()


class _Writer:
    """Writes impressions, with the engagements that their own columns tell."""

    def __init__(
        self, spool: Spool, mapped: Mapped, read: Impressions, findings: Findings, requests: _Requests
    ) -> None:
        self._spool = spool
        self._read = read
        self._findings = findings
        self._requests = requests
        self._count = 0
        self._request_of_row = Array(mapped)
        self._impression_ids = Texts(mapped)
        self._features = {name: FeatureColumn(mapped) for name in read.features}

    def add(self, rows: pa.Table) -> None:
        """Write the impressions of some requests, all of each."""
        read, requests = self._read, self._requests
        request = rows.column("number").to_numpy()
        served_at = requests.served_at[request]
        row = np.arange(self._count, self._count + len(request))
        own = Items(pa.array(row), frozenset([_DELAY]))
        of_file = Rows("impressions", rows, rows.column("file_at").combine_chunks(), self._findings, items=own)
        raw = {name: from_spool(of_file.column(f"raw{number}")) for number, name in enumerate(read.raw)}
        places = {name: of_file.column(f"side{number}").to_numpy() for number, name in enumerate(read.sides)}
        sizes = np.diff(requests.starts[request[0] : request[-1] + 2])[request - request[0]]
        for name, place in places.items():
            read.matched[name] += int((place >= 0).sum())
        columns = read.mapper.columns(raw, places, served_at, sizes)
        first = requests.starts[request] - self._count
        _check_shared(of_file, read.features, columns, first)
        ids = of_file.column("named").cast(pa.large_string())
        texts = requests.ids.take(pa.array(request))
        if ids.null_count:
            # Without a key of its own, its place makes an impression unique.
            place = pa.array(np.arange(len(request)) - first).cast(pa.large_string())
            ids = pc.coalesce(ids, pc.binary_join_element_wise(texts, place, pa.scalar(".", pa.large_string())))
        self._request_of_row.append(request)
        self._impression_ids.append(ids)
        for name, column in columns.items():
            self._features[name].append(column)
        self._act(of_file, served_at, row, texts, ids)
        if read.settings.engagement_files:
            self._spool.add("names", pa.table({"named": ids, "impression": row}))
        self._count += len(request)

    def finish(self) -> tuple[Ids, pa.Array, dict[str, Column]]:
        """Return the requests of all impressions, their ids and their features."""
        features = {name: column.finish() for name, column in self._features.items()}
        return self._request_of_row.finish(), self._impression_ids.finish(), features

    def _act(self, rows: Rows, served_at: Ids, row: Ids, requests: pa.Array, ids: pa.Array) -> None:
        """Note the actions that columns of the impressions tell."""
        bounds = self._read.bounds
        for code in range(len(self._read.settings.actions)):
            delays = rows.column(f"delay{code}")
            happened = np.asarray(delays.is_valid().to_numpy(zero_copy_only=False))
            delay = np.asarray(delays.fill_null(0).to_numpy(), np.int64)
            late = happened & (delay > bounds.latest - served_at)
            rows.reject(pa.array(late), _DELAY, pa.array(delay), "future", bounds.allowed)
            chosen = pa.array(np.flatnonzero(happened & ~late))
            done = {
                "at_ms": pa.array(served_at + delay).take(chosen),
                "code": pa.array(np.full(len(chosen), code, np.int32)),
                "impression": pa.array(row).take(chosen),
                "value": rows.column(f"value{code}").take(chosen),
                "request": requests.take(chosen),
                "named": ids.take(chosen),
            }
            self._spool.add("done", pa.table(done))


def _engagements(spool: Spool, mapped: Mapped, own: Sequence[str]) -> Engagements:
    """Return all engagements; ``own`` are the actions that columns of the impressions tell, in the order of their codes."""
    names = [*own, *(name for name in spool.actions() if name not in own)]
    at, row, action, value = (Array(mapped) for _ in range(4))
    requests, impressions = Texts(mapped), Texts(mapped)
    for rows in spool.engagements({name: code for code, name in enumerate(names)}):
        for array, name in ((at, "at_ms"), (row, "impression"), (action, "code"), (value, "value")):
            array.append(rows.column(name).to_numpy())
        requests.append(rows.column("request").combine_chunks())
        impressions.append(rows.column("named").combine_chunks())
    texts = requests.finish(), impressions.finish()
    return Engagements(at.finish(), row.finish(), action.finish(), names, value.finish(), *texts)


def _check_shared(rows: Rows, features: Mapping[str, Feature], columns: Columns, first: Ids) -> None:
    """Check that each feature of the request is the same for all its impressions, of which ``first`` int64 [n] are the first."""
    problems = []
    for name, feature in features.items():
        if feature.scope != "request":
            continue
        if (differs := np.flatnonzero(_differ(columns[name], first))).size:
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
