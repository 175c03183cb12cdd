"""Mistakes of the user, each with its place, reported all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple


class Problem(NamedTuple):
    """One mistake: in which file, where in it, which value, and what is allowed instead."""

    file: str
    place: str
    value: str
    allowed: str

    def __str__(self) -> str:
        value = f": {self.value}" if self.value else ""
        return f"{self.file}: {self.place}{value}; {self.allowed}"


class Problems(ValueError):
    """Mistakes in a configuration or in the data that it names, all that were found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = list(problems)


class Unreadable(Problems):
    """A file cannot be read for now, for example, no permission; its content may be fine."""


class ProblemList:
    """Collects mistakes over several steps, so that all are reported at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self._for_now: list[Problem] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Run a step; what it raises as `Problems` is noted, and the rest of the step left out."""
        try:
            yield
        except Problems as problems:
            new = [problem for problem in problems.problems if problem not in self.found]
            self.found += new
            self._for_now += new if isinstance(problems, Unreadable) else []

    def raise_any(self) -> None:
        """Raise what was noted, if anything; as `Unreadable` if it was nothing else."""
        if self.found:
            raise (Unreadable if self.found == self._for_now else Problems)(self.found)


class GapError(RuntimeError):
    """A log does not have the records that are to be read next; the message names where it begins or ends."""


class NoAnswerError(RuntimeError):
    """Something that was asked, such as the brokers, does not answer; the message names the address."""


class NotFiniteError(ValueError):
    """A weight that is to be published is no finite number; the message names it."""


class GuardedError(RuntimeError):
    """A trainer's weights are not fit to be published; the message says why. The last version published stays."""


class NoRoomError(RuntimeError):
    """This machine has no room for so many rows; the message names the table. What was there before stays."""


class UnreadableError(RuntimeError):
    """Nothing in a log can be read any more; the message names the partition, and what is wrong with its records."""


class BadFile(ValueError):
    """A published file is not what its manifest says; the message names it."""


class CannotListen(OSError):
    """Nobody can listen at an address: another program does, or it is none of this machine's."""
