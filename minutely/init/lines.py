"""Lines of a config: what a name stands for, why, and whether it is only an alternative."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from minutely.init.words import identifier


class Line(NamedTuple):
    """A named line of a section. One that is ``out`` is a comment, for the reader to choose."""

    name: str
    value: dict[str, Any]
    why: str = ""
    out: bool = False


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """A name that no other line has."""
    name, number, known = identifier(wanted), 2, set(taken)
    while (found := name if number == 2 else f"{name}_{number - 1}") in known:
        number += 1
    return found
