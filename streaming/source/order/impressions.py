"""Impressions on their way to the spool: checked, named and with their raw features, whatever comes before or after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from basis.problems import Problem, ProblemList, Problems
from streaming.features.columns import Ids
from streaming.features.kinds import Feature
from streaming.source.order.spool import Spool, to_spool
from streaming.source.rows.actions import columns_of, happened_on
from streaming.source.rows.explode import explode
from streaming.source.rows.features import FeatureMapper
from streaming.source.rows.keys import none_usable, usable
from streaming.source.rows.raw import feature_columns, key_ids, of_columns, shown_key
from streaming.source.rows.rejects import Findings
from streaming.source.rows.rows import Items, Rows
from streaming.source.rows.side_tables import SideTable
from streaming.source.rows.time_bounds import TimeBounds
from streaming.source.rows.walk import Walk
from streaming.source.settings import ImpressionFile, SideFile, SourceSettings


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
        self.raw = list(of_columns(features, None))
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
        def use(rows: Rows) -> None:
            for piece in self._items(rows, file):
                spool.add("impressions", self._normalised(piece, file, source))

        before = self.count
        walk.take(use)
        if self.count == before:
            raise none_usable(walk)

    def _items(self, rows: Rows, file: ImpressionFile) -> Iterator[Rows]:
        if file.explode is None:
            yield rows
            return
        if file.time.column not in file.explode.made:  # a row without items is refused for its time, too
            rows.keep(self.bounds.usable(rows, file.time)[1])
        yield from explode(rows, file.explode)

    def _drop_repeated(self, name: str, findings: Findings, spool: Spool) -> None:
        first = next(file for file in self.settings.impression_files if file.impression)
        columns = [*(first.request or ()), *(first.impression or ())]
        for again in spool.repeated():
            own = Items(again.column("place").combine_chunks(), frozenset(columns))
            rows = Rows(name, again, again.column("file_at").combine_chunks(), findings, items=own)
            every = pa.repeat(True, again.num_rows)
            rows.reject(every, columns, again.column("named"), "repeated", "is given twice in its request")
        spool.drop_repeated()

    def _normalised(self, rows: Rows, file: ImpressionFile, source: int) -> pa.Table:
        settings, problems = self.settings, ProblemList()
        at, keys, named = usable(rows, file, self.bounds)
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


def _joined_rows(rows: Rows, side: SideFile, table: SideTable) -> Ids:
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


def impression_columns(settings: SourceSettings, file: ImpressionFile, features: Mapping[str, Feature]) -> list[str]:
    """Return all columns of a file that a log's impressions need."""
    wanted = [file.time.column, *(file.request or []), *(file.impression or []), *feature_columns(features, None)]
    wanted += [column for side in settings.sides.values() for column in side.on_columns]
    for action in settings.actions.values():
        wanted += columns_of(action)
    if file.explode is None:
        return wanted
    made = file.explode.each.columns if file.explode.each is not None else []
    return [*(column for column in wanted if column not in made), *file.explode.columns]
