"""Marks beside the versions: a pin, which replicas stay at, and a hold, which keeps trainers from going on."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from basis.decoding import UNDECODABLE, why
from basis.problems import BadFile
from paramserver.files import Files
from paramserver.manifest import VERSIONS, checked_line, encode_checked

_PIN, _HOLD = "pin.json", "hold.json"
_Mark = TypeVar("_Mark")


class _Pin(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=0, lt=VERSIONS)]


class Hold(msgspec.Struct, frozen=True):
    """Why nothing is published after a version, and since when (ms)."""

    reason: str
    after: int
    at: int


def read_pin(files: Files) -> int:
    """The version that replicas stay at; 0 where they take the newest. `BadFile` where the pin is damaged."""
    pin = _read(files, _PIN, _Pin)
    return pin.version if pin else 0


def write_pin(files: Files, version: int) -> None:
    """Keep replicas at a version; 0 lets them go."""
    _write(files, _PIN, _Pin(version) if version else None)


def read_hold(files: Files) -> Hold | None:
    """Why no trainer may go on, None where one may."""
    return _read(files, _HOLD, Hold)


def write_hold(files: Files, hold: Hold | None) -> None:
    """Keep trainers from going on; None lets them."""
    _write(files, _HOLD, hold)


def _read(files: Files, name: str, kind: type[_Mark]) -> _Mark | None:
    try:
        return msgspec.json.decode(checked_line(name, files.read(name)), type=kind)
    except FileNotFoundError:
        return None
    except UNDECODABLE as error:
        raise BadFile(f"{name}: {why(error)}") from None


def _write(files: Files, name: str, mark: object | None) -> None:
    if mark is None:
        files.delete(name)
    else:
        files.write(name, encode_checked(mark))
