"""How a file is written, by its first bytes: Parquet, JSON lines, or CSV with its delimiter, encoding and header."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path
from typing import Any

import pyarrow as pa

from basis.decoding import why
from basis.problems import Problem, Unreadable
from streaming.source.files.find import Kind, kind_of, require_utf8

_HEAD_BYTES = 1 << 18
_LINES = 200
_DELIMITERS = (",", "\t", ";", "|")
_REGULAR = 0.9
"""The share of lines with as many fields as the header has, from which on a file counts as a table."""


def sniff(path: Path) -> dict[str, Any] | None:
    """What a config says of a file beside its name, as keys of `File`; None where it is no table that can be read.

    Raises:
        Problems: its name is not UTF-8.
        Unreadable: the operating system or a damaged compression keeps its bytes back.
    """
    require_utf8(path)
    head = _head(path)
    by_ending = kind_of(path)
    kind = by_ending or _kind_by(head)
    if kind is None:
        return None
    found: dict[str, Any] = {} if by_ending else {"format": kind}
    if kind != "csv":
        return found
    encoding = _encoding(head)
    lines = _lines(head, encoding)
    delimiter = _delimiter(lines) or ("," if by_ending else None)
    if delimiter is None:
        return None
    if delimiter != ",":
        found["delimiter"] = delimiter
    if encoding != "utf-8-sig":
        found["encoding"] = encoding
    header = next(csv.reader(lines, delimiter=delimiter), [])
    if header and not _is_header(header):
        found["columns"] = [f"column_{number}" for number in range(1, len(header) + 1)]
    return found


def _head(path: Path) -> bytes:
    try:
        with path.open("rb"), pa.input_stream(str(path), compression="detect") as reader:
            head: bytes = reader.read(_HEAD_BYTES)
            return head
    except (OSError, pa.ArrowException) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else why(error)
        raise Unreadable([Problem(str(path), "file", said, "allowed: a file that can be read")]) from None


def _kind_by(head: bytes) -> Kind | None:
    """What a file with an unknown ending is: `csv` for any text, whose delimiter then decides."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if _encoding(head) != "utf-16" and b"\0" in head:
        return None
    return "jsonl" if head.lstrip().startswith(b"{") else "csv"


def _encoding(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    whole = head.rpartition(b"\n")[0] or head  # the last character may have been cut
    for name in ("utf-8-sig", "cp1252"):
        try:
            whole.decode(name)
            return name
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _lines(head: bytes, encoding: str) -> list[str]:
    lines = head.decode(encoding, "ignore").splitlines()
    whole = lines[:-1] if len(head) == _HEAD_BYTES else lines  # the last one was cut
    return [line for line in whole if line.strip()][:_LINES]


def _delimiter(lines: list[str]) -> str | None:
    """The delimiter that makes the most columns out of a header and nearly all lines after it."""
    columns = {each: _columns(lines, each) for each in _DELIMITERS}
    best = max(_DELIMITERS, key=lambda each: columns[each])
    return best if columns[best] > 1 else None


def _columns(lines: list[str], delimiter: str) -> int:
    try:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error:
        return 0
    regular = bool(widths) and len(widths) > 1 and widths.count(widths[0]) >= _REGULAR * len(widths)
    return widths[0] if regular else 0


def _is_header(fields: list[str]) -> bool:
    """Whether a first line can be names: none of them empty, given twice, or a number."""
    return len(set(fields)) == len(fields) and not any(_is_number(field) for field in fields)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ".") or "0")
        return True
    except ValueError:
        return False
