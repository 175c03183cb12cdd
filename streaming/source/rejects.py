"""Rows of logged files that cannot be used: where each is, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from basis.problems import Problem, Problems
from streaming.features.columns import Ids
from streaming.source.duck import shown

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


def as_problems(rejects: Sequence[Reject]) -> list[Problem]:
    """Return unusable rows as problems: by file and kind, the first hundred and how many more there are."""
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
    return found


class _Part(NamedTuple):
    """One file of several: its name, its first row among all, and the lines of its rows, which have to be looked up."""

    name: str
    first: int
    lines: Callable[[], Ids]


class _Found(NamedTuple):
    at: int
    column: str
    value: str
    reason: str
    detail: str


class Findings:
    """What is wrong with the rows of a source, as they are read. Rows are named by their number among all of its files' rows.

    ``whole``: all rows are read at once, so that what is wrong with all of them is raised, and need not wait for others.
    """

    def __init__(self, *, whole: bool) -> None:
        self.more: Counter[str] = Counter()
        """How many were refused beyond `KEPT`, by reason."""
        self.rows = 0
        """How many rows were read so far."""
        self._whole = whole
        self._parts: list[_Part] = []
        self._rejects: list[Reject] = []
        self._found: dict[_Found, None] = {}
        self._suspects: dict[tuple[str, str], Problem] = {}
        self._cleared: set[tuple[str, str]] = set()
        self._last: tuple[int, Ids] | None = None

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

    def reject(self, at: int, column: str, value: Any, reason: str, detail: str) -> None:
        """Refuse a row for its value in a column."""
        self._found[_Found(at, column, shown(value), reason, detail)] = None

    def suspect(self, column: str, detail: str, problem: Problem) -> None:
        """Note what is wrong with all rows so far: a problem, unless `clear` says that it is not wrong with others.

        Raises:
            Problems: there are no other rows.
        """
        if self._whole:
            raise Problems([problem])
        self._suspects.setdefault((column, detail), problem)

    def clear(self, column: str, detail: str) -> None:
        """Note that not all rows are wrong."""
        self._cleared.add((column, detail))

    def suspected(self) -> list[Problem]:
        """Return what was wrong with all rows; their rejects go."""
        guilty = {key: problem for key, problem in self._suspects.items() if key not in self._cleared}
        self._found = {each: None for each in self._found if (each.column, each.detail) not in guilty}
        return list(guilty.values())

    @property
    def rejects(self) -> list[Reject]:
        """All that were refused, each in the order in which it was found."""
        for at, column, value, reason, detail in self._found:
            file, line = self.place(at)
            self._rejects.append(Reject(file, f"{line}, column {column}", value, reason, detail))
        self._found.clear()
        return self._rejects

    def place(self, at: int) -> tuple[str, str]:
        """Return the file and the line of a row."""
        number = int(np.searchsorted([part.first for part in self._parts], at, side="right")) - 1
        part = self._parts[number]
        if self._last is None or self._last[0] != number:
            self._last = number, part.lines()
        return part.name, f"line {self._last[1][at - part.first]}"
