"""A follower of the delta log: knows its version, takes what is newer, in place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta import RowsChange, decode_rows
from paramserver.files import Files
from paramserver.manifest import Manifest
from paramserver.table import Table

_TRIES = 3
_NOTHING = 0
"""The parent of a version that holds all rows."""


class Follower:
    """Keeps ``tables`` equal to the newest version that it pulled, rows and default rows, byte for byte.

    A pull that fails leaves the last version that was wholly read in place, to be tried again. Where the versions that it
    needs are gone, or do not descend from its own, it starts over from the newest base. A version that begins a lineage
    replaces all rows at once.
    """

    def __init__(self, files: Files, tables: Mapping[str, Table]) -> None:
        self._files = files
        self._tables = tables
        self.manifest: Manifest | None = None

    @property
    def version(self) -> int:
        """The version that the tables hold; 0 before the first."""
        return self.manifest.version if self.manifest else 0

    def pull(self) -> Manifest | None:
        """Apply all versions newer than the tables', oldest first; the newest manifest, None where nothing is published.

        Raises:
            BadFile: a file is damaged and no other way leads past it; what was applied up to there stays.
        """
        for attempt in range(_TRIES):
            try:
                if not self._follow_past_damage():
                    self._start_over()
                    self._follow()
                return self.manifest
            except FileNotFoundError:  # compacted between its manifest and its files: look again
                if attempt == _TRIES - 1:
                    raise
        return self.manifest

    def _follow_past_damage(self) -> bool:
        """Follow; where a delta is damaged and a newer base leads past it, that is the way."""
        try:
            return self._follow()
        except BadFile:
            bases = manifests.versions(self._files, base=True)
            if not bases or bases[-1] <= self.version:
                raise
            return False

    def _follow(self) -> bool:
        """Apply deltas as long as there is a next one. Whether that led to the newest version."""
        moved = False
        while True:
            try:
                following = manifests.read_manifest(self._files, self.version + 1, base=False)
            except FileNotFoundError:
                newer = self._newer()
                if (self.version + 1, False) in newer:  # published since it was looked for: look again
                    raise
                return moved or not newer
            if following.parent not in (self.version, _NOTHING):
                return False
            changes = self._read(following)
            if following.parent != self.version:
                self._keep_only(changes)
            self._apply(changes)
            self.manifest = following
            moved = True

    def _newer(self) -> list[tuple[int, bool]]:
        """The versions after the tables', and whether they are bases."""
        found = [(at, base) for base in (False, True) for at in manifests.versions(self._files, base=base)]
        return [item for item in found if item[0] > self.version]

    def _start_over(self) -> None:
        """Make the tables equal to the newest base, in place: what it does not hold goes."""
        bases = manifests.versions(self._files, base=True)
        if not bases:
            raise BadFile(f"no base to start from, and no delta that follows version {self.version}")
        base = manifests.read_manifest(self._files, bases[-1], base=True)
        changes = self._read(base)
        self._keep_only(changes)
        self._apply(changes)
        self.manifest = base

    def _keep_only(self, changes: list[dict[str, RowsChange]]) -> None:
        """Erase every row that is not among these."""
        for name, table in self._tables.items():
            kept = [change[name].keys for change in changes if name in change]
            table.erase(np.setdiff1d(table.export().ids, np.concatenate([np.empty(0, np.int64), *kept])))

    def _read(self, manifest: Manifest) -> list[dict[str, RowsChange]]:
        """Everything is read and checked before anything is applied."""
        changes = [decode_rows(shard.rows.name, shard.rows.read(self._files)) for shard in manifest.shards]
        for change in changes:
            for name, rows in change.items():
                if name in self._tables and rows.embeddings.shape[1] != self._tables[name].dim:
                    raise BadFile(
                        f"version {manifest.version}: table {name}: rows of {rows.embeddings.shape[1]} values, "
                        f"this replica's have {self._tables[name].dim}"
                    )
        return changes

    def _apply(self, changes: list[dict[str, RowsChange]]) -> None:
        for change in changes:
            for name, rows in change.items():
                table = self._tables.get(name)
                if table is None:
                    continue
                if len(rows.expired):
                    table.erase(rows.expired)
                if len(rows.keys):
                    table.upsert(rows.keys, rows.embeddings)
                table.set_default_row(rows.default)
