"""The delta log's writer: publishes versions, has old deltas folded into a base, and keeps the place bounded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver import retention
from paramserver.checksum import Checksums
from paramserver.compaction import Fold, write_file, write_parts, write_shard
from paramserver.delta import Delta, TableDelta
from paramserver.files import Files
from paramserver.form import check_form, fingerprint_of
from paramserver.history import path_to, read_shard
from paramserver.learned import Learned
from paramserver.manifest import Dense, FileRef, Manifest, OtherFormat
from paramserver.marks import needed_by_pin, pin_next, read_pin
from paramserver.precision import Precision
from paramserver.table import Rows

_log = logging.getLogger(__name__)
_RECENT_BYTES = 64 << 20
_REMEMBERED_RETRAININGS = 100


class Cut(NamedTuple):
    """What a version stands for besides its rows. ``dense`` is given when new dense weights are to be served."""

    watermark: int
    now_ms: int
    offsets: Mapping[str, int]
    dense: bytes | None = None
    trainer: bytes | None = None
    learned: Learned | None = None


class DeltaLog:
    """One writer's log, in an empty place unless it is resumed. The first version is 1; every version is published before
    the next begins. `TakenOverError` ends a writer whose place another one has taken.

    ``form`` says what decides the form of rows and weights, see `paramserver.form`. When ``keep_deltas`` came together they are
    folded into a base: within `publish`, or by ``executor`` beside it, whose result the next `publish` takes.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from paramserver.delta_log import Cut, DeltaLog
    >>> from paramserver.files import LocalFiles
    >>> from paramserver.table import Table
    >>> with TemporaryDirectory() as folder:
    ...     log, table = DeltaLog(LocalFiles(Path(folder), durable=True), "form", keep_deltas=60), Table(2)
    ...     for minute in range(3):
    ...         _ = table.lookup_or_insert(np.array([7, minute]), now_ms=60_000 * minute)
    ...         cut = Cut(watermark=60_000 * minute, now_ms=60_000 * minute, offsets={"examples/0": minute})
    ...         manifest = log.publish({"item": table.seal()}, cut)
    >>> manifest.version, manifest.parent, manifest.shards[0].changed
    (3, 2, 2)
    """

    def __init__(
        self,
        files: Files,
        form: str,
        keep_deltas: int,
        *,
        precision: Precision = "float32",
        executor: Executor | None = None,
    ) -> None:
        self._files = files
        self._form = form
        self._fingerprint = fingerprint_of(form)
        self._form_file: FileRef | None = None
        self._keep_deltas = keep_deltas
        self._precision = precision
        self._executor = executor
        self._folding: Future[Manifest] | None = None
        self._folding_to = 0
        self._forgotten = 0
        self._checksums = Checksums(precision)
        self._checksums_of = 0
        self._deltas: dict[int, Manifest] = {}
        self._bases: list[Manifest] = []
        self._states: dict[int, FileRef] = {}
        self._recent: dict[str, Delta] = {}
        self._recent_bytes = 0
        self.version = 0

    @classmethod
    def resume(
        cls,
        files: Files,
        form: str,
        keep_deltas: int,
        *,
        precision: Precision = "float32",
        executor: Executor | None = None,
    ) -> DeltaLog:
        """The log that is in a place, to go on with after its newest version.

        Damaged manifests are left out: `newest` is then older than ``version``, and only a whole version may follow. `BadFile`
        where rows of a form are in it that ``form`` does not continue, or there is no number for another version;
        `OtherFormat` where another program wrote it.
        """
        log = cls(files, form, keep_deltas, precision=precision, executor=executor)
        for version, base in manifests.strays(files):
            name = manifests.manifest_name(version, base=base)
            _log.warning("%s: unreadable and far above every readable version: ignored; delete it", name)
        for base in (True, False):
            for version in manifests.versions(files, base=base):
                log.version = max(log.version, version)
                try:
                    manifest = manifests.read_manifest(files, version, base=base)
                except OtherFormat:
                    raise
                except BadFile as error:
                    _log.warning("%s; continuing without it", error)
                    continue
                if base:
                    log._bases.append(manifest)
                else:
                    log._deltas[version] = manifest
        there = set(files.names())
        states = {item.version: item.trainer for item in (*log._bases, *log._deltas.values()) if item.trainer}
        must = sorted(states)[-retention.KEPT_STATES :]  # where one of these is missing, that must show
        log._states = {at: ref for at, ref in sorted(states.items()) if ref.name in there or at in must}
        log._following()
        newest = log.newest
        if newest is not None and newest.fingerprint != log._fingerprint:
            check_form(files, newest, form)
        return log

    @property
    def newest(self) -> Manifest | None:
        """The newest published version that can be read."""
        last_delta = next(reversed(self._deltas.values()), None)
        last_base = self._bases[-1] if self._bases else None
        if last_delta is None or (last_base is not None and last_base.version > last_delta.version):
            return last_base
        return last_delta

    @property
    def executor(self) -> Executor | None:
        """What works beside the writer."""
        return self._executor

    @property
    def form(self) -> str:
        """What decides the form of rows and weights."""
        return self._form

    @property
    def fingerprint(self) -> str:
        """Of the form."""
        return self._fingerprint

    @property
    def is_of_another_precision(self) -> bool:
        """Whether the rows that are published have another precision than those to come."""
        return self.newest is not None and self.newest.precision != self._precision

    def begin_checksums(self, version: int) -> Checksums:
        """New ones, to be given all that leads to ``version``: a writer that reads it anyway spares another reading."""
        self._checksums, self._checksums_of = Checksums(self._precision), version
        return self._checksums

    def trainable(self) -> list[int]:
        """The versions that have a trainer's state, the newest first."""
        return sorted(self._states, reverse=True)

    def publish(self, epoch: Mapping[str, Rows], cut: Cut) -> Manifest:
        """Publish a sealed epoch as the next version, manifest last.

        Raises:
            NotFiniteError: a weight is no number; nothing was published.
            OSError: the place refused, as a full disk does; nothing was published, and the same may be tried again.
            BadFile: a file that is to be folded is damaged; the version is published.
        """
        newest = self.newest
        assert newest is None or newest.version == self.version, "after damage, the next version must be whole"
        return self._publish(epoch, cut, parent=self.version, lineage=newest.lineage if newest else 1)

    def take_over(self, rows: Mapping[str, Rows], cut: Cut, retraining: str | None = None) -> Manifest:
        """Publish all rows of another model, whose dense weights are in ``cut``, as the next version, which begins a lineage.
        ``retraining`` names how the model came about where that was one.

        `TakenOverError`, and nothing has changed, where the trainer that is at work published that version first.
        """
        assert cut.dense is not None, "rows of one model and dense weights of another"
        return self._publish(rows, cut, parent=0, lineage=self.version + 1, retraining=retraining)

    def go_back(self, version: int, now_ms: int, *, training: bool) -> Manifest:
        """Publish what an older version holds as the next one, which begins a lineage. With ``training`` training goes back too,
        and no replica is held; otherwise it continues from the newest version, and replicas stay at this one.

        The manifest, which comes last, does all of that: whenever it is killed before, nothing has changed.

        `BadFile` where the version is not there, or training is to go on from it without a trainer's state.
        """
        newest = self.newest
        if newest is not None and version < newest.forgets and version not in needed_by_pin(self._files):
            raise BadFile(f"version {version}: is being deleted; versions from {newest.forgets} on stay")
        path = path_to(self._files, version)
        old = path[-1]
        trainable = [at for at in self._states if newest is None or at in newest.trainable]
        if training and version not in trainable:
            have = ", ".join(map(str, trainable)) or "none"
            raise BadFile(f"version {version}: no trainer's state to train from; versions that have one: {have}")
        following = self._following()
        whole = len(path) == 1
        fold = Fold(self._files, path, {})
        manifest = Manifest(
            version=following,
            parent=0,
            watermark=old.watermark,
            published_at=now_ms,
            fingerprint=old.fingerprint,
            shards=old.shards if whole else fold.write(f"{following:012d}"),
            offsets=old.offsets,
            dense=old.dense,
            trainer=old.trainer if training else None,
            form=old.form,
            lineage=following,
            retrained=newest.retrained if newest else old.retrained,
            goes_back_to=version,
            trains_from=0 if training or newest is None else newest.trains_from or newest.version,
            checksums=old.checksums,
            precision=old.precision,
            forgets=newest.forgets if newest else 0,
            trainable=[*trainable, following] if training else trainable,
        )
        if not training or read_pin(self._files):
            pin_next(self._files, following)
        manifests.write_manifest(self._files, manifest)
        # A release meanwhile was of the pin before this one; a rollback meanwhile comes after this one and wins.
        if not training and read_pin(self._files) < following:
            pin_next(self._files, following)
        self._add(manifest)
        return manifest

    def fold(self) -> Manifest | None:
        """Fold the deltas since the last base into a new one, and drop what is no longer needed; None where there are none."""
        self._take_folded(wait=True)
        fold = self._next_fold()
        return None if fold is None else self._folded(fold.run())

    def close(self) -> None:
        """Wait for what runs beside."""
        self._take_folded(wait=True)

    def _publish(
        self, epoch: Mapping[str, Rows], cut: Cut, *, parent: int, lineage: int, retraining: str | None = None
    ) -> Manifest:
        version = self._following()
        stem = f"{version:012d}"
        versions = np.full(max((len(rows.ids) for rows in epoch.values()), default=0), version, np.int64)
        delta = {name: TableDelta(rows, versions[: len(rows.ids)]) for name, rows in epoch.items()}
        checksums = self._checksums_after(delta, parent)
        if parent:
            shards = [write_shard(self._files, stem, delta, self._precision)]
        else:
            shards = write_parts(self._files, stem, (), delta, self._precision)
        newest = self.newest
        retrained = newest.retrained if newest else []
        if retraining is not None:
            retrained = [*retrained, retraining][-_REMEMBERED_RETRAININGS:]
        dense = newest.dense if newest else None
        if cut.dense is not None:
            file = write_file(self._files, stem, "dense.safetensors", cut.dense)
            dense = Dense(version=version, watermark=cut.watermark, file=file)
        trainer = None if cut.trainer is None else write_file(self._files, stem, "trainer.safetensors", cut.trainer)
        manifest = Manifest(
            version=version,
            parent=parent,
            watermark=cut.watermark,
            published_at=cut.now_ms,
            fingerprint=self._fingerprint,
            shards=shards,
            offsets=dict(cut.offsets),
            dense=dense,
            trainer=trainer,
            form=self._written_form(),
            lineage=lineage,
            retrained=retrained,
            learned=cut.learned,
            checksums=checksums,
            precision=self._precision,
            forgets=retention.forgets(self._bases_then(version), newest),
            trainable=retention.trainable(
                [*self._states, *([version] if trainer is not None else [])], self._bases_then(version)
            ),
        )
        manifests.write_manifest(self._files, manifest)
        self._add(manifest)
        if checksums:
            self._checksums_of = version
        self._remember(manifest, delta)
        self._compact()
        return manifest

    def _following(self) -> int:
        """The next version's number; `BadFile` where there is none."""
        if self.version + 1 == manifests.VERSIONS:
            base = self.version not in manifests.versions(self._files, base=False)
            raise BadFile(
                f"{manifests.manifest_name(self.version, base=base)}: the last version that there can be; delete it if it "
                "is none, or publish to a new place"
            )
        return self.version + 1

    def _checksums_after(self, delta: Delta, parent: int) -> dict[str, str]:
        """Of the next version's tables; none where only some of its rows have the precision that they are to have."""
        if not parent:
            self.begin_checksums(parent)
        elif self.is_of_another_precision or not self._is_summed(parent):
            return {}
        self._checksums.take(delta)
        return self._checksums.values()

    def _is_summed(self, version: int) -> bool:
        """Whether there are checksums of a version; a writer that continues another's has to read the rows for them."""
        newest = self.newest
        if self._checksums_of != version and newest is not None and newest.checksums:
            checksums = Checksums(self._precision)
            for manifest in path_to(self._files, version):
                for shard in manifest.shards:
                    checksums.take(read_shard(self._files, shard))
            self._checksums, self._checksums_of = checksums, version
        return self._checksums_of == version

    def _written_form(self) -> FileRef:
        if self._form_file is None:
            self._form_file = write_file(self._files, "form", "json", self._form.encode())
        return self._form_file

    def _add(self, manifest: Manifest) -> None:
        self.version = manifest.version
        self._deltas[manifest.version] = manifest
        if manifest.trainer is not None:
            self._states[manifest.version] = manifest.trainer

    def _remember(self, manifest: Manifest, delta: Delta) -> None:
        """Keep what was just written for the next fold, as far as the budget goes; the rest is read again."""
        size = sum(shard.rows.size + shard.state.size for shard in manifest.shards)
        if self._recent_bytes + size <= _RECENT_BYTES:
            self._recent[manifest.name] = delta
            self._recent_bytes += size

    def _compact(self) -> None:
        """Fold when enough deltas came together; what no disk has room for is tried again after the next version."""
        self._take_folded(wait=False)
        if self._is_to_be_folded(self.version):
            fold = self._next_fold()
            assert fold is not None, "there are deltas since the last base"
            if self._executor is not None:
                self._folding, self._folding_to = self._executor.submit(fold.run), self.version
            else:
                try:
                    self._folded(fold.run())
                except OSError as error:
                    _log.warning("no new base: %s; trying again after the next version", error)
        newest = self.newest
        assert newest is not None, "a version was published"
        retention.drop_states(self._files, self._states, newest.trainable)

    def _is_to_be_folded(self, version: int) -> bool:
        """Whether the fold to ``version`` begins when it is published."""
        base = self._bases[-1].version if self._bases else 0
        return self._folding is None and version - base >= self._keep_deltas

    def _bases_then(self, version: int) -> list[int]:
        """The bases once ``version`` is published, and the fold that begins then, or is at work, is done."""
        bases = [base.version for base in self._bases]
        if self._folding is not None:
            bases.append(self._folding_to)
        elif self._is_to_be_folded(version):
            bases.append(version)
        return bases

    def _take_folded(self, *, wait: bool) -> None:
        if self._folding is None or not (wait or self._folding.done()):
            return
        folding, self._folding = self._folding, None
        try:
            self._folded(folding.result())
        except OSError as error:
            _log.warning("no new base: %s; trying again after the next version", error)

    def _next_fold(self) -> Fold | None:
        """What leads from the last base, or from a whole version after it, to the newest version."""
        base = self._bases[-1] if self._bases else None
        if not self._deltas or (base is not None and base.version >= self.version):
            return None
        path: list[Manifest] = []
        version = self.version
        while True:
            if base is not None and version == base.version:
                path.insert(0, base)
                break
            path.insert(0, self._deltas[version])
            if path[0].is_whole:
                break
            version = path[0].parent
        return Fold(self._files, path, dict(self._recent))

    def _folded(self, base: Manifest) -> Manifest:
        self._bases.append(base)
        folded = self._names_up_to(base)
        self._recent = {name: delta for name, delta in self._recent.items() if name not in folded}
        self._recent_bytes = sum(
            shard.rows.size + shard.state.size
            for manifest in self._deltas.values()
            if manifest.name in self._recent
            for shard in manifest.shards
        )
        self._forget()
        return base

    def _names_up_to(self, base: Manifest) -> set[str]:
        return {manifest.name for version, manifest in self._deltas.items() if version <= base.version}

    def _forget(self) -> None:
        """Drop what neither of the newest two bases needs, so that readers have until the next base."""
        newest = self.newest
        if newest is None or len(self._bases) < 2:
            return
        until = min(newest.forgets, self._bases[-2].version)
        if until <= self._forgotten:
            return
        pinned = needed_by_pin(self._files)
        retention.delete_manifests(self._files, until, pinned)
        self._deltas = {at: item for at, item in self._deltas.items() if at > until or at in pinned}
        self._bases = [item for item in self._bases if item.version >= until]
        self._states = {at: ref for at, ref in self._states.items() if at >= until or at in newest.trainable}
        if retention.delete_unnamed(self._files, until):
            self._forgotten = until
