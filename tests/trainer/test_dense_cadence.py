"""When a trainer publishes, and when that brings dense weights: what a young model learned is not kept back for a day."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from streaming.embedded_log import EmbeddedLog
from streaming.log import EXAMPLES
from tests.clocks import SetClock
from tests.trainer.test_retrain import FORMAT, MINUTE, START, make_replica, make_trainer, records
from trainer.dense_cadence import DenseCadence
from trainer.online import OnlineTrainer

DAY = 86_400_000


class Place:
    def __init__(self, folder: Path) -> None:
        self.log = EmbeddedLog(folder / "log", durable=False)
        self.files = LocalFiles(folder / "deltas", durable=False)
        self.clock = SetClock(5_000, START)

    def start(self, dense_every: int = DAY) -> OnlineTrainer:
        deltas = DeltaLog.resume(self.files, "form", 1000)
        return OnlineTrainer(
            make_trainer(), self.log, [0], FORMAT, self.files, deltas, self.clock,
            sparse_every=MINUTE, dense_every=dense_every,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_dense_weights_go_out_at_growing_intervals_across_restarts(place: Place) -> None:
    replica = make_replica(place.files)
    sent = []
    online = place.start()
    for minute in range(200):
        if minute % 37 == 36:
            online = place.start()
        place.log.append(EXAMPLES, 0, records(1, minute, every=MINUTE))
        online.step()
        manifest = online.publish()
        assert manifest is not None and manifest.dense is not None
        if manifest.dense.version == manifest.version:
            sent.append(minute)
        replica.pull()
        assert replica.dense_version == manifest.dense.version
    assert sent == [0, 1, 3, 7, 15, 31, 63, 127], "after 1, 2, 4, ... minutes"


def test_a_settled_model_is_at_its_cadence_alone() -> None:
    trainer = make_trainer()
    cadence = DenseCadence(trainer, DAY)
    assert cadence.is_due(0)
    trainer.first_at = 10 * DAY
    at, sent = trainer.first_at, []
    while at < 14 * DAY:
        if cadence.is_due(at):
            cadence.sent(at)
            sent.append(at)
        at += MINUTE
    assert sent[-3:] == [11 * DAY, 12 * DAY, 13 * DAY]
    assert sent[:13] == [10 * DAY + minutes * MINUTE for minutes in (0, *(1 << n for n in range(11)), 1440)]


def test_what_moved_far_goes_out_if_asked_to() -> None:
    trainer = make_trainer()
    cadence, plain = DenseCadence(trainer, DAY, change=0.1), DenseCadence(trainer, DAY)
    trainer.first_at = START
    for one in (cadence, plain):
        one.sent(START)
    trainer.weights.vector *= 1.09
    assert not cadence.is_due(START + 1)
    trainer.weights.vector *= 1.02
    assert cadence.is_due(START + 1) and not plain.is_due(START + 1)
    again = DenseCadence(trainer, DAY, change=0.1)
    again.restore(START, trainer.model.state_dict())
    assert not again.is_due(START + 1)
    trainer.weights.vector *= np.float32(0.8).item()
    assert again.is_due(START + 1)


def test_a_replica_that_began_before_the_first_dense_weights_takes_them(place: Place) -> None:
    trainer, replica = make_trainer(), make_replica(place.files)
    trainer.train(FORMAT.decode(records(1)[0])[0])
    deltas = DeltaLog(place.files, "form", 10)
    deltas.publish(trainer.seal(), Cut(START, START, {}))
    replica.pull()
    assert (replica.sparse_version, replica.dense_version) == (1, 0)
    for version in (2, 3):  # of one and the same day
        deltas.publish(trainer.seal(), Cut(START + version, START + version, {}, trainer.dense_weights()))
        replica.pull()
        assert replica.dense_version == version


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_neither_stops_nor_hastens_publication(place: Place, hours: int) -> None:
    online = place.start()
    place.log.append(EXAMPLES, 0, records(1))
    online.step()
    place.clock.elapsed += MINUTE
    assert online.is_publication_due() and online.publish() is not None
    place.clock.ahead += hours * 60 * MINUTE
    assert not online.is_publication_due()
    place.clock.elapsed += MINUTE - 1
    assert not online.is_publication_due()
    place.clock.elapsed += 1
    assert online.is_publication_due()


@pytest.mark.parametrize(
    ("off_for", "wait"), [(20_000, 40_000), (5 * MINUTE, 0), (-60 * MINUTE, MINUTE)], ids=["short", "long", "set back"]
)
def test_the_age_of_the_newest_version_counts_after_a_restart(place: Place, off_for: int, wait: int) -> None:
    online = place.start()
    place.log.append(EXAMPLES, 0, records(1))
    online.step()
    assert online.publish() is not None
    place.clock.elapsed, place.clock.ahead = 100, place.clock.now_ms() + off_for - 100  # another boot, another origin
    online = place.start()
    if wait:
        place.clock.elapsed += wait - 1
        assert not online.is_publication_due()
        place.clock.elapsed += 1
    assert online.is_publication_due()
