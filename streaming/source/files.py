"""Which files a source means: one, all that a pattern matches, or all of a folder, with what their folders' names say."""

from __future__ import annotations

from collections.abc import Iterator
from glob import has_magic
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote

from basis.problems import Problem, Problems
from streaming.source.settings import File

Kind = Literal["parquet", "csv", "jsonl"]
_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
COMPRESSED = (".gz", ".zst")
_NULL = "__HIVE_DEFAULT_PARTITION__"


class FoundFile(NamedTuple):
    """A file, and the columns that its folders name, as in ``day=2024-01-31/part-0.parquet``; None is a missing value."""

    path: Path
    kind: Kind
    partitions: dict[str, str | None]


def find(folder: Path, file: File) -> list[FoundFile]:
    """Return the files that a source means, in the order of their names.

    Raises:
        Problems: none is there, or it is not clear what one of them is.
    """
    if not folder.is_dir():
        allowed = "no such folder; allowed: the folder of the logs, relative to the working directory, or --data DIR"
        raise Problems([Problem(str(folder.absolute()), "source.dir", repr(str(folder)), allowed)])
    path = folder / file.file
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(data_files(path))
    elif has_magic(file.file):
        found = _matching(folder, file.file)
    else:
        raise Problems([Problem(str(path), "file", "", "not there; allowed: a file in the source's folder")])
    if not found:
        raise Problems([Problem(str(path), "file", "", "no data file there; allowed: at least one")])
    return [FoundFile(each, _kind(each, file), _partitions(_within(each, folder))) for each in found]


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        matches = list(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        allowed = "allowed: a pattern relative to the source's folder, such as day=*/*.parquet"
        raise Problems([Problem(str(folder), "file", repr(pattern), f"{error}; {allowed}")]) from None
    return sorted(each for each in matches if each.is_file() and not _is_hidden(each, folder))


def data_files(folder: Path) -> Iterator[Path]:
    """All files of a folder but those that writers leave beside their data, such as ``_SUCCESS`` and ``.part-0.crc``."""
    for each in folder.rglob("*"):
        if each.is_file() and not _is_hidden(each, folder):
            yield each


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith((".", "_")) and part != ".." for part in _within(path, folder).parts)


def _within(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def kind_of(path: Path) -> Kind | None:
    """Return what a file is by its ending, None where that does not say."""
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    return _KINDS.get(plain.suffix)


def _kind(path: Path, file: File) -> Kind:
    kind = file.format or kind_of(path)
    if kind is None:
        raise Problems([Problem(str(path), "ending", path.suffix, "allowed: format: parquet, csv or jsonl")])
    return kind


def _partitions(path: Path) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.parts[:-1])
    return {unquote(name): None if value == _NULL else unquote(value) for name, sign, value in pairs if sign and name}
