"""Processes killed by SIGKILL at seeded random points while they archive, train from the archive, hand over and take over:
afterwards every example is exactly once in the archive, and exactly once in a trainer that counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from streaming.archive.table import Archive
from streaming.embedded_log import EmbeddedLog
from streaming.log import EXAMPLES
from tests.commands import ROOT
from tests.faults.killed import AT_STEPS
from tests.trainer.test_retrain import FORMAT, NEVER, archive_of, make_trainer, records
from trainer.recovery import recover_newest

PARTITIONS = range(2)
SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split(",")]


def killed(job: str, folder: Path, seed: int) -> int:
    """Do a job in processes that are killed; how many were."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killed", job, str(folder), str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout)


def append(folder: Path, start: int, stop: int) -> None:
    """Records ``start`` to ``stop`` of each partition, a minute apart; the second partition's examples begin at 30,000."""
    log = EmbeddedLog(folder / "log", durable=True)
    for partition in PARTITIONS:
        log.append(EXAMPLES, partition, records(stop - start, 10_000 * partition + start, 60_000))
    log.close()


def numbers(stop: int) -> list[int]:
    return [
        3 * at + n
        for partition in PARTITIONS
        for at in range(10_000 * partition, 10_000 * partition + stop)
        for n in range(3)
    ]


def counted(folder: Path) -> dict[int, int]:
    """How often each example was trained, by the newest version."""
    files = LocalFiles(folder / "deltas", durable=False)
    deltas, trainer = DeltaLog.resume(files, "form", 5), make_trainer()
    newest = recover_newest(files, deltas, trainer)
    assert newest is not None
    assert newest.version == deltas.version, "a kill damages nothing"
    rows = trainer.tables["example"].export()
    return dict(zip(rows.ids.tolist(), rows.counts.tolist(), strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_each_example_is_archived_once(tmp_path: Path, seed: int) -> None:
    append(tmp_path, 0, 200)
    assert killed("archive", tmp_path, seed) >= AT_STEPS
    archive = Archive(str(tmp_path / "archive"), FORMAT)
    found = Counter(name for batch in archive.batches(0, NEVER) for name in batch.column("example_id").to_pylist())
    assert found == Counter(f"e{number}" for number in numbers(200))
    for partition in PARTITIONS:
        position = archive.position(partition)
        assert position is not None
        assert position.offset == 200


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("job", ["hand over", "take over"])
def test_each_example_is_trained_once(tmp_path: Path, job: str, seed: int) -> None:
    append(tmp_path, 0, 60)
    log = EmbeddedLog(tmp_path / "log", durable=False)
    archive_of(log, tmp_path / "archive", partitions=2)
    log.close()
    append(tmp_path, 60, 120)
    assert killed(job, tmp_path, seed) >= AT_STEPS
    assert counted(tmp_path) == dict.fromkeys(numbers(120), 1)
    newest = DeltaLog.resume(LocalFiles(tmp_path / "deltas", durable=False), "form", 5).newest
    assert newest is not None
    assert newest.offsets == {"examples/0": 120, "examples/1": 120}
    assert (newest.lineage > 1) == (job == "take over")
