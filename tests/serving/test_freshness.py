"""Freshness is measured from event time; an idle stream is not a stale model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minutely.services.serve import make_replica_service
from paramserver.learned import Delays, Learned
from serving.freshness import BOUNDS_SECONDS, Histogram
from streaming.clock import EventClock
from tests.clocks import SetClock
from tests.serving.publishing import DAY, Publisher, make_pipeline
from trainer.epoch_times import EpochTimes

LIMIT = 300_000


def test_delays_keep_what_they_count() -> None:
    random = np.random.default_rng(1)
    milliseconds = np.exp(random.uniform(0, 18, 10_000)).astype(np.int64)
    delays = Delays.of(milliseconds)
    assert sum(delays.counts) == 10_000 and len(delays.counts) < 400
    middles = np.repeat(delays.middles_ms(), delays.counts)
    assert (np.abs(middles - np.sort(milliseconds)) <= 0.06 * np.sort(milliseconds) + 1).all()
    assert Delays.of(np.array([-5, 0, 1]), np.array([1, 2, 3])) == Delays(buckets=[0], counts=[6])


def test_times_of_an_epoch() -> None:
    times = EpochTimes()
    random = np.random.default_rng(2)
    happened, decided = [], []
    for at in range(0, 60_000, 100):
        decided.append(at - random.integers(0, 50, 300))
        happened.append(decided[-1] - random.integers(0, 10_000, 300))
        times.add(happened[-1], decided[-1], at + 20, at - 1_000_000, at - 999_990)
    learned = times.take(60_000, 60_000 - 1_000_020)
    assert learned.examples == 180_000 and learned.newest_at == max(each.max() for each in happened)
    for delays, wanted in (
        (learned.event, 60_000 - np.concatenate(happened)),
        (learned.decided, 60_000 - np.concatenate(decided)),
        (learned.train, np.full(180_000, 10)),
        (learned.publish, 60_000 - 30 - np.repeat(np.arange(0, 60_000, 100), 300)),
    ):
        found = np.repeat(delays.middles_ms(), delays.counts)
        assert len(found) == 180_000
        for share in (0.5, 0.99):
            assert np.quantile(found, share) == pytest.approx(np.quantile(wanted, share), rel=0.06, abs=1)
    assert times.take(120_000, 0) == Learned(newest_at=learned.newest_at), "newest stays, the rest begins anew"


def test_a_histogram_is_what_was_put_in() -> None:
    histogram = Histogram()
    random = np.random.default_rng(3)
    milliseconds = random.integers(1, 60_000, 50_000)
    histogram.add(Delays.of(milliseconds), later_ms=2000)
    seconds = (milliseconds + 2000) / 1000
    wanted = [int((seconds <= bound).sum()) for bound in BOUNDS_SECONDS]
    assert np.abs(np.cumsum(histogram.counts)[:-1] - wanted).max() < 0.04 * 50_000
    assert histogram.sum_seconds == pytest.approx(seconds.sum(), rel=0.02)
    found = histogram.quantiles((0.5, 0.99))
    assert found["p50"] == pytest.approx(np.quantile(seconds, 0.5), rel=0.05)
    assert found["p99"] == pytest.approx(np.quantile(seconds, 0.99), rel=0.05)


def test_fresh_idle_and_stale(tmp_path: Path) -> None:
    clock = EventClock(DAY)
    publisher = Publisher(make_pipeline(serve={"stale_is_unready": True}), tmp_path)
    service = make_replica_service(publisher.pipeline, publisher.files, clock, "replica")

    def pull() -> None:
        service.replica.pull()

    def publish(newest_at: int, examples: int) -> None:
        delays = Delays.of(np.full(examples, clock.now_ms() - newest_at)) if examples else Delays()
        learned = Learned(newest_at=newest_at, examples=examples, event=delays, decided=delays)
        publisher.train(clock.now_ms())
        publisher.publish(clock.now_ms(), learned=learned)

    assert service.status().state == "empty"
    publish(DAY - 4000, 10)
    clock.move_to(DAY + 1000)
    pull()
    status = service.status()
    assert (status.state, status.freshness_seconds, status.newest_behaviour_seconds) == ("fresh", 1.0, 5.0)
    assert status.decided_to_servable_seconds["p50"] == pytest.approx(5.0, rel=0.05)
    assert status.stage_p50_seconds["apply"] == pytest.approx(1.0, rel=0.05)
    assert service.ready() == (True, "fresh")

    clock.move_to(DAY + 2 * LIMIT)  # nothing happens, and versions say so
    publish(DAY - 4000, 0)
    pull()
    status = service.status()
    assert (status.state, status.freshness_seconds) == ("idle", 0.0)
    assert status.newest_behaviour_seconds == 604.0
    assert service.ready() == (True, "idle")

    clock.move_to(DAY + 3 * LIMIT + 1)  # the trainer stands still: nobody knows what happens
    pull()
    status = service.status()
    assert status.state == "stale" and status.freshness_seconds == pytest.approx(LIMIT / 1000, abs=0.01)
    assert service.ready() == (False, "stale: 300 s old")
    assert service.freshness.deltas == 2
    assert sum(service.freshness.decided_to_servable.counts) == 10


def test_a_replica_that_starts_counts_no_version_from_before(tmp_path: Path) -> None:
    """What waited for nobody but it says nothing of how fresh the model was."""
    clock = EventClock(DAY)
    publisher = Publisher(make_pipeline(), tmp_path)
    delays = Delays.of(np.full(10, 4000))
    learned = Learned(newest_at=DAY, examples=10, event=delays, decided=delays)
    publisher.train(DAY)
    publisher.publish(DAY, learned=learned)
    clock.move_to(DAY + LIMIT)
    service = make_replica_service(publisher.pipeline, publisher.files, clock, "replica")
    service.replica.pull()
    assert sum(service.freshness.decided_to_servable.counts) == 0
    publisher.train(clock.now_ms())
    publisher.publish(clock.now_ms(), learned=learned)
    service.replica.pull()
    assert sum(service.freshness.decided_to_servable.counts) == 10


def test_a_stale_replica_is_ready_unless_told_otherwise(tmp_path: Path) -> None:
    clock = EventClock(DAY)
    publisher = Publisher(make_pipeline(), tmp_path)
    service = make_replica_service(publisher.pipeline, publisher.files, clock, "replica")
    publisher.next(DAY)
    clock.move_to(2 * DAY)
    service.replica.pull()
    assert service.ready() == (True, "stale")


def test_a_clock_that_is_set_back_does_not_make_a_stale_model_fresh(tmp_path: Path) -> None:
    clock = SetClock(1000, DAY)
    publisher = Publisher(make_pipeline(), tmp_path)
    service = make_replica_service(publisher.pipeline, publisher.files, clock, "replica")
    publisher.next(clock.now_ms())
    service.replica.pull()
    assert service.status().state == "fresh"
    clock.elapsed, clock.ahead = clock.elapsed + 2 * LIMIT, DAY - 12 * LIMIT
    assert (service.status().state, service.status().freshness_seconds) == ("stale", 2 * LIMIT / 1000)
