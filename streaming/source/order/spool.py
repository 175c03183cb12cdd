"""Rows of logs on their way to the order of event time, in a database that sorts what does not fit in memory."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.decoding import why
from basis.problems import Problem, Unreadable
from streaming.features.columns import Ragged
from streaming.features.transforms import Raw
from streaming.source.files.duck import connection, streamed

_PREFIX = "minutely-spool-"
_LOCK = "lock"

_REPEATED = """select place, file_at, named from
    (select place, file_at, named, row_number() over (partition by named order by place) as number from impressions
     where named in (select named from impressions group by named having count(*) > 1))
    where number > 1 order by place"""

_TABLES = """create table done (at_ms bigint, code integer, impression bigint, value double, request varchar, named varchar);
    create table logged (place bigint, at_ms bigint, request varchar, named varchar, action varchar, value double);
    create table names (named varchar, impression bigint);
    create table codes (action varchar, code integer)"""

_REQUESTS = """create table requests as
    select *, row_number() over (order by served_at, first_place) - 1 as number from
    (select request, min(at_ms) as served_at, max(at_ms) - min(at_ms) as spread, min(place) as first_place, count(*) as size,
       min(source) < max(source) as mixed from impressions group by request)"""

_ENGAGEMENTS = """select at_ms, code, impression, value, request, named from
    (select at_ms, code, impression, value, request, named, -1 as place from done
     union all by name
     select at_ms, code, coalesce(impression, -1) as impression, value, request, logged.named, place
     from logged join codes using (action) left join names on logged.named = names.named)
    order by at_ms, code, impression, place"""


@contextmanager
def open_spool(memory: int) -> Iterator[tuple[Spool, Path]]:
    """Open a spool that has ``memory`` bytes, in a temporary folder, which it gives too. Folders of processes that were killed go.

    Raises:
        Unreadable: there is no room in the folder, or too little memory to sort.
    """
    root = Path(tempfile.gettempdir())
    for stale in root.glob(f"{_PREFIX}*"):
        if not _is_used(stale):
            shutil.rmtree(stale, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
            folder = Path(name)
            with _locked(folder), connection(memory // 2, folder / "spool") as db:
                db.execute("set preserve_insertion_order = false")  # each query says its order
                yield Spool(db), folder
    except duckdb.OutOfMemoryException as error:
        value, allowed = f"{memory // 1_000_000} MB", f"too little to sort these logs ({why(error)}); allowed: more"
        raise Unreadable([Problem("logs", "--memory", value, allowed)]) from None
    except (OSError, duckdb.Error) as error:
        said = error.strerror if isinstance(error, OSError) else None
        allowed = "allowed: a folder with room for the logs; TMPDIR names another"
        raise Unreadable([Problem(str(root), "temporary folder", said or why(error), allowed)]) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which is there only once it is held."""
    with (folder / "new").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new").replace(folder / _LOCK)
        yield


def _is_used(folder: Path) -> bool:
    """Whether a process holds a spool's folder; True where that cannot be said, as while it makes it."""
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


class Spool:
    """Tables of one log: ``impressions`` as they were read, ``done`` and ``logged`` engagements, and ``names`` of impressions."""

    def __init__(self, db: duckdb.DuckDBPyConnection) -> None:
        self._db = db
        self._adding = db.cursor()  # since rows are added while others are streamed
        self._db.execute(_TABLES)
        self._has_impressions = False
        self.logged = 0
        """How many engagements of files of their own there are."""

    def add(self, name: str, rows: pa.Table) -> None:
        """Add rows to a table; ``impressions`` has the columns of its first ones."""
        self._adding.register("added", rows)
        if name == "impressions" and not self._has_impressions:
            self._adding.execute("create table impressions as select * from added")
            self._has_impressions = True
        else:
            self._adding.execute(f"insert into {name} by name select * from added")
        self.logged += rows.num_rows if name == "logged" else 0
        self._adding.unregister("added")

    def repeated(self) -> Iterator[pa.Table]:
        """Yield the impressions whose request has one of the same name before them."""
        return streamed(self._db, _REPEATED, ["place", "file_at", "named"])

    def drop_repeated(self) -> None:
        """Keep the first of the impressions of each name."""
        self._db.execute(f"delete from impressions where place in (select place from ({_REPEATED}))")

    def group(self) -> tuple[int, str]:
        """Group impressions into requests, in the order of their first times. Return how many the largest has, and its id."""
        self._db.execute(_REQUESTS)
        query = "select size, cast(request as varchar) from requests order by size desc, number limit 1"
        ((size, name),) = self._db.sql(query).fetchall()
        return size, name

    def mixed(self) -> tuple[int, str]:
        """Return how many requests have impressions of several sources, and the first one's id."""
        query = "select count(*), min_by(cast(request as varchar), number) from requests where mixed"
        ((count, name),) = self._db.sql(query).fetchall()
        return count, name or ""

    def requests(self) -> Iterator[pa.Table]:
        """Yield the requests, in order."""
        query = "select cast(request as varchar), served_at, spread, size from requests order by number"
        return streamed(self._db, query, ["request", "served_at", "spread", "size"])

    def impressions(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield columns of the impressions, with the numbers of their requests: by request, in each as they were read."""
        query = (
            f"select number, {', '.join(columns)} from impressions join requests using (request) order by number, place"
        )
        return streamed(self._db, query, ["number", *columns])

    def actions(self) -> list[str]:
        """Return the actions of ``logged``, in the order in which they first came."""
        found = self._db.sql("select action from logged group by action order by min(place)").fetchall()
        return [action for (action,) in found]

    def engagements(self, codes: Mapping[str, int]) -> Iterator[pa.Table]:
        """Yield all engagements in the order of their times, with the impressions' rows; -1 without an impression."""
        self.add("codes", pa.table({"action": list(codes), "code": pa.array(list(codes.values()), pa.int32())}))
        return streamed(self._db, _ENGAGEMENTS, ["at_ms", "code", "impression", "value", "request", "named"])


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
    if pa.types.is_list(column.type):
        lengths = pc.list_value_length(column).to_numpy()
        return Ragged(
            np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64))), column.flatten().to_numpy()
        )
    plain: Raw = column.to_numpy()
    return plain
