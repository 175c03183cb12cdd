"""A follower of the delta log: knows its version, takes what is newer, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.checksum import checksum_of
from paramserver.delta import Ids, RowsChange, decode_rows
from paramserver.files import Files
from paramserver.fold import find
from paramserver.form import check_form, fingerprint_of
from paramserver.history import path_to
from paramserver.manifest import Manifest, Shard
from paramserver.marks import read_pin
from paramserver.table import Table

Changes: TypeAlias = Mapping[str, RowsChange]

_TRIES = 3
_HELD_BYTES = 16 << 20
_NOTHING = 0
"""The parent of a version that holds all rows."""


class Follower:
    """Keeps ``tables`` equal to the newest version that it pulled, rows and default rows, byte for byte in their row format.

    A pull that fails while it reads leaves the last version in place, to be tried again. One that fails while rows change leaves
    none: ``manifest`` is None, and the next pull loads all rows again. Where the versions that it needs are gone, or do not
    descend from its own, it starts over from the newest base. A version that begins a lineage replaces all rows. Where a
    version is pinned, that is the last one taken.

    ``applied`` is called with every version as soon as the tables hold it. While one is being applied, it is ``applying``, and
    readers of the tables see rows of both versions, each row whole. Versions of another ``fingerprint`` than given are refused.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from paramserver.delta_log import Cut, DeltaLog
    >>> from paramserver.files import LocalFiles
    >>> from paramserver.follower import Follower
    >>> from paramserver.options import SGD
    >>> from paramserver.table import Table
    >>> with TemporaryDirectory() as folder:
    ...     files = LocalFiles(Path(folder), durable=True)
    ...     trained, served = Table(2, optimizer=SGD(learning_rate=1.0)), Table(2, row_format="float32")
    ...     follower = Follower(files, {"item": served})
    ...     _ = trained.lookup_or_insert(np.array([7]), now_ms=0)
    ...     trained.apply(np.array([7]), np.ones((1, 2), np.float32), now_ms=0)
    ...     cut = Cut(watermark=0, now_ms=0, offsets={})
    ...     _ = DeltaLog(files, "form", keep_deltas=60).publish({"item": trained.seal()}, cut)
    ...     manifest = follower.pull()
    >>> follower.version, served.lookup(np.array([7]))
    (1, array([[-1., -1.]], dtype=float32))
    """

    def __init__(
        self,
        files: Files,
        tables: Mapping[str, Table],
        applied: Callable[[Manifest], None] = lambda manifest: None,
        form: str | None = None,
    ) -> None:
        """With a ``form`` (see `paramserver.form`), versions of forms that it does not continue are refused."""
        self._files = files
        self._tables = tables
        self._applied = applied
        self._form = form
        self._continued = {} if form is None else {fingerprint_of(form): form}
        self.manifest: Manifest | None = None
        self.applying: Manifest | None = None
        self.held_at = 0
        """The version that the pin beside the versions held it at as of the last pull; 0 where there was none."""

    @property
    def version(self) -> int:
        """The version that the tables hold; 0 before the first."""
        return self.manifest.version if self.manifest else 0

    def pull(self, until: int | None = None) -> Manifest | None:
        """Apply all versions newer than the tables', oldest first; the newest manifest, None where nothing is published.

        With ``until`` the tables go to that version, also back to it, whatever is pinned.

        Raises:
            BadFile: a file is damaged and no other way leads past it; what was applied up to there stays.
            NoRoomError: a version that replaces all rows has more than this machine has room for; the last one stays.
        """
        for attempt in range(_TRIES):
            try:
                if until is None:
                    self.held_at = read_pin(self._files)
                self._pull(self.held_at if until is None else until)
                return self.manifest
            except FileNotFoundError:  # compacted between its manifest and its files: look again
                if attempt == _TRIES - 1:
                    raise
        return self.manifest

    def load(self, version: int) -> Manifest:
        """Make the tables equal to one version, older or newer; `BadFile` where no way leads to it."""
        path = path_to(self._files, version)
        self._replace(path)
        return path[-1]

    def drifted(self) -> list[str]:
        """The tables whose rows are not those of the tables' version, by its checksums."""
        manifest = self.manifest
        if manifest is None:
            return []
        exact = {"train", "float32", manifest.precision}
        return [
            name
            for name, table in self._tables.items()
            if table.row_format in exact and manifest.checksums.get(name) not in (None, checksum_of(table))
        ]

    def form_of(self, manifest: Manifest) -> str | None:
        """The form of a version, which the follower's continues; None where it takes any. `BadFile` where it does not."""
        if self._form is None:
            return None
        if manifest.fingerprint not in self._continued:
            self._continued[manifest.fingerprint] = check_form(self._files, manifest, self._form)
        return self._continued[manifest.fingerprint]

    def forget(self) -> None:
        """Say that the tables hold no version: the next pull loads all rows again."""
        self.manifest = None

    def _pull(self, pin: int) -> None:
        if pin and self.version > pin:
            self.load(pin)
            return
        try:
            if self._follow(pin):
                return
        except BadFile:
            if not self._skip_to_whole(pin):
                raise
        else:
            self._start_over(pin)
        self._follow(pin)

    def _follow(self, pin: int) -> bool:
        """Apply deltas as long as there is a next one. Whether that led to the newest version."""
        moved = False
        while not (pin and self.version == pin):
            try:
                following = manifests.read_manifest(self._files, self.version + 1, base=False)
            except FileNotFoundError:
                if moved and self._is_kept():  # listing a thousand files takes longer than a small delta
                    return True
                newer = list(self._newer(pin))
                if (self.version + 1, False) in newer:  # published since it was looked for: look again
                    raise
                return not newer
            if following.parent not in (self.version, _NOTHING):
                return False
            if following.is_whole:
                self._replace([following])
            else:
                self._take(following)
            moved = True
        return True

    def _is_kept(self) -> bool:
        """Whether the tables' version is there: the oldest go first, so what follows one that is gone may be gone as well."""
        try:
            self._files.read(manifests.manifest_name(self.version, base=False))
        except FileNotFoundError:
            return False
        return True

    def _newer(self, pin: int) -> Iterator[tuple[int, bool]]:
        """Versions after the tables', and whether they are bases; the newest first, a base before the delta of its version."""
        found = [(at, base) for base in (False, True) for at in manifests.versions(self._files, base=base)]
        return ((at, base) for at, base in sorted(found, reverse=True) if self.version < at <= (pin or at))

    def _start_over(self, pin: int) -> None:
        """Make the tables equal to the newest base, or a version that is pinned, in place: what it does not hold goes."""
        if pin:
            self.load(pin)
            return
        bases = manifests.versions(self._files, base=True)
        problem: Exception | None = None
        for at in reversed(bases):
            if problem is not None and at < self.version:
                break
            try:
                self._replace([manifests.read_manifest(self._files, at, base=True)])
                return
            except (BadFile, FileNotFoundError) as error:  # an older one and the deltas after it lead there too
                problem = problem or error
        if not self._skip_to_whole(pin):
            raise problem or BadFile(f"no base to start from, and no delta that follows version {self.version}")

    def _skip_to_whole(self, pin: int) -> bool:
        """Go on at the newest version that holds all rows, if there is one that is not damaged."""
        for version, base in self._newer(pin):
            try:
                manifest = manifests.read_manifest(self._files, version, base=base)
                if manifest.is_whole:
                    self._replace([manifest])
                    return True
            except (BadFile, FileNotFoundError):
                continue
        return False

    def _replace(self, path: Sequence[Manifest]) -> None:
        """Make the tables equal to the last version of a path, whose first holds all rows, in place: beside the tables, it holds
        their ids and a shard, and no row is anything between what it was and what it is to be."""
        manifest = path[-1]
        changes = self._read(path)
        self._make_room(path[0])
        with self._changing(manifest):
            if self.manifest is None:
                for table in self._tables.values():
                    table.erase(table.ids())
            else:
                for name, gone in self._not_in(changes).items():
                    self._tables[name].erase(gone)
            self._put(changes)
        self._applied(manifest)

    def _take(self, manifest: Manifest) -> None:
        """Apply what a version changes."""
        changes = self._read([manifest])
        with self._changing(manifest):
            self._put(changes)
        self._applied(manifest)

    @contextmanager
    def _changing(self, manifest: Manifest) -> Iterator[None]:
        """While the tables become ``manifest``. What goes wrong within leaves rows of two versions: then they are of none."""
        self.applying = manifest
        try:
            yield
        except BaseException:
            self.manifest = None
            raise
        else:
            self.manifest = manifest
        finally:
            self.applying = None

    def _not_in(self, changes: Iterable[Changes]) -> dict[str, Ids]:
        """The ids of each table that a version does not hold."""
        ids = {name: table.ids() for name, table in self._tables.items()}
        gone = {name: np.ones(len(there), np.bool_) for name, there in ids.items()}
        for change in changes:
            for name, rows in change.items():
                if name in ids:
                    at, is_there = find(ids[name], rows.keys)
                    gone[name][at[is_there]] = False
            del change  # else it stays while the next one is read
        return {name: there[gone[name]] for name, there in ids.items()}

    def _read(self, path: Sequence[Manifest]) -> Iterable[Changes]:
        """What versions change in all. All is read and checked before anything is applied; what is large is then read again, a
        shard at a time, and where the tables hold no version that could stay, only once."""
        for manifest in path:
            self.form_of(manifest)
        changes = _Shards(self._files, path, self._tables)
        if sum(shard.rows.size for manifest in path for shard in manifest.shards) <= _HELD_BYTES:
            return list(changes)
        if self.manifest is not None:
            for _ in changes:
                del _
        return changes

    def _make_room(self, manifest: Manifest) -> None:
        """For all rows of a version; `NoRoomError`, and the tables stay as they are, where there is none."""
        rows = Counter[str]()
        for shard in manifest.shards:
            rows.update(shard.by_table)
        for name, count in rows.items():
            if name in self._tables:
                self._tables[name].reserve(count)

    def _put(self, changes: Iterable[Changes]) -> None:
        for change in changes:
            for name, part in change.items():
                table = self._tables.get(name)
                if table is None:
                    continue
                if len(part.expired):
                    table.erase(part.expired)
                if len(part.keys):
                    table.upsert(part.keys, part.embeddings)
                table.set_default_row(part.default)
            del change, part  # else they stay while the next ones are read


