"""Marks beside the versions: a pin, which replicas stay at, and a hold, which keeps trainers from continuing."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from basis.decoding import refusing
from basis.problems import BadFile
from paramserver.files import Files
from paramserver.manifest import Manifest, Millis, Version, checked_line, encode_checked, read_manifest

_PIN, _HOLD = "pin.json", "hold.json"
_Mark = TypeVar("_Mark")


class _Pin(msgspec.Struct):
    """Written before the rollback that is to hold replicas, so it says nothing until that is published as ``version``: until
    then, and where another version has that number, replicas stay at ``before``."""

    version: Version
    before: Version = 0


class Hold(msgspec.Struct, frozen=True):
    """Why nothing is published after a version, and since when (ms)."""

    reason: str
    after: Version
    at: Millis


_pin_decoder = msgspec.json.Decoder(_Pin)
_hold_decoder = msgspec.json.Decoder(Hold)


def read_pin(files: Files) -> int:
    """The version that replicas stay at; 0 where they take the newest. `BadFile` where the pin, or what it holds at, is damaged."""
    pin = _read(files, _PIN, _pin_decoder)
    if pin is None:
        return 0
    rollback = _rollback(files, pin.version)
    if rollback is None:
        return pin.before
    return rollback.version if rollback.trains_from else 0


def pin_next(files: Files, version: int) -> None:
    """Say that a rollback decides where replicas stay as soon as it is published as ``version``, which is the next step: at it,
    or, where training goes back as well, at none."""
    _write(files, _PIN, _Pin(version, read_pin(files)))


def unpin(files: Files) -> None:
    """Let replicas take the newest."""
    _write(files, _PIN, None)


def needed_by_pin(files: Files) -> set[int]:
    """The versions without which `read_pin` would say something else, or replicas could not go where it says."""
    pin = _read(files, _PIN, _pin_decoder)
    if pin is None:
        return set()
    try:
        return {pin.before if _rollback(files, pin.version) is None else pin.version}
    except BadFile:
        return {pin.before, pin.version}


def _rollback(files: Files, version: int) -> Manifest | None:
    """The rollback that is published as a version; None where nothing is, or something else."""
    problem: BadFile | None = None
    for base in (False, True):
        try:
            manifest = read_manifest(files, version, base=base)
        except FileNotFoundError:
            continue
        except BadFile as error:
            problem = error
            continue
        return manifest if manifest.goes_back_to else None
    if problem is not None:
        raise problem
    return None


def read_hold(files: Files) -> Hold | None:
    """Why no trainer may go on, None where one may."""
    return _read(files, _HOLD, _hold_decoder)


def write_hold(files: Files, hold: Hold | None) -> None:
    """Keep trainers from continuing; None lets them."""
    _write(files, _HOLD, hold)


def _read(files: Files, name: str, decoder: msgspec.json.Decoder[_Mark]) -> _Mark | None:
    try:
        line = checked_line(name, files.read(name))
    except FileNotFoundError:
        return None
    with refusing(lambda why: BadFile(f"{name}: {why}")):
        return decoder.decode(line)


def _write(files: Files, name: str, mark: object | None) -> None:
    if mark is None:
        files.delete(name)
    else:
        files.write(name, encode_checked(mark))
