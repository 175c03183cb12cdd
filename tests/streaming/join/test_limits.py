"""Whatever a joiner holds is bounded: what is too much for one transaction is split, and only what nobody bounds is refused."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming.features.kinds import Feature, SparseFeature
from streaming.join.commit import Committed
from streaming.join.core import Joiner
from streaming.join.limits import Limits
from streaming.join.memory import MemoryShare
from streaming.join.negatives import Negatives
from streaming.join.partition import JoinPartition
from streaming.join.pending import Pending
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.join.store import RocksStore, StoreMemory
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.loop.brokers import OutputRecord
from streaming.records.events import FORMAT_VERSION, Engagement, Request, decode_letter, encode
from streaming.records.examples import ExampleFormat
from streaming.records.labels import Label
from tests.streaming.join.join_lives import Brokers, Crash, records_of
from tests.streaming.join.join_world import (
    CLICK,
    HEAD,
    Done,
    Served,
    arrived,
    engagement_record,
    make_joiner,
    request_record,
    roomy_state,
)

FEATURES: dict[str, Feature] = {
    "seen": SparseFeature(column="seen", scope="request", pool="mean"),
    "item": SparseFeature(column="item"),
}
WINDOW, LATENESS = 1000, 10_000
LABELS = {"click": Label(action="click", window=f"{WINDOW}ms")}
FORMAT = ExampleFormat(FEATURES, LABELS)
ENDED, OPEN = {IMPRESSIONS: True, ENGAGEMENTS: True}, {IMPRESSIONS: False, ENGAGEMENTS: False}
SLACK = 8 << 10
"""What Arrow and msgpack add to a transaction, and one row."""


class SmallBrokers(Brokers):
    """Keep the size of each transaction; the sender of one of them dies, before or after it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.dies = (-1, "")

    def send(self, outbox: Sequence[OutputRecord], commit: Committed) -> int:
        self.crash = self.dies[1] if self.dies[0] == len(self.sizes) else ""
        self.sizes.append(sum(len(item.value) for item in outbox))
        return super().send(outbox, commit)

    def examples(self) -> tuple[Counter[str], dict[str, float]]:
        times, labels = Counter[str](), {}
        for value in self.topics[EXAMPLES]:
            if value is not None:
                batch, _ = FORMAT.decode(value)
                names = batch.column("example_id").to_pylist()
                times.update(names)
                labels.update(zip(names, batch.column("label.click").to_pylist(), strict=True))
        return times, labels


def large_request(name: str, served_at: int, impressions: int, seen: int) -> bytes:
    """One whose every example repeats a list of ``seen`` ids."""
    ids = np.arange(seen, dtype="<i8")
    request = Request(
        version=FORMAT_VERSION,
        request_id=name,
        served_at=served_at,
        impression_ids=[str(at) for at in range(impressions)],
        shared={"seen": (np.array([seen], "<i4").tobytes(), ids.tobytes())},
        features={"item": np.arange(impressions, dtype="<i8").tobytes()},
    )
    return encode(request)


def click(request: str, impression: str, at: int) -> bytes:
    record = Engagement(
        version=FORMAT_VERSION, request_id=request, impression_id=impression, action="click", happened_at=at
    )
    return encode(record)


def partition(folder: Path, brokers: Brokers, limits: Limits, keep: float = 1.0, memory: int = 1 << 30) -> Any:
    spec = JoinSpec(FEATURES, LABELS, JoinSettings(lateness=f"{LATENESS}ms"), Negatives(keep, 1), limits=limits)
    state = JoinState(folder, memory)
    join = JoinPartition(spec, state, brokers, brokers, 0, new_id=lambda: str(id(state)))
    return state, join


def take_all(join: JoinPartition, brokers: Brokers, topic: str) -> None:
    start = join.offsets[topic]
    records = records_of(brokers.topics[topic][start:], start)
    assert join.take(topic, records) == len(records)


# One request that everybody has engagements of.


def test_engagements_of_an_undefined_request_are_bounded(tmp_path: Path) -> None:
    state = JoinState(tmp_path / "state", 1 << 30)
    core = make_joiner(CLICK, state)
    for number in range(12_000):
        core.add(
            ENGAGEMENTS, arrived(number, engagement_record(Done("undefined", f"item{number}", "click", 1000, 1.0)))
        )
    assert core.counts.refused["too_many"] == 2000
    letters = core.drain().dead_letters
    assert [letter.offset for letter in letters] == list(range(10_000, 12_000))
    assert "wait for request undefined" in letters[0].detail
    state.write(HEAD)
    written: Any = state._db.get(b"pundefined")
    assert len(written) < 1_200_000
    core.advance(2000)
    letters = core.drain().dead_letters
    assert Counter(letter.reason for letter in letters) == {"unmatched": 10_000}
    assert not len(state)
    state.close()


