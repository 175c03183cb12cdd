"""The archive: a Delta Lake table that holds every example once, with the offset that it came from.

Columns are those of `ExampleFormat`, and ``hour`` (the event hour of ``decided_at``, UTC, such as 2024-01-31T05), by which the
table is partitioned; ``partition`` and ``offset`` of the record in `examples` and ``row`` in it, which order equal times. Columns
have schema hashes as in examples. A feature that is added to the config adds a column, null in older rows; one that is removed
leaves its column, null from then on.

A commit holds the rows of some records and, for each partition, two application transactions: the next offset to read and the
watermark. Delta refuses the second of two commits that move the same transaction, so neither a retry nor a second writer writes
anything twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from basis.problems import Problem, Problems
from basis.settings import PositiveDurationMs, Section
from streaming.records.examples import ExampleFormat
from streaming.records.training_order import training_order

_HOUR_MS = 3_600_000
_MINUTE_MS = 60_000
_LATEST_MS = 253_402_300_799_999  # the end of the year 9999: hours are compared as texts
_ROWS_AT_ONCE = 1 << 20
_ORDER = ("decided_at", "partition", "offset", "row")
_PLACE = pa.schema([("hour", pa.string()), ("partition", pa.int32()), ("offset", pa.int64()), ("row", pa.int32())])


class ArchiveSettings(Section):
    """The ``archive`` section."""

    dir: str | None = None
    """Folder or object store address of the table; a replay's is ``archive`` in its run's folder."""
    commit_every: PositiveDurationMs = 60_000
    """The longest that an example waits for its commit, in wall-clock time."""


class Position(NamedTuple):
    """How far one partition of `examples` is archived: the next offset to read, and the joiner's watermark (ms)."""

    offset: int
    watermark: int


class Archived(NamedTuple):
    """One record of `examples`."""

    partition: int
    offset: int
    batch: pa.RecordBatch


