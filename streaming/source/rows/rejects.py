"""Rows of logged files that cannot be used: where each is, and what is wrong with it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from basis.problems import Problem, Problems
from streaming.features.columns import Ids
from streaming.source.files.contents import changed, shown

_TOLD_ROWS = 100
KEPT = 100_000
"""Of how many rows a log's rejects are kept with their places and values; of the others only the reasons are counted."""


class Reject(NamedTuple):
    """A row that cannot be used: ``place`` names line and column."""

    file: str
    place: str
    value: str
    reason: str
    detail: str


def as_problems(rejects: Sequence[Reject], more: Mapping[str, int] | None = None) -> list[Problem]:
    """Return unusable rows as problems: by file and kind, the first hundred and how many more there are; ``more`` by reason."""
    found = []
    counts: Counter[tuple[str, str, str]] = Counter()
    for reject in rejects:
        kind = (reject.file, reject.reason, reject.detail)
        counts[kind] += 1
        if counts[kind] <= _TOLD_ROWS:
            found.append(Problem(reject.file, reject.place, reject.value, reject.detail))
    for (file, _, detail), count in counts.items():
        if count > _TOLD_ROWS:
            found.append(Problem(file, f"{count - _TOLD_ROWS} more lines", "", detail))
    return found + [Problem("logs", f"{count} more lines", "", reason) for reason, count in (more or {}).items()]


class _Part(NamedTuple):
    """One file of several: its name, its first row among all, and the lines of its rows, which have to be looked up."""

    name: str
    first: int
    lines: Callable[[], Ids]


class _Found(NamedTuple):
    at: int
    number: int
    column: str
    value: str
    reason: str
    detail: str
    source: str


class Findings:
    """What is wrong with the rows of one source or of several, as they are read. Rows are named by their number among those of
    all files.

    ``whole``: all rows are read at once, so that what is wrong with all of them is raised, and need not wait for others.
    """

    def __init__(self, *, whole: bool) -> None:
        self.rows = 0
        """How many rows were read so far."""
        self.more: Counter[str] = Counter()
        """How many were refused beyond `KEPT`, by reason."""
        self.empty = 0
        """How many rows of lists have no items."""
        self._whole = whole
        self._parts: list[_Part] = []
        self._rejects: list[Reject] = []
        self._found: dict[_Found, None] = {}  # the items of a row have its other values, which are told once
        self._suspects: dict[tuple[str, str, str], Problem] = {}
        self._cleared: set[tuple[str, str, str]] = set()

    def add_file(self, name: str, first: int, lines: Callable[[], Ids]) -> None:
        """Begin a file whose first row has this number; ``lines`` is asked once the file was read."""
        self._parts.append(_Part(name, first, lines))

    def add(self, reject: Reject) -> None:
        """Add a row that its reader refused."""
        if self.room:
            self._rejects.append(reject)
        else:
            self.more[reject.reason] += 1

    @property
    def room(self) -> int:
        """Of how many more rows places and values are kept."""
        return max(KEPT - len(self._rejects) - len(self._found), 0)

    def reject(self, source: str, at: int, number: int, column: str, value: Any, reason: str, detail: str) -> None:
        """Refuse a row of a source for its value in a column; of several that were made of it, the one of this number."""
        self._found[_Found(at, number, column, shown(value), reason, detail, source)] = None

    def suspect(self, source: str, column: str, detail: str, problem: Problem) -> None:
        """Note what is wrong with all rows of a source so far: a problem, unless `clear` says that it is not wrong with others.

        Raises:
            Problems: there are no other rows.
        """
        if self._whole:
            raise Problems([problem])
        self._suspects.setdefault((source, column, detail), problem)

    def clear(self, source: str, column: str, detail: str) -> None:
        """Note that not all rows are wrong."""
        self._cleared.add((source, column, detail))

    def suspected(self, source: str) -> list[Problem]:
        """Return what was wrong with all rows of a source."""
        return [problem for key, problem in self._suspects.items() if key[0] == source and key not in self._cleared]

    @property
    def rejects(self) -> list[Reject]:
        """All that were refused, each in the order in which it was found, but for what is wrong with all rows of a source."""
        guilty = self._suspects.keys() - self._cleared
        kept = [each for each in self._found if (each.source, each.column, each.detail) not in guilty]
        places = self._places(sorted({each.at for each in kept}))
        for at, _, column, value, reason, detail, _ in kept:
            file, line = places[at]
            self._rejects.append(Reject(file, f"{line}, column {column}", value, reason, detail))
        self._found.clear()
        return self._rejects

    def place(self, at: int) -> tuple[str, str]:
        """Return the file and the line of a row."""
        return self._places([at])[at]

    def _places(self, rows: list[int]) -> dict[int, tuple[str, str]]:
        """Return the files and lines of rows, in their order: the lines of one file are in memory at a time."""
        found: dict[int, tuple[str, str]] = {}
        firsts = [part.first for part in self._parts]
        for number, part in enumerate(self._parts):
            behind = (*firsts, self.rows)[number + 1]
            begin, end = bisect_left(rows, part.first), bisect_left(rows, behind)
            if begin < end:
                lines = part.lines()
                if len(lines) < behind - part.first:
                    raise changed(part.name)
                found.update((at, (part.name, f"line {lines[at - part.first]}")) for at in rows[begin:end])
        return found