class _Shards:
    """What the shards of versions change in all, one at a time, at each iteration: the newest version's first, and of each row
    only what nothing later changes."""

    def __init__(self, files: Files, path: Sequence[Manifest], tables: Mapping[str, Table]) -> None:
        self._files = files
        self._path = path
        self._tables = tables

    def __iter__(self) -> Iterator[Changes]:
        if len(self._path) == 1:
            yield from (self._read(self._path[0], shard) for shard in self._path[0].shards)
            return
        later = {name: Table(1, row_format="float32") for name in self._tables}  # their ids are what counts
        defaults: dict[str, npt.NDArray[np.float32]] = {}
        for manifest in reversed(self._path):
            for shard in manifest.shards:
                change = self._read(manifest, shard)
                defaults = {name: rows.default for name, rows in change.items()} | defaults
                yield {
                    name: _without(rows, later[name], defaults[name]) for name, rows in change.items() if name in later
                }

    def _read(self, manifest: Manifest, shard: Shard) -> Changes:
        change = decode_rows(shard.rows.name, shard.rows.read(self._files))
        for name, rows in change.items():
            if name in self._tables and rows.embeddings.shape[1] != self._tables[name].dim:
                raise BadFile(
                    f"version {manifest.version}: table {name}: rows of {rows.embeddings.shape[1]} values, "
                    f"this replica's have {self._tables[name].dim}"
                )
        return change


def _without(rows: RowsChange, later: Table, default: npt.NDArray[np.float32]) -> RowsChange:
    """A change without the ids that have a row in ``later``, which then has one for each that is left, and with another default."""
    expired, keys = (ids[~later.contains(ids)] for ids in (rows.expired, rows.keys))
    embeddings = rows.embeddings[~later.contains(rows.keys)]
    for ids in (expired, keys):
        later.upsert(ids, np.zeros((len(ids), 1), np.float32))
    return RowsChange(expired=expired, keys=keys, embeddings=embeddings, default=default)