def taken_for_one(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield names that differ only in case from an earlier one, with that: Delta takes both for the same column.

    >>> list(taken_for_one(["userId", "item", "userid"]))
    [('userid', 'userId')]
    """
    first: dict[str, str] = {}
    for name in dict.fromkeys(names):
        earlier = first.setdefault(name.lower(), name)
        if earlier != name:
            yield name, earlier


class Archive:
    """The table as of one commit: the last one made here, or the newest when the table was opened."""

    def __init__(self, place: str, example_format: ExampleFormat) -> None:
        """Open the table, or create it; `Problems` if the config cannot take over what it has."""
        self._place = place
        self._format = example_format
        self.schema = pa.schema([*example_format.schema, *_PLACE])
        self._check_case(self.schema.names)
        self._table = DeltaTable.create(place, self.schema, mode="ignore", partition_by=["hour"])
        there = pa.schema(self._table.schema().to_arrow())
        self._check_case([*there.names, *self.schema.names])
        for at, field in enumerate(there):
            ours = self.schema.get_field_index(field.name)
            if ours >= 0 and _fits(self.schema.field(ours).type, field.type):
                there = there.set(at, field.with_type(self.schema.field(ours).type))
        problem = example_format.mismatch(there)
        if problem is not None:
            raise Problems([Problem(place, "archive", problem, _NEW_PLACE)])
        types = {field.name: field.type for field in there}
        must = [field for field in self.schema if field.name in types or field.name not in example_format.may_lack]
        wrong = [field.name for field in must if types.get(field.name) != field.type]
        if wrong:
            raise Problems([Problem(place, f"column {name}", "not what archives have", _NEW_PLACE) for name in wrong])

    def _check_case(self, names: Iterable[str]) -> None:
        wrong = list(taken_for_one(names))
        if wrong:
            allowed = "allowed: a name that differs from it in more than case"
            raise Problems(
                [Problem(self._place, f"column {name}", f"taken for {earlier}", allowed) for name, earlier in wrong]
            )

    def position(self, partition: int) -> Position | None:
        """Return how far a partition is archived; None if nothing of it is."""
        offset = self._table.transaction_version(_offset_id(partition))
        watermark = self._table.transaction_version(_watermark_id(partition))
        return None if offset is None or watermark is None else Position(offset, watermark)

    def positions(self) -> dict[int, Position]:
        """Return the positions of all partitions that examples came from."""
        found = ((partition, self.position(partition)) for partition in range(self._last_partition() + 1))
        return {partition: position for partition, position in found if position is not None}

    def _last_partition(self) -> int:
        """Return the last partition that examples came from; -1 if there are none."""
        files = self._files()
        known = files.column("max.partition") if "max.partition" in files.column_names else pa.nulls(len(files))
        last = pc.max(known).as_py()
        last = -1 if last is None else last
        if known.null_count:  # files have statistics of a table's first 32 columns only, and this is one of the last
            later = self._table.to_pyarrow_dataset().scanner(["partition"], pc.field("partition") > last)
            last = max((pc.max(each.column(0)).as_py() for each in later.to_batches() if each.num_rows), default=last)
        return int(last)

    def append(self, records: Sequence[Archived], positions: Mapping[int, Position]) -> bool:
        """Commit records and positions. If another writer has moved one of these partitions since, write nothing, load the newest
        positions, and return False."""
        transactions = [
            transaction
            for partition, position in positions.items()
            for transaction in (
                Transaction(_offset_id(partition), position.offset),
                Transaction(_watermark_id(partition), position.watermark),
            )
        ]
        rows = [_with_place(record) for record in records if record.batch.num_rows]
        try:
            write_deltalake(
                self._table,
                pa.Table.from_batches(rows, self.schema),
                mode="append",
                schema_mode="merge",
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except CommitFailedError:
            self._table = DeltaTable(self._place)
            return False
        return True

    def compact(self, before_ms: int) -> None:
        """Merge the files of each hour that ended by ``before_ms`` (event time) into one; readers see the same rows."""
        end = _hours(np.array([before_ms]))[0]
        counts: dict[str, int] = {}
        for hour in self._files().column("partition.hour").to_pylist():
            counts[hour] = counts.get(hour, 0) + 1
        small = [hour for hour, files in counts.items() if files > 1 and hour < end]
        if small:
            try:
                self._table.optimize.compact(partition_filters=[("hour", "in", small)])
            except CommitFailedError:  # another archiver did the same; it is done, or will be the next time
                self._table = DeltaTable(self._place)

    def vacuum(self) -> None:
        """Delete files that no commit of the last week uses: compacted ones, and those of writers that died."""
        self._table.vacuum(dry_run=False, full=True)

    def hours(self, since: int, until: int) -> dict[str, int]:
        """Return the event hours that may hold examples decided in [since, until) (ms), in order, with their number of rows."""
        first, last = _hours(np.clip([since, until - 1], 0, _LATEST_MS))
        found: dict[str, int] = {}
        files = self._files()
        for hour, count in zip(
            files.column("partition.hour").to_pylist(), files.column("num_records").to_pylist(), strict=True
        ):
            if first <= hour <= last:
                found[hour] = found.get(hour, 0) + count
        return dict(sorted(found.items()))

    def batches(self, since: int, until: int) -> Iterator[pa.RecordBatch]:
        """Yield the examples decided in [since, until) (ms of event time) in order of decision, at most about a million at once.

        Batches begin at full minutes.
        """
        for hours, count in _stretches(self.hours(since, until)):
            first, last = (int(np.datetime64(hour, "ms").astype(np.int64)) for hour in (hours[0], hours[-1]))
            bounds = np.linspace(first, last + _HOUR_MS, -(-count // _ROWS_AT_ONCE) + 1).astype(np.int64)
            for begin, end in pairwise(np.unique(bounds // _MINUTE_MS * _MINUTE_MS).tolist()):
                batch = self._read(max(begin, since), min(end, until))
                if batch.num_rows:
                    yield batch

    def _read(self, begin: int, end: int) -> pa.RecordBatch:
        first, last = _hours(np.array([begin, end - 1]))
        there = {field.name for field in self._table.schema().fields}
        found = self._table.to_pyarrow_table(
            filters=[
                ("hour", ">=", first),
                ("hour", "<=", last),
                ("decided_at", ">=", begin),
                ("decided_at", "<", end),
            ],
            columns=[name for name in (*self._format.schema.names, "partition", "offset", "row") if name in there],
        )
        for name in found.column_names:
            if name.startswith("label."):  # rows made without it: its actions were not recorded
                found = found.filter(pc.is_valid(found.column(name)))
        ordered = _in_training_order(found.sort_by([(name, "ascending") for name in _ORDER]))
        columns = [self._column(ordered, field) for field in self._format.schema]
        table = pa.Table.from_arrays(columns, schema=self._format.schema).combine_chunks()
        return table.to_batches()[0] if table.num_rows else self._format.empty()

    def _column(self, rows: pa.Table, field: pa.Field) -> pa.ChunkedArray:
        """Return a column of rows, with missing values for rows that were made without it."""
        if field.name not in rows.column_names:
            return pa.chunked_array([self._format.missing(field.name, rows.num_rows)])
        column = rows.column(field.name)
        if column.null_count and field.name not in self._format.may_lack:
            raise Problems([Problem(self._place, f"column {field.name}", "rows without a value", _NEW_PLACE)])
        if column.null_count:
            missing = self._format.missing(field.name, rows.num_rows)
            column = pc.coalesce(column, missing.cast(column.type))
        return column.cast(field.type)

    def _files(self) -> pa.Table:
        return pa.table(self._table.get_add_actions(flatten=True))


def _in_training_order(rows: pa.Table) -> pa.Table:
    """Return rows sorted by `_ORDER` as a trainer of the live log takes them, which joins what records of one time parted."""
    partitions, offsets = (rows.column(name).to_numpy() for name in ("partition", "offset"))
    starts = np.flatnonzero((partitions[1:] != partitions[:-1]) | (offsets[1:] != offsets[:-1])) + 1
    order = training_order(rows, starts, partitions)
    return rows if order is None else rows.take(pa.array(order))


_NEW_PLACE = "allowed: what the table was made with, features added or removed, or another archive.dir"


def _offset_id(partition: int) -> str:
    return f"minutely/examples/{partition}"


def _watermark_id(partition: int) -> str:
    return f"minutely/watermark/{partition}"


def _stretches(hours: Mapping[str, int]) -> Iterator[tuple[list[str], int]]:
    """Group consecutive hours with few rows, and count the rows. Each read scans the list of files, so read them together."""
    together: list[str] = []
    rows = 0
    for hour, count in hours.items():
        if together and rows + count > _ROWS_AT_ONCE:
            yield together, rows
            together, rows = [], 0
        together.append(hour)
        rows += count
    if together:
        yield together, rows


def _hours(times: npt.NDArray[np.int64]) -> list[str]:
    hours: list[str] = np.datetime_as_string(times.astype("datetime64[ms]"), unit="h").tolist()
    return hours


def _fits(ours: pa.DataType, theirs: pa.DataType) -> bool:
    """Whether a column of the table has our type; Delta has no lists of fixed size."""
    if not pa.types.is_list(theirs):
        return bool(ours == theirs)
    return hasattr(ours, "value_type") and bool(ours.value_type == theirs.value_type)


def _with_place(record: Archived) -> pa.RecordBatch:
    count = record.batch.num_rows
    place = [
        pa.array(_hours(record.batch.column("decided_at").to_numpy()), pa.string()),
        pa.array(np.full(count, record.partition, np.int32)),
        pa.array(np.full(count, record.offset, np.int64)),
        pa.array(np.arange(count, dtype=np.int32)),
    ]
    return pa.RecordBatch.from_arrays(
        [*record.batch.columns, *place], schema=pa.schema([*record.batch.schema, *_PLACE])
    )