def test_engagements_that_wait_are_bounded_in_bytes_too() -> None:
    core = make_joiner(CLICK)
    for number in range(100):
        record = engagement_record(Done("r7", str(number), "click", 1000, 1.0))
        padded = bytes([record[0] + 1]) + record[1:] + b"\xa3pad\xc5" + (40_000).to_bytes(2, "big") + bytes(40_000)
        core.add(ENGAGEMENTS, arrived(number, padded))
    assert core.counts.refused["too_many"] == 100 - (1 << 20) // 40_100
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r7", 950, 1))))
    core.advance(2000)
    assert core.counts.refused["unmatched"] == (1 << 20) // 40_100


def test_engagements_of_all_impressions_of_a_request_are_bounded() -> None:
    spec = JoinSpec(FEATURES, LABELS, limits=Limits(request_events=30))
    core = Joiner(spec, roomy_state())
    core.add(IMPRESSIONS, arrived(0, large_request("r", 1000, 20, 1)))
    for number in range(40):
        core.add(ENGAGEMENTS, arrived(number, click("r", str(number % 20), 1000 + number)))
    assert core.counts.refused["too_many"] == 10
    core.advance(5000)
    (batch,) = core.drain().examples
    assert batch.num_rows == 20 and set(batch.column("label.click").to_pylist()) == {1.0}


# More is due than a transaction holds.


def test_a_shared_list_is_split_over_transactions(tmp_path: Path) -> None:
    brokers = SmallBrokers()
    state, join = partition(tmp_path / "state", brokers, Limits())
    brokers.topics[IMPRESSIONS].append(large_request("r", 1000, 400, 16_000))
    for _ in join.recover():
        pass
    take_all(join, brokers, IMPRESSIONS)
    join.step(ENDED, 100_000, 0)
    while join.busy:
        join.step(ENDED, 100_000, 0)
    times, _ = brokers.examples()
    assert times == Counter(f"r/{at}" for at in range(400))
    assert len(brokers.sizes) == 4 and max(brokers.sizes) < Limits().batch_bytes + (1 << 20)
    assert join.published == 100_000 - LATENESS
    state.close()


SMALL = Limits(batch_bytes=8000)


def fill(brokers: Brokers) -> dict[str, float]:
    """Small and large requests, positive and negative; the labels that they lead to where negatives are kept."""
    labels = {}
    for number in range(6):
        name, impressions = f"r{number}", (40 if number % 2 else 1)
        brokers.topics[IMPRESSIONS].append(large_request(name, 1000 + number, impressions, 200))
        for at in range(impressions):
            labels[f"{name}/{at}"] = float(at % 3 == 0)
            if at % 3 == 0:
                brokers.topics[ENGAGEMENTS].append(click(name, str(at), 1100 + at))
    return labels


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("lost", [False, True])
def test_a_crash_between_the_parts_of_a_request_costs_nothing(
    lost: bool, late: bool, keep: float, tmp_path: Path
) -> None:
    """``late``: it came when everything before it was said to be out. ``lost``: the state goes with the process."""
    found = []
    for dies in [(-1, ""), *((at, when) for at in (2, 5, 9) for when in ("before", "after"))]:
        brokers, lives = SmallBrokers(), 0
        brokers.dies = dies
        if late:
            brokers.topics[IMPRESSIONS].append(large_request("first", LATENESS + 2000, 1, 1))
        labels: dict[str, float] = {}
        while True:
            lives += 1
            folder = tmp_path / f"{dies}{lives if lost else ''}"
            state, join = partition(folder, brokers, SMALL, keep, memory=1)
            try:
                for _ in join.recover():
                    pass
                if not labels:
                    if late:
                        take_all(join, brokers, IMPRESSIONS)
                        join.step(ENDED, LATENESS + 5000, 0)
                    labels = fill(brokers)
                while join.busy:
                    join.step(ENDED, LATENESS + 5000, 0)
                take_all(join, brokers, IMPRESSIONS)
                take_all(join, brokers, ENGAGEMENTS)
                join.step(ENDED, LATENESS + 5000, 0)
                while join.busy:
                    join.step(ENDED, LATENESS + 5000, 0)
                join.step(ENDED, 100_000, 0)
                while join.busy:
                    join.step(ENDED, 100_000, 0)
                break
            except Crash:
                brokers.dies = (-1, "")
            finally:
                state.close()
        assert lives == (1 if dies[0] < 0 else 2)
        times, ours = brokers.examples()
        assert set(times.values()) == {1}
        labels |= {"first/0": 0.0} if late else {}
        assert all(labels[name] == label for name, label in ours.items())
        assert {name for name, label in labels.items() if label} <= ours.keys()
        assert max(brokers.sizes) < SMALL.batch_bytes + SLACK and len(brokers.sizes) > 10
        assert not brokers.topics[DEAD_LETTERS]
        found.append(ours)
    assert all(each == found[0] for each in found), "another sample of negatives"
    assert (len(found[0]) == len(labels)) == (keep == 1)


