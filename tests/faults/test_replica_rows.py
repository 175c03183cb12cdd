"""A replica that meets errors between the steps of a pull, or is killed: its rows have the checksums of its version, or it says
that it has none and loads again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from minutely.services.serve import make_replica_service
from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.marks import unpin
from paramserver.table import Table
from streaming.clock import EventClock
from tests.commands import ROOT
from tests.paramserver.published import Writer
from tests.serving.publishing import DAY, Publisher, make_pipeline

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split(",")]
FAULTS = int(os.environ.get("FAULTS", "8"))
_STEPS = ("reserve", "erase", "upsert", "set_default_row")
MINUTE = 60_000


class Faults:
    """Makes one of the next steps that change tables fail, before it or after it."""

    def __init__(self) -> None:
        self.left = 0
        self.raised = 0

    def watch(self, table: Table) -> None:
        for name in _STEPS:
            setattr(table, name, self._watched(getattr(table, name)))

    def _watched(self, step: object) -> object:
        def watched(*arguments: object) -> object:
            self._count()
            found = step(*arguments)  # type: ignore[operator]
            self._count()
            return found

        return watched

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.raised += 1
            raise RuntimeError("no memory")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_living_replica_has_a_version_whole_or_none(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    publisher = Publisher(make_pipeline(), tmp_path)
    clock, faults = EventClock(DAY), Faults()
    service = make_replica_service(publisher.pipeline, publisher.files, clock, "replica")
    replica, puller = service.replica, service.puller
    for table in replica.tables.values():
        faults.watch(table)

    def pull() -> None:
        clock.move_to(clock.now_ms() + MINUTE)
        puller.step()

    publisher.next(clock.now_ms(), dense=True)
    pull()
    none = version = 0
    while faults.raised < FAULTS:
        version = publisher.next(clock.now_ms(), dense=True).version
        if rng.random() < 0.5:  # all rows again, as of an older version
            version = (
                DeltaLog.resume(publisher.files, publisher.pipeline.form(), 1000)
                .go_back(version, 0, training=False)
                .version
            )
            unpin(publisher.files)
            publisher.log = DeltaLog.resume(publisher.files, publisher.pipeline.form(), 1000)
        raised = faults.raised
        faults.left = rng.randint(1, 20)
        pull()
        if faults.raised > raised and not replica.sparse_version:
            none += 1
            assert not service.ready()[0]
        assert replica.drifted() == []
        faults.left = 0
        pull()
        assert (replica.sparse_version, replica.drifted()) == (version, [])
        assert service.ready()[0]
    assert none


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_replica_has_the_rows_of_its_version_again(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    writer = Writer(LocalFiles(tmp_path, durable=False), 3, seed)
    writer.publish()
    for _ in range(FAULTS):
        command = [sys.executable, "-m", "tests.faults.pulling", str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as replica:
            assert replica.stdout is not None
            lines = [replica.stdout.readline()]
            for _ in range(rng.randint(1, 12)):
                writer.publish()
            if rng.random() < 0.5:
                lines.append(replica.stdout.readline())
            replica.kill()
            lines += replica.stdout.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("]\n")]
        assert whole and all(line.endswith(" []\n") for line in whole), lines
