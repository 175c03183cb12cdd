"""Faults planted in the trainer, the delta log and replicas, for `tests.simulation.mutants`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from paramserver import compaction, delta_log
from paramserver import manifest as manifests
from paramserver.compaction import Fold, write_file
from paramserver.delta import Delta, TableDelta, encode_rows
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import Files, LocalFiles
from paramserver.follower import Follower
from paramserver.manifest import FileRef, Manifest
from tests.simulation.planting import wrap
from tests.simulation.services import Clock
from trainer import online
from trainer.cut import cut_of
from trainer.online import OnlineTrainer
from trainer.worker import Trainer

_none = np.empty(0, np.int64)


def touched_list_cleared_before_the_delta_is_durable() -> Any:
    """A publication that fails is forgotten, and training goes on."""

    def make(publish: Any) -> Any:
        def changed(self: OnlineTrainer) -> Manifest | None:
            try:
                result: Manifest | None = publish(self)
                return result
            except OSError:
                self._waiting = None
                return None

        return changed

    return wrap(OnlineTrainer, "publish", make)


def no_sync_before_rename() -> Any:
    def make(write: Any) -> Any:
        def changed(self: LocalFiles, name: str, data: bytes) -> str:
            self._durable = False
            try:
                path: str = write(self, name, data)
                return path
            finally:
                self._durable = True

        return changed

    return wrap(LocalFiles, "_write_aside", make)


def no_sync_of_the_folder() -> Any:
    return patch.object(LocalFiles, "_sync_folder", lambda self: None)


@contextmanager
def manifest_before_its_files() -> Iterator[None]:
    waiting: list[tuple[str, bytes]] = []
    write_manifest = manifests.write_manifest

    class Later:
        def write(self, name: str, data: bytes) -> None:
            waiting.append((name, data))

    def write(files: Files, stem: str, kind: str, data: bytes) -> FileRef:
        later: Any = Later()
        return write_file(later, stem, kind, data)

    def publish(files: Files, manifest: Manifest) -> None:
        todo = waiting[:]
        waiting.clear()
        write_manifest(files, manifest)
        for name, data in todo:
            files.write(name, data)

    with (
        patch.object(delta_log, "write_file", write),
        patch.object(compaction, "write_file", write),
        patch.object(manifests, "write_manifest", publish),
    ):
        yield


def _without_tombstones(delta: Delta) -> dict[str, TableDelta]:
    return {
        name: TableDelta(table.rows.__class__(**{**table.rows.__dict__, "expired": _none}), table.versions)
        for name, table in delta.items()
    }


def tombstones_left_out() -> Any:
    return patch.object(
        compaction, "encode_rows", lambda delta, precision: encode_rows(_without_tombstones(delta), precision)
    )


def watermark_from_the_wall_clock() -> Any:
    def wrong(trainer: Trainer, watermark: int, now_ms: int, *rest: Any, **more: Any) -> Cut:
        return cut_of(trainer, now_ms, now_ms, *rest, **more)

    return patch.object(online, "cut_of", wrong)


def waits_go_by_the_time_of_day() -> Any:
    return patch.object(Clock, "elapsed_ms", Clock.now_ms)


def follower_skips_a_version() -> Any:
    def make(take: Any) -> Any:
        def changed(self: Follower, manifest: Manifest) -> None:
            if manifest.version + 1 in manifests.versions(self._files, base=False):
                with self._changing(manifest):
                    pass
                self._applied(manifest)
            else:
                take(self, manifest)

        return changed

    return wrap(Follower, "_take", make)


def follower_applies_an_older_delta_again() -> Any:
    def make(take: Any) -> Any:
        def changed(self: Follower, manifest: Manifest) -> None:
            before = self.__dict__.get("before", [])
            self.__dict__["before"] = list(self._read([manifest]))
            take(self, manifest)
            self._put(before)

        return changed

    return wrap(Follower, "_take", make)


def rows_stay_where_a_follower_starts_over() -> Any:
    return patch.object(Follower, "_replace", lambda self, path: [self._take(manifest) for manifest in path])


def _trainer_offset(by: int) -> Any:
    def make(recover: Any) -> Any:
        def changed(self: OnlineTrainer, *arguments: Any, **named: Any) -> None:
            recover(self, *arguments, **named)
            for worker in self.workers:
                if self.deltas.newest is not None:
                    worker.offset = max(0, worker.offset + by)

        return changed

    return wrap(OnlineTrainer, "_recover", make)


def trainer_goes_on_one_record_too_far() -> Any:
    return _trainer_offset(1)


def trainer_goes_on_one_record_too_early() -> Any:
    return _trainer_offset(-1)


def fold_drops_a_delta() -> Any:
    def make(write: Any) -> Any:
        def changed(self: Fold, stem: str) -> Any:
            return write(
                self._replace(path=[*self.path[:-2], self.path[-1]] if len(self.path) > 2 else self.path), stem
            )

        return changed

    return wrap(Fold, "write", make)


def fold_keeps_expired_rows() -> Any:
    return wrap(Fold, "_read", lambda read: lambda self, manifest: _without_tombstones(read(self, manifest)))


def files_go_before_their_manifests() -> Any:
    def make(forget: Any) -> Any:
        def changed(self: DeltaLog) -> None:
            newest = self.newest
            if newest is not None and len(self._bases) > 1:
                until = min(newest.forgets, self._bases[-2].version)
                kept = [item for item in self._deltas.values() if item.version > until] + self._bases[-2:]
                needed = {ref.name for manifest in kept for ref in manifest.files()}
                for manifest in self._deltas.values():
                    for ref in manifest.files():
                        if manifest.version <= until and ref.name not in needed:
                            self._files.delete(ref.name)
            forget(self)

        return changed

    return wrap(DeltaLog, "_forget", make)
