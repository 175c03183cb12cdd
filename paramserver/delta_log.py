"""The delta log's writer: publishes versions, folds old deltas into a base, and keeps the folder bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xxhash

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta import Delta, TableDelta, decode, encode_rows, encode_state, fold
from paramserver.files import Files
from paramserver.learned import Learned
from paramserver.manifest import Dense, FileRef, Manifest, Shard
from paramserver.table import Rows

_KEPT_TRAINER_STATES = 2
_RECENT_BYTES = 64 << 20


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
    the next begins. `TakenOverError` ends a writer whose place another one has taken."""

    def __init__(self, files: Files, fingerprint: str, keep_deltas: int) -> None:
        self._files = files
        self._fingerprint = fingerprint
        self._keep_deltas = keep_deltas
        self._deltas: list[Manifest] = []
        self._recent: dict[tuple[int, bool], Delta] = {}
        self._recent_bytes = 0
        self._bases: list[Manifest] = []
        self._dense: list[Dense] = []
        self._trainer_states: list[FileRef] = []
        self.version = 0

    @classmethod
    def resume(cls, files: Files, fingerprint: str, keep_deltas: int) -> DeltaLog:
        """The log that is in a place, to go on with after its newest version; `BadFile` where another form of rows is in it."""
        log = cls(files, fingerprint, keep_deltas)
        log._bases = [manifests.read_manifest(files, at, base=True) for at in manifests.versions(files, base=True)]
        log._deltas = [manifests.read_manifest(files, at, base=False) for at in manifests.versions(files, base=False)]
        newest = log.newest
        if newest is None:
            return log
        if newest.fingerprint != fingerprint:
            raise BadFile(f"version {newest.version}: made by another config: features, labels, model or tables differ")
        log.version = newest.version
        served = {item.dense.version: item.dense for item in (*log._bases, *log._deltas) if item.dense}
        log._dense = [served[version] for version in sorted(served)]
        states = [manifest.trainer for manifest in log._deltas if manifest.trainer]
        log._trainer_states = states[-_KEPT_TRAINER_STATES:]
        return log

    @property
    def newest(self) -> Manifest | None:
        """The newest published version."""
        return self._deltas[-1] if self._deltas else None

    def publish(self, epoch: Mapping[str, Rows], cut: Cut) -> Manifest:
        """Publish a sealed epoch as the next version, manifest last."""
        return self._publish(epoch, cut, takes_over=False)

    def take_over(self, rows: Mapping[str, Rows], cut: Cut) -> Manifest:
        """Publish all rows of another model, whose dense weights are in ``cut``, as the next version, which begins a lineage.

        `TakenOverError`, and nothing has changed, where the trainer that is at work published that version first.
        """
        assert cut.dense is not None, "rows of one model and dense weights of another"
        return self._publish(rows, cut, takes_over=True)

    def _publish(self, epoch: Mapping[str, Rows], cut: Cut, *, takes_over: bool) -> Manifest:
        version = self.version + 1
        parent = 0 if takes_over else self.version
        stem = f"{version:012d}"
        delta = {name: TableDelta(rows, np.full(len(rows.ids), version, np.int64)) for name, rows in epoch.items()}
        if takes_over:  # whoever else is about to publish this version writes other files
            stem += f"-{xxhash.xxh3_64_hexdigest(encode_rows(delta))}"
        shard = self._write_shard(stem, delta)
        dense = self._dense[-1] if self._dense else None
        if cut.dense is not None:
            file = self._write(f"{stem}.dense.safetensors", cut.dense)
            dense = Dense(version=version, watermark=cut.watermark, file=file)
        trainer = None if cut.trainer is None else self._write(f"{stem}.trainer.safetensors", cut.trainer)
        manifest = Manifest(
            version=version,
            parent=parent,
            watermark=cut.watermark,
            published_at=cut.now_ms,
            fingerprint=self._fingerprint,
            shards=[shard],
            offsets=dict(cut.offsets),
            dense=dense,
            trainer=trainer,
            lineage=self.newest.lineage if parent and self.newest else version,
            learned=cut.learned,
        )
        manifests.write_manifest(self._files, manifest)
        self.version = version
        self._deltas.append(manifest)
        self._remember(manifest, delta)
        if cut.dense is not None and dense is not None:
            self._dense.append(dense)
        if trainer is not None:
            self._trainer_states.append(trainer)
        self._clean_up()
        return manifest

    def fold(self) -> Manifest | None:
        """Fold the deltas since the last base into a new one; None where there are none."""
        start = self._bases[-1].version if self._bases else 0
        since = [manifest for manifest in self._deltas if manifest.version > start]
        if not since:
            return None
        newest = since[-1]
        parts = [*self._bases[-1:], *since]
        whole = max(at for at, manifest in enumerate(parts) if manifest.parent <= 0)  # nothing before it counts
        base = fold([self._read(manifest) for manifest in parts[whole:]])
        shard = self._write_shard(f"base-{newest.version:012d}", base)
        manifest = Manifest(
            version=newest.version,
            parent=-1,
            watermark=newest.watermark,
            published_at=newest.published_at,
            fingerprint=self._fingerprint,
            shards=[shard],
            offsets=newest.offsets,
            dense=newest.dense,
            lineage=newest.lineage,
            learned=newest.learned,
        )
        manifests.write_manifest(self._files, manifest)
        self._bases.append(manifest)
        self._recent, self._recent_bytes = {}, 0
        self._remember(manifest, base)
        return manifest

    def _remember(self, manifest: Manifest, delta: Delta) -> None:
        """Keep what was just written for the next fold, as far as the budget goes; the rest is read again."""
        size = sum(shard.rows.size + shard.state.size for shard in manifest.shards)
        if self._recent_bytes + size <= _RECENT_BYTES:
            self._recent[manifest.version, manifest.is_base] = delta
            self._recent_bytes += size

    def _clean_up(self) -> None:
        """Fold when enough deltas came together, then drop what neither of the newest two bases needs."""
        folded_at = self._bases[-1].version if self._bases else 0
        if self.version - folded_at >= self._keep_deltas:
            self.fold()
            if len(self._bases) > 1:
                self._forget_before(self._bases[-2].version)
        while len(self._trainer_states) > _KEPT_TRAINER_STATES:
            self._files.delete(self._trainer_states.pop(0).name)

    def _forget_before(self, version: int) -> None:
        """Delete manifests first, so that no version is seen whose files are going."""
        for manifest in [item for item in self._deltas if item.version <= version]:
            self._forget(manifest)
        for base in self._bases[:-2]:
            self._forget(base)
        self._deltas = [item for item in self._deltas if item.version > version]
        self._bases = self._bases[-2:]
        served = {item.dense.version for item in (*self._deltas, *self._bases) if item.dense}
        for dense in self._dense:
            if dense.version not in served:
                self._files.delete(dense.file.name)
        self._dense = [dense for dense in self._dense if dense.version in served]

    def _forget(self, manifest: Manifest) -> None:
        self._files.delete(manifests.manifest_name(manifest.version, base=manifest.is_base))
        for shard in manifest.shards:
            self._files.delete(shard.rows.name)
            self._files.delete(shard.state.name)

    def _write(self, name: str, data: bytes) -> FileRef:
        self._files.write(name, data)
        return FileRef.of(name, data)

    def _write_shard(self, stem: str, delta: Delta) -> Shard:
        return Shard(
            rows=self._write(f"{stem}.rows.arrow", encode_rows(delta)),
            state=self._write(f"{stem}.state.arrow", encode_state(delta)),
            changed=sum(len(table.rows.ids) for table in delta.values()),
            expired=sum(len(table.rows.expired) for table in delta.values()),
        )

    def _read(self, manifest: Manifest) -> Delta:
        recent = self._recent.get((manifest.version, manifest.is_base))
        return read_shard(self._files, manifest.shards[0]) if recent is None else recent


def read_version(files: Files, manifest: Manifest) -> dict[str, TableDelta]:
    """All rows of a version, from the newest base before it and the deltas since; for recovery."""
    version, deltas = manifest.version, [manifest]
    bases = [at for at in manifests.versions(files, base=True) if at <= version]
    while deltas[0].parent > (bases[-1] if bases else 0):
        deltas.insert(0, manifests.read_manifest(files, deltas[0].parent, base=False))
    if bases and deltas[0].parent > 0:
        deltas[0:0] = [manifests.read_manifest(files, bases[-1], base=True)]
    return fold([read_shard(files, item.shards[0]) for item in deltas])


def read_shard(files: Files, shard: Shard) -> dict[str, TableDelta]:
    """Both files of a shard's version, checked."""
    return decode(shard.rows.name, shard.rows.read(files), shard.state.name, shard.state.read(files))
