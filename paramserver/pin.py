"""The pin: a version that replicas stay at, whatever is published after it, until it is taken away."""

from __future__ import annotations

import msgspec

from basis.problems import BadFile
from paramserver.files import Files
from paramserver.manifest import checked_line, encode_checked

_NAME = "pin.json"


class _Pin(msgspec.Struct):
    version: int


def read_pin(files: Files) -> int:
    """The version that replicas stay at; 0 where they take the newest. `BadFile` where the pin is damaged."""
    try:
        data = files.read(_NAME)
    except FileNotFoundError:
        return 0
    try:
        return msgspec.json.decode(checked_line(_NAME, data), type=_Pin).version
    except msgspec.DecodeError as error:
        raise BadFile(f"{_NAME}: {error}") from None


def write_pin(files: Files, version: int) -> None:
    """Hold replicas at a version; 0 lets them go."""
    if version:
        files.write(_NAME, encode_checked(_Pin(version)))
    else:
        files.delete(_NAME)
