"""What a replica's rows are checked against: for each table the sum modulo 2**128 of a hash of every id and its values."""

from __future__ import annotations

from collections.abc import Iterator

from paramserver import _native
from paramserver.delta import Delta
from paramserver.precision import Precision, rounded
from paramserver.table import Table

_ROWS_AT_ONCE = 8192


class Checksums:
    """Of what is published, kept by its writer: only a version's changes are looked at. To take one twice is to take it once."""

    def __init__(self, precision: Precision) -> None:
        self._precision = precision
        self._tables: dict[str, _native.Checksum] = {}

    def take(self, delta: Delta) -> None:
        """Some rows changed, and ids expired before."""
        for name, table in delta.items():
            rows = table.rows
            if name not in self._tables:
                self._tables[name] = _native.Checksum(rows.embeddings.shape[1])
            if len(rows.expired):
                self._tables[name].remove(rows.expired)
            self._tables[name].set(rows.ids, rounded(rows.embeddings, self._precision))

    def values(self) -> dict[str, str]:
        """By table, in 32 hex digits."""
        return {name: _hex(table.value()) for name, table in self._tables.items()}


def checksum_of(table: Table) -> str:
    """Of a replica's table, in 32 hex digits. Runs beside readers; holds the ids."""
    ids = table.ids()
    total = 0
    for at in _steps(len(ids)):
        part = ids[at : at + _ROWS_AT_ONCE]
        low, high = _native.checksum_of(part, table.lookup(part))
        total += (high << 64) + low
    return _hex((total & (1 << 64) - 1, total >> 64 & (1 << 64) - 1))


def _steps(count: int) -> Iterator[int]:
    yield from range(0, count, _ROWS_AT_ONCE)


def _hex(value: tuple[int, int]) -> str:
    low, high = value
    return f"{high:016x}{low:016x}"
