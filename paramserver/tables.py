"""The tables of a model, and what is done to all of them at once: twenty tables in the time of two or three."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paramserver import _native
from paramserver.options import check
from paramserver.table import Floats, Rows, Table


class TableIds(NamedTuple):
    """The ids of a batch in one table, and where they begin and end in the batch's."""

    table: str
    ids: NDArray[np.int64]
    start: int
    stop: int


class BatchIds(NamedTuple):
    """The ids of a batch, int64 [n], those of one of ``tables`` after those of another, and where those of each end."""

    tables: list[str]
    ids: NDArray[np.int64]
    ends: list[int]

    def parts(self) -> Iterator[TableIds]:
        """The ids of each table."""
        start = 0
        for table, stop in zip(self.tables, self.ends, strict=True):
            yield TableIds(table, self.ids[start:stop], start, stop)
            start = stop


class Tables(Mapping[str, Table]):
    """Tables by name, whose rows are of one length, and their batched operations in one call each, see `Table`.

    >>> import numpy as np
    >>> from paramserver.table import Table
    >>> from paramserver.tables import BatchIds, Tables
    >>> tables = Tables({"user": Table(2), "item": Table(2)})
    >>> batch, out = BatchIds(["user", "item"], np.array([7, 8, 7]), [1, 3]), np.empty((3, 2), np.float32)
    >>> tables.lookup_or_insert(batch, 0, out)
    >>> len(tables["user"]), len(tables["item"])
    (1, 2)
    """

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = dict(tables)
        self._native = _native.NativeTables([table.native for table in tables.values()])
        self._state_dims = [table.state_dim for table in tables.values()]

    def __getitem__(self, name: str) -> Table:
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def lookup(self, batch: BatchIds, out: Floats) -> None:
        """Write the embeddings of a batch, whose tables are these in this order, into ``out``, float32 [n, dim]."""
        self._native.lookup(batch.ids, batch.ends, out)

    def lookup_or_insert(self, batch: BatchIds, now_ms: int, out: Floats) -> None:
        """As `lookup`, and count the occurrences."""
        self._native.lookup_or_insert(batch.ids, batch.ends, now_ms, out)

    def apply(self, batch: BatchIds, gradients: Floats, now_ms: int) -> None:
        """One optimizer step for each id of a table, by gradients float32 [n, dim]."""
        self._native.apply(batch.ids, batch.ends, gradients, now_ms)

    def expire(self, now_ms: int, budget: int) -> int:
        """Remove rows whose time is over, looking at about ``budget`` places of each table; how many."""
        check("budget", budget, "at least 1", budget >= 1)
        return self._native.expire(now_ms, budget)

    def seal(self) -> dict[str, Rows]:
        """By table the rows that changed since the last seal, and the ids that left; views of arrays that all share."""
        ids, embeddings, state, last_seen, counts, expired, defaults, default_states, ends, left = self._native.seal()
        sealed: dict[str, Rows] = {}
        start = state_start = expired_start = default_start = 0
        for at, (name, width) in enumerate(zip(self._tables, self._state_dims, strict=True)):
            stop, expired_stop = ends[at], left[at]
            state_stop, default_stop = state_start + (stop - start) * width, default_start + width
            sealed[name] = Rows(
                ids[start:stop],
                embeddings[start:stop],
                state[state_start:state_stop].reshape(stop - start, width),
                last_seen[start:stop],
                counts[start:stop],
                expired[expired_start:expired_stop],
                defaults[at],
                default_states[default_start:default_stop],
            )
            start, state_start, expired_start, default_start = stop, state_stop, expired_stop, default_stop
        return sealed
