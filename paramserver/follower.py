"""A follower of the delta log: knows its version, takes what is newer, in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    replaces all rows at once. ``applied`` is told of every version as soon as the tables hold it. While one is being applied, it
    is ``applying``, and readers of the tables see rows of both versions, each row whole. Versions of another ``fingerprint``
    than that given are refused.
    """

    def __init__(
        self,
        files: Files,
        tables: Mapping[str, Table],
        applied: Callable[[Manifest], None] = lambda manifest: None,
        fingerprint: str | None = None,
    ) -> None:
        self._files = files
        self._tables = tables
        self._applied = applied
        self._fingerprint = fingerprint
        self.manifest: Manifest | None = None
        self.applying: Manifest | None = None

    @property
    def version(self) -> int:
        """The version that the tables hold; 0 before the first."""
        return self.manifest.version if self.manifest else 0

    def pull(self, until: int | None = None) -> Manifest | None:
        """Apply all versions newer than the tables', oldest first; the newest manifest, None where nothing is published.

        With ``until`` the tables go to that version, also back to it, or as near as what is published leads.

        Raises:
            BadFile: a file is damaged and no other way leads past it; what was applied up to there stays.
        """
        for attempt in range(_TRIES):
            try:
                back = until is not None and self.version > until
                if back or not self._follow_past_damage(until):
                    self._start_over(until)
                    self._follow(until)
                return self.manifest
            except FileNotFoundError:  # compacted between its manifest and its files: look again
                if attempt == _TRIES - 1:
                    raise
        return self.manifest

    def _follow_past_damage(self, until: int | None) -> bool:
        """Follow; where a delta is damaged and a newer base leads past it, that is the way."""
        try:
            return self._follow(until)
        except BadFile:
            bases = self._bases(until)
            if not bases or bases[-1] <= self.version:
                raise
            return False

    def _bases(self, until: int | None) -> list[int]:
        return [at for at in manifests.versions(self._files, base=True) if until is None or at <= until]

    def _follow(self, until: int | None) -> bool:
        """Apply deltas as long as there is a next one. Whether that led to the newest version."""
        moved = False
        while self.version != until:
            try:
                following = manifests.read_manifest(self._files, self.version + 1, base=False)
            except FileNotFoundError:
                return moved or not self._is_behind()
            if following.parent not in (self.version, _NOTHING):
                return False
            changes = self._read(following)
            self._become(following, changes, whole=following.parent != self.version)
            moved = True
        return True

    def _is_behind(self) -> bool:
        return any(
            version > self.version for base in (False, True) for version in manifests.versions(self._files, base=base)
        )

    def _start_over(self, until: int | None) -> None:
        """Make the tables equal to the newest base, or else to the first version, in place: what it does not hold goes."""
        bases = self._bases(until)
        try:
            base = manifests.read_manifest(self._files, bases[-1] if bases else 1, base=bool(bases))
        except FileNotFoundError:
            if bases:
                raise
            raise BadFile(f"no base to start from, and no delta that follows version {self.version}") from None
        self._become(base, self._read(base), whole=True)

    def _become(self, manifest: Manifest, changes: list[dict[str, RowsChange]], *, whole: bool) -> None:
        self.applying = manifest
        if whole:
            self._keep_only(changes)
        self._apply(changes)
        self.manifest, self.applying = manifest, None
        self._applied(manifest)

    def _keep_only(self, changes: list[dict[str, RowsChange]]) -> None:
        """Erase every row that is not among these."""
        for name, table in self._tables.items():
            kept = [change[name].keys for change in changes if name in change]
            table.erase(np.setdiff1d(table.export().ids, np.concatenate([np.empty(0, np.int64), *kept])))

    def _read(self, manifest: Manifest) -> list[dict[str, RowsChange]]:
        """Everything is read and checked before anything is applied."""
        if self._fingerprint not in (None, manifest.fingerprint):
            raise BadFile(
                f"version {manifest.version}: made by another config: features, labels, model or tables differ"
            )
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
