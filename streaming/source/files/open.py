"""Reads one logged file, wherever it is: an object of a store by a copy, which is there while it is read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from basis.problems import Problem, Problems, Unreadable
from streaming.features.columns import Ids
from streaming.source.files.contents import Contents
from streaming.source.files.find import FoundFile
from streaming.source.files.local import open_local
from streaming.source.settings import File


@contextmanager
def open_found(
    found: FoundFile,
    file: File,
    columns: Sequence[str] | None,
    most: int | None = None,
    memory: int | None = None,
) -> Iterator[Contents]:
    """`open_local`, also of an object. What is wrong with it names the object."""
    if found.stored is None:
        with open_local(found, file, columns, most, memory) as rows:
            yield rows
        return

    def find_lines() -> Ids:
        """Lines are only asked for where a row is refused, so the object is copied again for them."""
        with _copied(found) as copy, open_local(copy, file, columns, most, memory) as again:
            for _ in again.tables:
                pass
            return again.lines()

    with _copied(found) as copy, open_local(copy, file, columns, most, memory) as rows:
        yield rows._replace(lines=find_lines, missing=_renamed(rows.missing, copy, found))


@contextmanager
def _copied(found: FoundFile) -> Iterator[FoundFile]:
    assert found.stored is not None
    with tempfile.TemporaryDirectory(prefix="minutely-") as folder:
        copy = found._replace(path=Path(folder, found.path.name), stored=None)
        try:
            found.stored.copy_to(copy.path)
        except OSError as error:
            allowed = f"{error.strerror}; allowed: room for a copy in the temporary folder"
            raise Unreadable([Problem(found.name, "file", "not copied", allowed)]) from None
        try:
            yield copy
        except Problems as problems:
            raise type(problems)(_renamed(problems.problems, copy, found)) from None


def _renamed(problems: Sequence[Problem], copy: FoundFile, found: FoundFile) -> list[Problem]:
    return [each._replace(file=found.name) if each.file == copy.name else each for each in problems]
