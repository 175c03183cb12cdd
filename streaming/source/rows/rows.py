"""Rows of logged files that know their place, so that what is wrong with one can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, Problems
from streaming.features.columns import Ids
from streaming.source.files.contents import shown
from streaming.source.rows.rejects import Findings


class Items(NamedTuple):
    """Of rows that were made of one: ``number`` int64 tells them apart, ``columns`` are those with values of their own."""

    number: pa.Array
    columns: frozenset[str]


@dataclass
class Rows:
    """Rows read from one file or several: all, or some of them. ``at`` int64 says which of all rows each is; ``items``, where a
    row was made several, which of them.

    ``missing`` has the columns that were asked for and are not there.
    """

    name: str
    table: pa.Table
    at: pa.Array
    findings: Findings
    decimal: str = "."
    missing: list[Problem] = field(default_factory=list)
    items: Items | None = None
    _told: dict[tuple[str, str, str], Ids] = field(default_factory=dict)

    def column(self, name: str) -> pa.Array:
        """Return a column; an empty `Problems` if it is missing, which ``missing`` already reports."""
        if name not in self.table.column_names:
            raise Problems([])
        return self.table.column(name).combine_chunks()

    def place(self, row: int) -> tuple[str, str]:
        """Return the file and the line of a row of the table."""
        return self.findings.place(self.at[row].as_py())

    def reject(
        self,
        broken: pa.Array,
        columns: str | Sequence[str],
        values: pa.Array | pa.ChunkedArray,
        reason: str,
        detail: str,
    ) -> None:
        """Reject the rows where ``broken`` is true, for their value in a column, or in several together. Each counts once, but
        where several were made of one row, a value that is the row's counts once for all."""
        chosen = pc.indices_nonzero(broken)
        if not len(chosen):
            return
        columns = [columns] if isinstance(columns, str) else columns
        column = "+".join(columns)
        items = self.items if self.items is not None and not self.items.columns.isdisjoint(columns) else None
        numbers = (self.at if items is None else items.number).take(chosen).to_numpy()
        told = self._told.get((column, reason, detail), np.zeros(0, np.int64))  # two features may use one column
        new = np.flatnonzero(np.isin(numbers, told, invert=True))
        self._told[column, reason, detail] = np.union1d(told, numbers)
        room = self.findings.room
        kept = chosen.take(pa.array(new[:room]))
        if len(new) > room:
            self.findings.more[reason] += len(np.unique(numbers[new[room:]]))
        at = self.at.take(kept).to_pylist()
        for row, number, value in zip(at, numbers[new[:room]].tolist(), as_shown(pc.take(values, kept)), strict=True):
            self.findings.reject(self.name, row, number, column, value, reason, detail)

    def reject_broken(self, broken: pa.Array | None, column: str, values: pa.Array, detail: str, allowed: str) -> None:
        """Reject the rows where ``broken`` is true; a problem if those are all rows with a value."""
        count = 0 if broken is None else pc.sum(broken).as_py() or 0
        valued = len(values) - values.null_count
        if valued > count:
            self.findings.clear(self.name, column, detail)
        if not count:
            return
        if count == valued:
            text = f"values such as {shown(as_shown(values.drop_null()[:1])[0])}"
            self.findings.suspect(self.name, column, detail, Problem(self.name, f"column {column}", text, allowed))
        self.reject(broken, column, values, "malformed", detail)

    def keep(self, mask: pa.Array) -> None:
        """Keep only the rows where ``mask`` is true."""
        self.table, self.at = self.table.filter(mask), self.at.filter(mask)
        if self.items is not None:
            self.items = self.items._replace(number=self.items.number.filter(mask))


def as_shown(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return values to show in messages; times as texts, since Python's types cannot hold all of Arrow's times."""
    found: list[Any] = (values.cast(pa.string()) if pa.types.is_temporal(values.type) else values).to_pylist()
    return found
