"""Side tables for serving: read from the files that the config names, and again when those change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from basis.problems import Problems, Unreadable
from streaming.features.kinds import Feature
from streaming.features.transforms import is_derived
from streaming.source.files.find import Folder, FoundFile, find
from streaming.source.rows.rejects import Findings
from streaming.source.rows.side_tables import SideTable, read_side
from streaming.source.settings import SourceSettings

_log = logging.getLogger("minutely.serve")

_LOOK_SECONDS = 1.0
_LOOK_AT_STORE_SECONDS = 60.0
"""Each look is a request that is paid for."""


class _Stamp(NamedTuple):
    name: str
    changed_ns: int
    size_bytes: int
    content: int | str | None

    @classmethod
    def of(cls, found: FoundFile) -> _Stamp:
        if found.stored is not None:
            return cls(found.name, found.stored.changed_ns, found.stored.size_bytes, found.stored.tag)
        stat = found.path.stat()
        return cls(found.name, stat.st_mtime_ns, stat.st_size, stat.st_ino)


_Stamps = tuple[_Stamp, ...]
"""Of all files of a side table."""


class Sides:
    """The side tables that features come from; `Problems` where one cannot be read at first.

    One thread calls `step`, which reads a file that changed once it has looked the same twice, so that one that is being
    written is left alone. ``tables`` is replaced as a whole, so a reader that takes it once sees each table at one moment. A
    file that cannot be used any more changes nothing but ``problem``; one that may not be read is tried again at each look.
    """

    def __init__(self, settings: SourceSettings, features: Mapping[str, Feature], folder: Callable[[], Folder]) -> None:
        wanted = {item.side for item in features.values() if not is_derived(item) and item.side is not None}
        self._settings = settings
        self._features = features
        self._names = [name for name in settings.sides if name in wanted]
        self._folder: Folder = folder() if self._names else Path()
        self._problems: dict[str, str] = {}
        self._seen = {name: self._stamp(name) for name in self._names}
        self._read = dict(self._seen)
        self.tables: Mapping[str, SideTable] = {name: self._load(name) for name in self._names}

    @property
    def problem(self) -> str | None:
        """Why a table is older than its file."""
        return next(iter(self._problems.values()), None)

    def step(self) -> float:
        """Look at the files; how long to sleep."""
        for name in self._names:
            stamp = self._stamp(name)
            settled, self._seen[name] = stamp == self._seen[name], stamp
            if settled and stamp != self._read[name]:
                self._reload(name, stamp)
        return _LOOK_SECONDS if isinstance(self._folder, Path) else _LOOK_AT_STORE_SECONDS

    def _reload(self, name: str, stamp: _Stamps | None) -> None:
        self._read[name] = stamp
        try:
            table = self._load(name)
        except Exception as error:  # whatever it is, serve what was read before, and log that
            if isinstance(error, Unreadable):
                self._read[name] = None  # to be tried again, since rights may come back without a change
            why = error.problems[:3] if isinstance(error, Problems) else [f"{type(error).__name__}: {error}"]
            self._tell(name, f"side table {name}: {'; '.join(map(str, why))}")
            return
        if self._stamp(name) != stamp:  # it changed while it was read
            self._read[name] = None
            return
        self._problems.pop(name, None)
        self.tables = {**self.tables, name: table}
        _log.info("side table %s: reloaded", name)

    def _tell(self, name: str, problem: str) -> None:
        if self._problems.get(name) != problem:
            self._problems[name] = problem
            _log.error("%s; what was read before is served", problem)

    def _load(self, name: str) -> SideTable:
        findings: list[Findings] = []
        table = read_side(self._folder, self._settings, name, self._features, findings)
        if table.problems:
            raise Problems(table.problems)
        rejects = sum(len(each.rejects) for each in findings)
        if rejects:
            _log.warning("side table %s: %d values cannot be read, and are taken for missing", name, rejects)
        return table

    def _stamp(self, name: str) -> _Stamps | None:
        try:
            return tuple(map(_Stamp.of, find(self._folder, self._settings.sides[name])))
        except (OSError, Problems):
            return None
