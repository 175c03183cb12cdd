"""Reads one logged file, wherever it is: an object of a store by a copy, which is there while it is read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from basis.problems import Problem, Problems, Unreadable
from streaming.features.columns import Ids
from streaming.source.files import FoundFile
from streaming.source.readers import read_file
from streaming.source.rows import Rows
from streaming.source.settings import File


def read_found(found: FoundFile, file: File, columns: Sequence[str] | None, most: int | None = None) -> Rows:
    """`read_file`, also of an object. What is wrong with it names the object."""
    if found.stored is None:
        return read_file(found, file, columns, most)
    with _copied(found) as copy:
        rows = read_file(copy, file, columns, most)
    missing = _renamed(rows.missing, copy, found)

    def find_lines() -> Ids:
        """Lines are only asked for where a row is refused, so the object is copied again for them."""
        with _copied(found) as copy:
            return read_file(copy, file, columns, most).lines()

    return rows._replace(lines=find_lines, missing=missing)


@contextmanager
def _copied(found: FoundFile) -> Iterator[FoundFile]:
    assert found.stored is not None
    with tempfile.TemporaryDirectory(prefix="minutely-") as folder:
        copy = found._replace(path=Path(folder, found.path.name), stored=None)
        try:
            found.stored.copy_to(copy.path)
            yield copy
        except Problems as problems:
            raise type(problems)(_renamed(problems.problems, copy, found)) from None
        except OSError as error:
            allowed = f"{error.strerror}; allowed: room for a copy in the temporary folder"
            raise Unreadable([Problem(found.name, "file", "not copied", allowed)]) from None


def _renamed(problems: Sequence[Problem], copy: FoundFile, found: FoundFile) -> list[Problem]:
    return [each._replace(file=found.name) if each.file == copy.name else each for each in problems]
