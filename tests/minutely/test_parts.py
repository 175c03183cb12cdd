"""Who knows a service's config, as who reads it in a repository does, cannot choose ids that share their buckets there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minutely.parts import make_trainer
from minutely.services.serve import make_replica_service
from paramserver.files import LocalFiles
from paramserver.table import Table
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from tests.minutely.services.test_train import PIPELINE, World
from tests.paramserver.test_table import shared_bucket_ids

# More than fit in two buckets, in the smallest index.
CRAFTED = shared_bucket_ids(12, 16, PIPELINE.seed, "example")


def trainers(folder: Path) -> Table:
    world = World(folder)
    trainer = world.start()
    trainer.close()
    EmbeddedLog.close(world.log)
    return trainer.online.trainer.tables["example"]


def replicas(folder: Path) -> Table:
    files = LocalFiles(folder, durable=False)
    return make_replica_service(PIPELINE, files, EventClock(1), "replica").replica.tables["example"]


@pytest.mark.parametrize("of", [trainers, replicas])
def test_ids_crafted_by_the_config_are_like_others_in_a_service(of: Callable[[Path], Table], tmp_path: Path) -> None:
    table, replayed = of(tmp_path), make_trainer(PIPELINE).tables["example"]
    for one in (table, replayed):
        one.upsert(CRAFTED, np.ones((len(CRAFTED), one.dim), np.float32))
    assert len(table) == len(replayed) == len(CRAFTED)
    assert table.stats.overflow == 0
    assert replayed.stats.overflow == len(CRAFTED) - 8, "which follows from the seed, so they are crafted well"
