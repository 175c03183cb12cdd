"""The event times that a log may have. A wrong unit puts all of them near 1970, or far ahead."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem
from streaming.features.arrow_columns import to_ms
from streaming.features.kinds import Unit
from streaming.source.rows.raw import times
from streaming.source.rows.rows import Rows, as_shown
from streaming.source.settings import SourceSettings, TimeColumn

_DAY = timedelta(days=1)
_UNITS: tuple[Unit, ...] = ("s", "ms", "us", "ns")


class TimeBounds(NamedTuple):
    """The earliest and the latest time allowed (ms since 1970), and both as a text."""

    earliest: int
    latest: int
    allowed: str

    @classmethod
    def of(cls, settings: SourceSettings, now_ms: int) -> TimeBounds:
        """Return the bounds of the config; without ``latest``, up to a day after ``now_ms``."""
        tomorrow = datetime.fromtimestamp(now_ms / 1000, UTC) + _DAY
        latest = tomorrow if settings.latest is None else _midnight(settings.latest) + _DAY
        last = tomorrow.date() if settings.latest is None else settings.latest
        allowed = f"allowed: {settings.earliest} to {last}; source.earliest and source.latest change that"
        return cls(settings.earliest_ms, round(latest.timestamp() * 1000), allowed)

    def usable(self, rows: Rows, column: TimeColumn) -> tuple[pa.Array, pa.Array]:
        """Return the times of rows as int64 ms, and which rows have one within the bounds; the others are rejected.

        A problem if there are times but none is within the bounds: then the unit is wrong rather than the rows.
        """
        at, raw = times(rows, column), rows.column(column.column)
        future, early = (
            pc.fill_null(found, False) for found in (pc.greater(at, self.latest), pc.less(at, self.earliest))
        )
        good = pc.and_not(pc.is_valid(at), pc.or_(future, early))
        if pc.any(good).as_py():
            rows.findings.clear(rows.name, column.column, self.allowed)
        elif at.null_count < len(at):
            first = at.is_valid().index(True).as_py()
            (shown,) = as_shown(raw.slice(first, 1))
            value = f"{shown!r}, which is {_text(at[first].as_py())}"
            place, advice = f"column {column.column}", self._advice(column, shown)
            problem = Problem(rows.name, place, value, f"no time of the file is in range; {self.allowed}{advice}")
            rows.findings.suspect(rows.name, column.column, self.allowed, problem)
        rows.reject(pc.is_null(raw, nan_is_null=True), column.column, raw, "malformed", "no time")
        rows.reject(future, column.column, raw, "future", self.allowed)
        rows.reject(early, column.column, raw, "malformed", self.allowed)
        return at, good

    def _advice(self, column: TimeColumn, value: Any) -> str:
        """Suggest the unit in which a number would be within the bounds, if there is one."""
        try:
            number = pa.array([float(value)])
        except (TypeError, ValueError, OverflowError):
            return ""
        for unit in _UNITS:
            at = to_ms(number, unit)[0].as_py()
            if at is not None and self.earliest <= at <= self.latest:
                return f"; unit: {unit} instead of {column.unit} makes it {_text(at)}"
        return ""


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _text(milliseconds: int) -> str:
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):
        return "beyond the year 9999" if milliseconds > 0 else "before the year 1"
