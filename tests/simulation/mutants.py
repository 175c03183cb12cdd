"""`make simulate-mutants`: faults planted one at a time, each of which the simulator must find."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
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
from tests.simulation import mutants_join
from tests.simulation.mutants_join import wrap
from tests.simulation.services import Clock
from tests.simulation.simulate import begin, failure
from trainer import online
from trainer.cut import cut_of
from trainer.online import OnlineTrainer
from trainer.worker import Trainer

SEEDS = 1000
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


MUTANTS: list[Callable[[], Any]] = [
    touched_list_cleared_before_the_delta_is_durable,
    no_sync_before_rename,
    no_sync_of_the_folder,
    manifest_before_its_files,
    mutants_join.offsets_committed_before_the_outbox,
    tombstones_left_out,
    watermark_from_the_wall_clock,
    waits_go_by_the_time_of_day,
    follower_skips_a_version,
    follower_applies_an_older_delta_again,
    rows_stay_where_a_follower_starts_over,
    mutants_join.outbox_sent_again_whatever_the_sequence,
    mutants_join.outbox_not_sent_again,
    mutants_join.state_is_written_before_its_transaction_and_believed,
    mutants_join.older_state_goes_on_as_it_is,
    mutants_join.what_was_emitted_is_forgotten_while_more_is_due,
    mutants_join.entries_do_not_learn_what_was_emitted,
    mutants_join.a_batch_is_as_large_as_what_is_due,
    mutants_join.state_id_not_checked,
    mutants_join.state_written_in_two_batches,
    mutants_join.emitted_ids_not_read_again,
    mutants_join.rebuild_sends_what_was_sent,
    mutants_join.rebuild_begins_one_cut_too_late,
    mutants_join.timer_closes_windows_while_input_is_unread,
    mutants_join.watermark_told_while_more_is_due,
    mutants_join.impressions_known_by_id_and_time,
    mutants_join.negatives_by_impression_id,
    mutants_join.late_requests_vanish,
    mutants_join.refusals_are_not_read_again,
    mutants_join.marks_of_transactions_are_waited_for,
    mutants_join.an_end_is_as_of_the_time_after_the_read,
    mutants_join.what_was_on_its_way_is_taken_again,
    mutants_join.a_transaction_of_unknown_end_is_taken_for_committed,
    mutants_join.a_request_id_used_again_is_a_repeat,
    mutants_join.a_record_moves_the_watermark_as_far_as_it_claims,
    mutants_join.rebuild_begins_by_how_far_the_watermark_may_come,
    mutants_join.pending_requests_are_not_taken_over,
    mutants_join.refusals_of_a_rebuild_are_drained,
    mutants_join.engagements_wait_without_bound,
    mutants_join.decoding_catches_a_list_of_types,
    trainer_goes_on_one_record_too_far,
    trainer_goes_on_one_record_too_early,
    fold_drops_a_delta,
    fold_keeps_expired_rows,
    files_go_before_their_manifests,
]


def found_after(mutant: Callable[[], Any], limit: int) -> tuple[int, str]:
    """How many seeds it took to find a mutant, 0 where it was not found, and how it showed."""
    with mutant():
        for seed in range(limit):
            said = failure(seed)
            if said:
                found = said.splitlines()[-1].strip()
                assert not re.search(r": (Type|Attribute|Name)Error: ", found), f"it fits the code no more: {found}"
                return seed + 1, found
    return 0, ""


def _find(job: tuple[int, int]) -> tuple[int, int, str]:
    at, limit = job
    return at, *found_after(MUTANTS[at], limit)


def main() -> int:
    limit = int(os.environ.get("SEEDS") or SEEDS)
    began, missed = time.monotonic(), 0
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0)), begin, maxtasksperchild=1) as pool:
        chosen = os.environ.get("MUTANT", "").replace(" ", "_")
        jobs = [(at, limit) for at, mutant in enumerate(MUTANTS) if chosen in mutant.__name__]
        for at, seeds, said in pool.imap_unordered(_find, jobs, chunksize=1):
            name = MUTANTS[at].__name__.replace("_", " ")
            missed += not seeds
            print(f"{name:50} {f'seed {seeds}' if seeds else 'NOT FOUND':10} {said[:110]}", flush=True)
    print(f"{len(jobs) - missed} of {len(jobs)} mutants found within {limit} seeds, {time.monotonic() - began:.0f} s")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