def test_what_is_refused_is_split_over_transactions(tmp_path: Path) -> None:
    brokers = SmallBrokers()
    state, join = partition(tmp_path / "state", brokers, SMALL)
    brokers.topics[ENGAGEMENTS] = [b"no engagement" + bytes(1000) for _ in range(100)]
    for _ in join.recover():
        pass
    while (start := join.offsets[ENGAGEMENTS]) < 100:
        records = records_of(brokers.topics[ENGAGEMENTS][start:], start)
        assert 0 < join.take(ENGAGEMENTS, records) < len(records) or join.offsets[ENGAGEMENTS] == 100
        assert join.must_step or join.offsets[ENGAGEMENTS] == 100
        join.step(OPEN, 100_000, 0)
    letters = [decode_letter(value) for value in brokers.topics[DEAD_LETTERS] if value is not None]
    assert [letter.offset for letter in letters] == list(range(100))
    assert max(brokers.sizes) < SMALL.batch_bytes + SLACK
    state.close()


def test_large_records_are_joined_before_more_of_them_are_taken(tmp_path: Path) -> None:
    brokers = SmallBrokers()
    state, join = partition(tmp_path / "state", brokers, Limits(taken_bytes=10_000))
    for _ in join.recover():
        pass
    join.take(IMPRESSIONS, records_of([large_request("r0", 1000, 1, 600)], 0))
    assert not join.must_step
    join.take(IMPRESSIONS, records_of([large_request("r1", 1000, 1, 700)], 1))
    assert join.must_step
    join.step(OPEN, 2000, 0)
    assert not join.must_step
    state.close()


# Memory.


def test_memory_is_shared_by_the_partitions_that_are_owned(tmp_path: Path) -> None:
    memory = MemoryShare(16 << 20)
    memory.divide(1)
    state, brokers = memory.open(tmp_path / "0"), SmallBrokers()
    alone = state.memory_bytes
    assert alone == 12 << 20
    spec = JoinSpec(FEATURES, LABELS, JoinSettings(lateness=f"{LATENESS}ms"))
    join = JoinPartition(spec, state, brokers, brokers, 0, new_id=lambda: "id")
    for _ in join.recover():
        pass
    join.take(IMPRESSIONS, records_of([large_request(f"r{at}", 1000, 1, 400) for at in range(1000)], 0))
    join.step(OPEN, 1000, 1000)
    assert 3 << 20 < state._bytes <= alone
    memory.divide(12)
    others = [memory.open(tmp_path / str(number)) for number in range(1, 12)]
    assert state.memory_bytes == others[0].memory_bytes == 1 << 20
    join.step(OPEN, 1001, 1000)  # nothing was taken, and nothing is due
    assert state._bytes <= state.memory_bytes and len(state) == 1000
    memory.divide(1)
    assert state.memory_bytes == alone
    for each in (state, *others):
        each.close()


def test_stores_share_what_they_have_in_memory(tmp_path: Path) -> None:
    memory = StoreMemory(16 << 20)
    stores = [RocksStore(tmp_path / str(number), memory) for number in range(6)]
    value = np.random.default_rng(1).bytes(1 << 20)
    for number in range(12):
        for store in stores:
            batch = store.batch()
            batch.put(str(number).encode(), value)
            store.write(batch)
        until = time.monotonic() + 30  # flushes are in the background, and writers do not wait for them
        while memory.buffers.get_usage() > 24 << 20:
            assert time.monotonic() < until, "6 stores are given 12 MiB each"
            time.sleep(0.01)
    assert memory.buffers.get_usage() > 0
    assert all(store.get([str(number).encode() for number in range(12)]) == [value] * 12 for store in stores)
    assert memory.cache.get_usage() <= 9 << 20
    for store in stores:
        store.close()


def test_a_write_is_due_by_what_it_takes_and_not_by_what_came(tmp_path: Path) -> None:
    state = JoinState(tmp_path / "state", 1 << 30, unwritten_bytes=1 << 20)
    for number in range(3):
        pending = Pending(waiting=[(number, bytes(500_000))])
        state.wake(f"r{number}", pending, 10)
        state.add(f"r{number}", pending, 500_000)
    assert state.must_write
    state.write(HEAD)
    assert not state.must_write
    for number in range(3):  # each is written again as a whole
        pending = state.get(f"r{number}") or pytest.fail("gone")
        pending.waiting.append((10, b"x"))
        state.add(f"r{number}", pending, 1)
    assert state.must_write
    state.close()


def test_the_ids_of_a_marker_count_as_memory(tmp_path: Path) -> None:
    state = JoinState(tmp_path / "state", 1 << 30)
    core = make_joiner(CLICK, state, lateness=10_000)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 5000))))
    core.advance(1200)
    assert core.drain().examples and len(state) == 1
    assert state._bytes > 5000 * 50
    core.advance(100_000)
    assert not len(state) and state._bytes < 1000
    state.close()
