"""Retraining from the archive: batch, then the live log from exactly where the archive ends, then taking over.

The order of training is that of the decisions, as online; so one partition's archive gives the very model that online training
gave. The retrained model takes over as one version that begins a lineage, by a conditional put: either the trainer at work
publishes the next version, or the retrained one does, and the other one learns that it did not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import pyarrow as pa

from paramserver.delta_log import DeltaLog
from paramserver.files import Files
from paramserver.manifest import TakenOverError, read_manifest
from paramserver.precision import Precision
from streaming.archive.table import Archive
from streaming.log import EXAMPLES, LogReader, check_no_gap
from streaming.records.examples import ExampleFormat
from streaming.records.training_order import cut_per_step
from trainer.cut import cut_of, offsets_of
from trainer.settings import TrainSettings
from trainer.worker import Trainer, TrainWorker

_log = logging.getLogger(__name__)
_TRIES = 5
_NAMED = 5


def train_archive(
    archive: Archive,
    trainer: Trainer,
    settings: TrainSettings,
    since: int,
    until: int,
    progress: Callable[[int], None] = lambda examples: None,
) -> None:
    """Train on the archived examples decided in [since, until) (ms of event time), and forget rows as online training does.

    What the trainer sealed is dropped: publish `Table.export` of its tables. ``progress`` is called with the examples so far.
    """
    for batch in archive.batches(since, until):
        for step in cut_per_step(batch, settings.step_every, settings.max_rows):
            left_out = trainer.train(step)
            if len(left_out):
                ids = step.column("example_id").take(pa.array(left_out[:_NAMED])).to_pylist()
                _log.warning("%d examples cannot be trained on, such as %s", len(left_out), ", ".join(ids))
            last = int(step.column("decided_at")[step.num_rows - 1].as_py())
            trainer.expire((last // settings.step_every + 1) * settings.step_every)
        trainer.seal()
        progress(trainer.examples)


def hand_over(
    archive: Archive, log: LogReader, trainer: Trainer, example_format: ExampleFormat, partitions: Sequence[int]
) -> list[TrainWorker]:
    """Workers that go on in the live log, each at the offset where the archive ends.

    ``archive`` is the one, as of the same commit, that `train_archive` was given. `GapError` where the log no longer reaches
    back to there.
    """
    workers = []
    for partition in partitions:
        worker = TrainWorker(log, trainer, example_format, partition)
        position = archive.position(partition)
        if position is None:
            worker.offset = log.begin(EXAMPLES, partition)
        else:
            check_no_gap(log, EXAMPLES, partition, position.offset)
            worker.offset, worker.watermark = position
        workers.append(worker)
    return workers


def take_over(
    files: Files,
    form: str,
    keep_deltas: int,
    trainer: Trainer,
    workers: Sequence[TrainWorker],
    now_ms: Callable[[], int],
    retraining: str,
    precision: Precision = "float32",
) -> DeltaLog | None:
    """Publish the retrained model as the next version; the log to go on publishing to. ``retraining`` names it.

    None, and nothing has changed, where the newest version contains examples that this model does not, or where the trainer at
    work was faster: let the workers catch up and try again. The trainer whose place was taken gets `TakenOverError` at
    its next publication; a replica moves at its next pull. `GuardedError` where the retrained weights are not fit to be published.
    """
    deltas = look(files, form, keep_deltas, precision)
    newest, offsets = deltas.newest, offsets_of(workers)
    cut = cut_of(trainer, min(worker.watermark for worker in workers), now_ms(), offsets)
    if newest is not None:
        if any(newest.offsets.get(name, 0) > offset for name, offset in offsets.items()):
            return None
        cut = cut._replace(offsets={**newest.offsets, **offsets})
    try:
        deltas.take_over({name: table.export() for name, table in trainer.tables.items()}, cut, retraining)
    except TakenOverError:
        return None
    trainer.seal()
    return deltas


def look(
    files: Files, form: str, keep_deltas: int, precision: Precision = "float32", executor: Executor | None = None
) -> DeltaLog:
    """`DeltaLog.resume` beside a trainer at work, which deletes what is old meanwhile."""
    for _ in range(_TRIES - 1):
        try:
            return DeltaLog.resume(files, form, keep_deltas, precision=precision, executor=executor)
        except FileNotFoundError:
            continue
    return DeltaLog.resume(files, form, keep_deltas, precision=precision, executor=executor)


def check_at_work(files: Files, version: int) -> None:
    """`TakenOverError` where another trainer has published the version after this one."""
    try:
        read_manifest(files, version + 1, base=False)
    except FileNotFoundError:
        return
    raise TakenOverError(f"version {version + 1}: published by another writer, which has taken over")
