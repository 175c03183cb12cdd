"""Run as ``python killed.py JOB FOLDER SEED``: does a job in processes that are killed (SIGKILL) at seeded random points, each
followed by another one, until one ends by itself. Prints how many were killed.

The first six, and then every other one, are killed at a step: before or after a call of something that reads or writes. The rest
are killed by the clock, so within such a call as well. It forks, since importing takes longer than a job; the parent does nothing.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.manifest import TakenOverError
from streaming.archive import worker as archive_worker
from streaming.archive.table import Archive
from streaming.archive.worker import ArchiveWorker
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from tests.trainer.test_retrain import FORMAT, NEVER, SETTINGS, cut_at, make_trainer
from trainer import worker as train_worker
from trainer.recovery import recover_newest
from trainer.retrain import hand_over, take_over, train_archive
from trainer.worker import Trainer, TrainWorker

PARTITIONS = range(2)
KILLS, AT_STEPS = 14, 6
STEPS: list[tuple[Any, str]] = [
    (EmbeddedLog, "read"),
    (Archive, "append"),
    (Archive, "compact"),
    (Archive, "vacuum"),
    (LocalFiles, "write"),
    (LocalFiles, "create"),
    (LocalFiles, "delete"),
    (Trainer, "seal"),
]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(steps: int) -> None:
    """Die when one of `STEPS` was begun or ended for the ``steps``-th time."""
    left = [steps]

    def count_down() -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    def between(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def counted(*arguments: Any, **named: Any) -> Any:
            count_down()
            result = call(*arguments, **named)
            count_down()
            return result

        return counted

    for owner, name in STEPS:
        setattr(owner, name, between(getattr(owner, name)))


def kill_at_time(seconds: float) -> None:
    """Die after so long, wherever that is."""

    def wait() -> None:
        time.sleep(seconds)
        die()

    threading.Thread(target=wait, daemon=True).start()


def archive(folder: Path, rng: random.Random) -> None:
    """Archive the whole log, with many commits and compactions."""
    log = EmbeddedLog(folder / "log", durable=True)
    worker = ArchiveWorker(
        log, Archive(str(folder / "archive"), FORMAT), FORMAT, EventClock(1), 0, PARTITIONS, lambda letters: False
    )
    while worker.step():
        pass
    worker.commit()


def start(folder: Path, log: EmbeddedLog, seed: int) -> tuple[Trainer, list[TrainWorker], DeltaLog]:
    """A trainer as its service starts it: from the newest version, or else from the archive."""
    files = LocalFiles(folder / "deltas", durable=True)
    deltas = DeltaLog.resume(files, "form", keep_deltas=5)
    trainer = make_trainer(seed)
    archived = Archive(str(folder / "archive"), FORMAT)
    newest = recover_newest(files, deltas, trainer)
    assert newest is None or newest.version == deltas.version, "a kill damages nothing"
    if newest is None:
        train_archive(archived, trainer, SETTINGS, 0, NEVER)
        workers = hand_over(archived, log, trainer, FORMAT, PARTITIONS)
        rows = {name: table.export() for name, table in trainer.tables.items()}
        deltas.take_over(rows, cut_at(trainer, workers, 1), "first")
        trainer.seal()
        return trainer, workers, deltas
    workers = hand_over(archived, log, trainer, FORMAT, PARTITIONS)
    for worker in workers:
        worker.offset = newest.offsets[f"examples/{worker.partition}"]
        worker.watermark = newest.watermark
    return trainer, workers, deltas


def publish(trainer: Trainer, workers: list[TrainWorker], deltas: DeltaLog) -> None:
    deltas.publish(trainer.seal(), cut_at(trainer, workers, 1))


def run(trainer: Trainer, workers: list[TrainWorker], deltas: DeltaLog) -> None:
    """Train to the end of the log, with a version after every step."""
    publish(trainer, workers, deltas)
    more = True
    while more:
        more = False
        for worker in workers:
            more |= worker.step()
        publish(trainer, workers, deltas)
    publish(trainer, workers, deltas)


def hand_over_job(folder: Path, rng: random.Random) -> None:
    """Train from the archive, then live."""
    run(*start(folder, EmbeddedLog(folder / "log", durable=True), seed=1))


def take_over_job(folder: Path, rng: random.Random) -> None:
    """Train online, and in the middle of it retrain from the archive and take over."""
    log = EmbeddedLog(folder / "log", durable=True)
    trainer, workers, deltas = start(folder, log, seed=1)
    if deltas.newest is None or deltas.newest.lineage == 1:
        archived = Archive(str(folder / "archive"), FORMAT)
        retrained = make_trainer(seed=2)
        train_archive(archived, retrained, SETTINGS, 0, NEVER)
        following = hand_over(archived, log, retrained, FORMAT, PARTITIONS)
        for _ in range(rng.randint(1, 6)):
            for worker in (*workers, *following):
                worker.step()
            publish(trainer, workers, deltas)
        taken = None
        while taken is None:
            for worker in following:
                worker.step()
            files = LocalFiles(folder / "deltas", durable=True)
            taken = take_over(files, "form", 5, retrained, following, lambda: 1, "second")
        try:
            publish(trainer, workers, deltas)
        except TakenOverError:
            trainer, workers, deltas = retrained, following, taken
    run(trainer, workers, deltas)


JOBS: dict[str, Callable[[Path, random.Random], None]] = {
    "archive": archive,
    "hand over": hand_over_job,
    "take over": take_over_job,
}


def main(job: str, folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    archive_worker._RECORDS_AT_ONCE = 4
    train_worker._RECORDS_AT_ONCE = 4
    rng = random.Random(seed)
    killed = 0
    while True:
        steps, seconds, child_seed = rng.randint(1, 16), rng.uniform(0.02, 0.5), rng.randrange(2**32)
        child = os.fork()
        if child == 0:
            try:
                if killed < KILLS:
                    kill_at_step(steps) if killed < AT_STEPS or killed % 2 else kill_at_time(seconds)
                JOBS[job](folder, random.Random(child_seed))
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            sys.exit(code)
        killed += 1
    print(killed)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
