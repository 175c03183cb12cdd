"""Tables of data lakes: folders in which not every file counts, since a log beside them says which do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePath

from basis.problems import Problem, Problems

_DELTA, _HUDI, _SPARK, _ICEBERG = "_delta_log", ".hoodie", "_spark_metadata", "metadata"
_KINDS = {
    _DELTA: "a Delta table",
    _HUDI: "a Hudi table",
    _SPARK: "written by Spark's streaming sink",
    _ICEBERG: "an Iceberg table",
}
LOGS = frozenset(_KINDS)
"""The names of the logs' folders."""
_ICEBERG_LOG = ".metadata.json"
_ALLOWED = "allowed: files whose rows all count, such as a Parquet export of its current version"


def refuse_tables(
    files: Iterable[PurePath],
    top: PurePath,
    below: Callable[[PurePath], Iterable[PurePath]],
    named: Callable[[PurePath], str],
) -> None:
    """Raise `Problems` if files are of a table, whichever way they were found: each folder from ``top`` to theirs is looked at.

    ``below`` returns the files of a folder, if it is there; ``named`` what messages call one.
    """
    for folder in sorted(_folders(files, top)):
        for log, kind in _KINDS.items():
            if any(log != _ICEBERG or each.name.endswith(_ICEBERG_LOG) for each in below(folder / log)):
                raise Problems([Problem(named(folder), "file", f"{kind}, whose files hold deleted rows too", _ALLOWED)])


def _folders(files: Iterable[PurePath], top: PurePath) -> set[PurePath]:
    found: set[PurePath] = set()
    for file in files:
        for folder in file.parents:
            if folder in found:
                break
            found.add(folder)
            if folder == top:
                break
    return found
