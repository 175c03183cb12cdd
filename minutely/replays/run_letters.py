"""A run's dead letters, kept beside its results when its log goes: a line of JSON each, and at the end how many there were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from shlex import quote

import msgspec

from basis.decoding import refusing
from basis.problems import BadFile
from streaming.embedded_log import EmbeddedLog
from streaming.log import DEAD_LETTERS
from streaming.records.events import DeadLetter, decode_letter

_MOST = 100_000
_MOST_BYTES = 64 << 20
_RECORDS_AT_ONCE = 1000


class KeptLetters(msgspec.Struct, omit_defaults=True):
    """A line of the file: a letter, or how many there were in all, whether they are in the file or not."""

    letter: DeadLetter | None = None
    count: int | None = None


def told_letters(by_reason: Mapping[str, int], folder: Path) -> str:
    """Say of a run in ``folder`` for which reasons records were refused, and how to see them; nothing where none were."""
    if not by_reason:
        return ""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in by_reason.items())
    return f"Dead letters: {reasons}. minutely dead-letters --run {quote(str(folder))} shows them."


_decoder = msgspec.json.Decoder(KeptLetters)


def keep_letters(log: EmbeddedLog, partition: int, path: Path) -> None:
    """Write the first 100,000 letters of a log, up to 64 MiB."""
    end, size = log.end(DEAD_LETTERS, partition), 0
    with path.open("wb") as file:
        for letter in islice(_letters(log, partition, end), _MOST):
            line = msgspec.json.encode(KeptLetters(letter=letter)) + b"\n"
            size += len(line)
            if size > _MOST_BYTES:
                break
            file.write(line)
        file.write(msgspec.json.encode(KeptLetters(count=end)) + b"\n")


def _letters(log: EmbeddedLog, partition: int, end: int) -> Iterator[DeadLetter]:
    offset = 0
    while offset < end:
        records = log.read(DEAD_LETTERS, partition, offset, _RECORDS_AT_ONCE)
        yield from (decode_letter(record.value) for record in records)
        offset = records[-1].offset + 1


def kept_letters(path: Path) -> Iterator[KeptLetters]:
    """What `keep_letters` wrote; `BadFile` where somebody else did."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            with refusing(partial(_bad, path, number)):
                kept = _decoder.decode(line)
            yield kept


def _bad(path: Path, number: int, why: str) -> BadFile:
    return BadFile(f"{path}: line {number}: {why}")
