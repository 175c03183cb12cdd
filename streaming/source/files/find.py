"""Which files a source means: one, all that a pattern matches, or all of a folder, with what their folders' names say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from glob import has_magic
from itertools import takewhile
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

from basis.problems import Problem, Problems
from streaming.source.files.lake_tables import LOGS, refuse_tables
from streaming.source.settings import File

if TYPE_CHECKING:
    from streaming.source.files.objects import ObjectFolder, Stored

Folder: TypeAlias = "Path | ObjectFolder"
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
    """A file, and the columns that its folders name, as in ``day=2024-01-31/part-0.parquet``; None is a missing value.

    ``stored`` is the object where it is one of a store; then ``path`` is its place in the source's folder.
    """

    path: Path
    kind: Kind
    partitions: dict[str, str | None]
    stored: Stored | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.path if self.stored is None else self.stored)

    @property
    def size_bytes(self) -> int | None:
        """Its size, None where that cannot be seen."""
        try:
            return self.path.stat().st_size if self.stored is None else self.stored.size_bytes
        except OSError:
            return None


def folder_of(place: str) -> Folder:
    """Return the folder of a source: of this machine, or at an address such as ``s3://bucket/prefix``; `Problems` if it is none."""
    if "://" not in place:
        return Path(place)
    from streaming.source.files.objects import ObjectFolder  # the library is only loaded where an object store is used

    return ObjectFolder(place)


def find(folder: Folder, file: File) -> list[FoundFile]:
    """Return the files that a source means, in the order of their names.

    Raises:
        Problems: none is there, or it is not clear what one of them is.
        Unreadable: an object store does not answer, or gives no right to look.
    """
    if not isinstance(folder, Path):
        return [
            FoundFile(Path(each.path), _kind(str(each), each.path, file), _partitions(each.path), each)
            for each in _objects(folder, file)
        ]
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
    for each in found:
        require_utf8(each)
    refuse_tables(found, folder, _with_files, str)
    return [FoundFile(each, _kind(str(each), each, file), _partitions(_within(each, folder))) for each in found]


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        matches = list(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        allowed = "allowed: a pattern relative to the source's folder, such as day=*/*.parquet"
        raise Problems([Problem(str(folder), "file", repr(pattern), f"{error}; {allowed}")]) from None
    return sorted(each for each in matches if each.is_file() and not _is_hidden(each, folder))


def _objects(folder: ObjectFolder, file: File) -> list[Stored]:
    """Return the objects that a source means, by the rules of folders."""
    asked = PurePosixPath(file.file)
    fixed = PurePosixPath(*takewhile(lambda part: not has_magic(part), asked.parts))
    listed: list[Stored] | None = None
    if fixed != asked:
        listed = list(folder.within(fixed))
        matching = [each for each in listed if _matches(each.path.parts, asked.parts)]
        named = [each for each in listed if each.path == asked]
        found = named or [each for each in matching if not _is_hidden(each.path, PurePosixPath())]
    elif asked.parts and (one := folder.find(asked)) is not None:
        found = [one]
    else:
        listed = list(folder.within(asked))
        found = [each for each in listed if not _is_hidden(each.path, asked)]
    if not found:
        allowed = (
            "no data file there; allowed: at least one"
            if fixed != asked
            else "not there; allowed: a file in the source's folder"
        )
        raise Problems([Problem(folder / file.file, "file", "", allowed)])
    logs = [each.path for each in listed or () if not LOGS.isdisjoint(each.path.parts)]

    def below(place: PurePath) -> Iterator[PurePath]:
        if listed is None or not place.is_relative_to(fixed):
            return (each.path for each in folder.within(PurePosixPath(place)))
        return (path for path in logs if path.is_relative_to(place))

    refuse_tables([each.path for each in found], PurePosixPath(), below, lambda place: folder / str(place))
    return sorted(found, key=lambda each: each.path)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern as in `Path.glob`, both in parts."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[at:], pattern[1:]) for at in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def data_files(folder: Path) -> Iterator[Path]:
    """All files of a folder but those that writers leave beside their data, such as ``_SUCCESS`` and ``.part-0.crc``."""
    for each in folder.rglob("*"):
        if each.is_file() and not _is_hidden(each, folder):
            yield each


def require_utf8(path: PurePath) -> None:
    """Raise `Problems` for a name in another encoding: neither readers nor a config can name it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise Problems([Problem(named(path), "name", "not UTF-8", "allowed: names in UTF-8; rename it")]) from None


def named(path: PurePath | str) -> str:
    """Return how messages and configs write a name, whatever its encoding."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _with_files(place: PurePath) -> list[Path]:
    folder = Path(place)
    return [folder, *folder.glob("*")] if folder.is_dir() else []


def _is_hidden(path: PurePath, folder: PurePath) -> bool:
    return any(part.startswith((".", "_")) and part != ".." for part in _within(path, folder).parts)


def _within(path: PurePath, folder: PurePath) -> PurePath:
    return path.relative_to(folder) if path.is_relative_to(folder) else PurePath(path.name)


def kind_of(path: PurePath) -> Kind | None:
    """Return what a file is by its ending, None where that does not say."""
    plain = path.with_suffix("") if path.suffix in COMPRESSED else path
    return _KINDS.get(plain.suffix)


def _kind(name: str, path: PurePath, file: File) -> Kind:
    kind = file.format or kind_of(path)
    if kind is None:
        raise Problems([Problem(name, "ending", path.suffix, "allowed: format: parquet, csv or jsonl")])
    return kind


def _partitions(path: PurePath) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.parts[:-1])
    return {unquote(name): None if value == _NULL else unquote(value) for name, sign, value in pairs if sign and name}
