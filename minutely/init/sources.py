"""Which files belong together, and their first rows: parts of one log are one source, as a folder or a pattern."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from basis.problems import Problem, ProblemList, Problems
from minutely.init.profile import has_decimal_comma, texts_for_missing
from minutely.init.sniff import sniff
from minutely.init.words import identifier
from streaming.source.files.find import data_files, find, named
from streaming.source.files.open import open_found
from streaming.source.rows.rows import Rows
from streaming.source.rows.walk import read
from streaming.source.settings import File

ROWS = 100_000
"""How many rows of a source are looked at, its first ones."""
_PART = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|\d+")
ALIKE = 0.5
"""The share of their columns from which on two files hold rows of the same kind."""
_GENERIC = re.compile(r"(part|data|file|log|chunk)?[\W_]*", re.IGNORECASE)


class Source(NamedTuple):
    """Files that are read together: what a config calls them, their size, their first rows, columns that cannot be used, and texts
    that stand for what is missing, each with a column that has it."""

    name: str
    file: File
    size: int
    rows: Rows
    unusable: list[Problem]
    missing: dict[str, str]

    @property
    def seen(self) -> str:
        """How many rows it has, as far as was read."""
        count = self.rows.table.num_rows
        return f"the first {count:,} rows" if count >= ROWS else f"{count:,} rows"


class Found(NamedTuple):
    """The folder that all files are in, the sources among them, and files that cannot be used, with the reason."""

    folder: Path
    sources: list[Source]
    passed_over: dict[str, str]


def find_sources(paths: Sequence[Path]) -> Found:
    """Return what is in files and folders.

    Raises:
        Problems: a path is not there, a folder has no files, a file that was named cannot be used, or all of a folder cannot.
    """
    files = sorted({file for path in paths for file in _files(path)})
    folder = _folder(paths)
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files:
        groups[_template(_within(folder, file))].append(file)
    found: list[Source] = []
    passed_over: dict[str, str] = {}
    problems = ProblemList()
    for template, members in groups.items():
        for name, group in _split(folder, template, members):
            try:
                found.append(_source(folder, name, group))
            except Problems as error:
                if group[0] in paths:
                    raise
                first = error.problems[0]
                passed_over[named(name)] = f"{first.place}: {first.value}"
                problems.found += error.problems
    if not found:
        problems.raise_any()
    return Found(folder, found, passed_over)


_TABLES = "allowed: Parquet, CSV (with , ; | or a tab between columns) or JSON lines, also compressed as .gz or .zst"


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise Problems([Problem(str(path), "path", "not there", "allowed: files of logs, or a folder of them")])
    files = list(data_files(path))
    if not files:
        allowed = "no files in it; allowed: a folder with logs (names that begin with . or _ are passed over)"
        raise Problems([Problem(str(path), "folder", "empty", allowed)])
    return files


def _folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that all are in, but above those that name a column, as ``day=2024-01-31`` does."""
    folders = [path if path.is_dir() else path.parent for path in paths]
    common = folders[0]
    if len(set(folders)) > 1:
        absolute = Path(commonpath([path.absolute() for path in folders]))
        common = absolute if any(path.is_absolute() for path in folders) else Path(os.path.relpath(absolute))
    while "=" in common.name:
        common = common.parent
    return common


def _within(folder: Path, file: Path) -> Path:
    return Path(os.path.relpath(file, folder))


def _template(path: Path) -> str:
    """A file's name with a star for what differs between parts: numbers, and values in the names of folders."""
    *folders, name = path.parts
    starred = [f"{each.partition('=')[0]}=*" if "=" in each else _PART.sub("*", each) for each in folders]
    return "/".join([*starred, _PART.sub("*", name)])


def _split(folder: Path, template: str, members: list[Path]) -> list[tuple[str, list[Path]]]:
    """What a config calls files of one template: their folder or a pattern where that means these alone, else each by its name."""
    is_part = "=" not in template and _GENERIC.fullmatch(
        PurePosixPath(template).name.partition(".")[0].replace("*", "")
    )
    if (len(members) > 1 or is_part) and _are_alike(
        members[0], members[-1]
    ):  # a lone part-0 is the first of its folder
        top = _within(folder, Path(commonpath([file.parent for file in members]))).as_posix()
        for name in (top, template) if len(members) > 1 else (top,):
            if name != "." and [each.path for each in find(folder, File(file=name, format="csv"))] == sorted(members):
                return [(name, members)]
    return [(_within(folder, file).as_posix(), [file]) for file in members]


def _are_alike(one: Path, other: Path) -> bool:
    """Whether two files share most of their columns; what cannot be read, such as an empty part, is like any."""
    try:
        first, second = (_columns(path) for path in (one, other))
    except Problems:
        return True
    return len(first & second) >= ALIKE * len(first | second)


def _columns(path: Path) -> set[str]:
    file = _file(path.name, path)
    (found,) = find(path.parent, file)
    with open_found(found, file, None, 1) as contents:
        return set(next(contents.tables).column_names)


def _file(name: str, part: Path) -> File:
    """What a config says of files called ``name``, by one of them."""
    written = sniff(part)
    if written is None:
        raise Problems([Problem(str(part), "file", "no table", _TABLES)])
    return File.model_validate({"file": name, **written})


def _source(folder: Path, name: str, members: list[Path]) -> Source:
    file = _file(name, next((each for each in members if each.stat().st_size), members[0]))
    found = find(folder, file)
    first = next((each for each in found if each.path.stat().st_size), found[0])
    with open_found(first, file, None, ROWS) as head:
        columns = next(head.tables).column_names
    if not columns:
        raise Problems([Problem(str(first.path), "columns", "none", "allowed: a file with columns that can be used")])
    rows = read(folder, file, columns, ROWS)
    if missing := texts_for_missing(rows.table):
        file = file.model_copy(update={"missing": list(missing)})
        rows = read(folder, file, columns, ROWS)
    if file.delimiter != "," and has_decimal_comma(rows.table):
        file, rows.decimal = file.model_copy(update={"decimal": ","}), ","
    return Source(_name(file.file), file, sum(each.stat().st_size for each in members), rows, head.missing, missing)


def _name(file: str) -> str:
    """A source's name: that of its file without its ending, or of its folder where the file's says nothing."""
    parts = [part for part in PurePosixPath(file).parts if "=" not in part]
    stems = [part.partition(".")[0].replace("*", "") for part in reversed(parts)]
    return identifier(next((stem for stem in stems if not _GENERIC.fullmatch(stem)), stems[0] if stems else "log"))
