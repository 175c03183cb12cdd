"""The recovery protocol, simulated: any crash between any two steps, state lost or old, and still every example once.

The brokers here are a log in memory whose transactions are whole or absent; everything else is what ships.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from streaming.clock import EventClock
from streaming.events import MAX_TIME_MS, SCHEMA_VERSION, DeadLetter, Engagement, Request, decode_engagement, encode
from streaming.examples import ExampleFormat
from streaming.features import Feature, SparseFeature
from streaming.join_partition import Committed, JoinPartition
from streaming.join_state import JoinState, Outgoing
from streaming.joiner import Joiner, JoinSettings
from streaming.labels import Label, Rule, decide
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.negatives import Negatives

FEATURES: dict[str, Feature] = {"key": SparseFeature(column="key")}
WINDOW, LATENESS = 1000, 300
LABELS = {"click": Label(action="click", window=f"{WINDOW}ms")}
ENDED = {"click": Label(action="click", decided_by="end", window=f"{WINDOW}ms")}
FORMAT = ExampleFormat(FEATURES, LABELS)


SEEDS = int(os.environ.get("JOIN_SEEDS", "6"))
SETTINGS = JoinSettings(lateness=f"{LATENESS}ms", max_rows=16, memory_bytes=1 << 20)


class Crash(Exception):
    """The process is gone."""


class Brokers:
    """One partition of every topic, and the joiner's group; ``crash_at`` lets a transaction's sender die, before or after it."""

    def __init__(self) -> None:
        self.topics: dict[str, list[bytes | None]] = {
            name: [] for name in (IMPRESSIONS, ENGAGEMENTS, EXAMPLES, DEAD_LETTERS)
        }
        self.committed: Committed | None = None
        self.crash: str = ""

    def open(self) -> Committed | None:
        return self.committed

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> int:
        if self.crash == "before":
            raise Crash
        for item in outbox:
            self.topics[item.topic].append(item.value)
        for name in {item.topic for item in outbox}:
            self.topics[name].append(None)  # the mark that a transaction leaves takes an offset
        self.committed = commit
        if self.crash == "after":
            raise Crash
        return len(self.topics[EXAMPLES])

    def beginning(self, topic: str) -> int:
        return 0

    def end(self, topic: str) -> int:
        return len(self.topics[topic])

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        for at in range(start, stop, 7):
            yield [
                Record(offset, value)
                for offset, value in enumerate(self.topics[topic][at : min(stop, at + 7)], at)
                if value is not None
            ]


def fill(brokers: Brokers, rng: random.Random, requests: int) -> dict[str, float]:
    """Input in any order within the lateness, some of it twice; the labels that it must lead to."""
    labels: dict[str, float] = {}
    arrivals: list[tuple[float, str, bytes]] = []
    for number in range(requests):
        served_at = 10_000 + number * 20
        ids = [f"{number}.{at}" for at in range(rng.randrange(1, 4))]
        keys = b"".join(number.to_bytes(8, "little") for _ in ids)
        request = Request(
            version=SCHEMA_VERSION,
            request_id=f"r{number}",
            served_at=served_at,
            impression_ids=ids,
            features={"key": keys},
        )
        records = [(served_at, IMPRESSIONS, encode(request))]
        for name in ids:
            labels[name] = float(rng.random() < 0.3)
            if labels[name]:
                at = served_at + rng.randrange(WINDOW + 1)
                click = Engagement(
                    version=SCHEMA_VERSION, request_id=f"r{number}", impression_id=name, action="click", happened_at=at
                )
                records.append((at, ENGAGEMENTS, encode(click)))
        for at, topic, value in records:
            arrivals += [(at + rng.random() * LATENESS, topic, value) for _ in range(1 + (rng.random() < 0.1))]
    for _, topic, value in sorted(arrivals):
        brokers.topics[topic].append(value)
    return labels


class World:
    """One partition over several lives; each life has a folder, of which there are two; it may be lost, or be what it once was."""

    def __init__(
        self,
        rng: random.Random,
        folder: Path,
        labels: dict[str, Label] = LABELS,
        join: JoinSettings = SETTINGS,
        negatives: Negatives = Negatives(),
    ) -> None:
        self.rng = rng
        self.make = lambda over: Joiner(FEATURES, labels, join, over, EventClock(10_000_000), 0, negatives)
        self.folders = [folder / "a", folder / "b"]
        self.copies = folder / "copies"
        self.brokers = Brokers()
        self.ids = map(str, itertools.count())
        self.lives = Counter[str]()

    def live(self, steps: int) -> bool:
        """One life of a worker. Whether it read everything to its end."""
        rng, brokers = self.rng, self.brokers
        if rng.random() < 0.3:
            self.folders.reverse()
        folder = self.folders[0]
        copy = self.copies / folder.name
        match rng.randrange(10):
            case 0 | 1:
                shutil.rmtree(folder, ignore_errors=True)
            case 2 | 3 if copy.exists():
                shutil.rmtree(folder, ignore_errors=True)
                copy.rename(folder)
            case 4 | 5 if folder.exists():
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(folder, copy)
        brokers.crash = ""
        state = JoinState(folder, 4096 if rng.random() < 0.5 else 1 << 20)
        join = JoinPartition(
            state,
            self.make,
            brokers,
            brokers,
            lambda: next(self.ids),
            LATENESS,
            2 * WINDOW + LATENESS,
            write_every_ms=rng.choice(
                [0, 1 << 40]
            ),  # after every transaction, or after the first and when memory is full
        )
        before = state.head
        try:
            if not self.recover(join, rng):
                return False
            went_on = before is not None and join._head.state_id == before.state_id
            caught_up = went_on and before is not None and join._head.sequence > before.sequence
            self.lives["caught up" if caught_up else "went on" if went_on else "rebuilt"] += 1
            for step in range(steps):
                ended = {}
                for topic in (IMPRESSIONS, ENGAGEMENTS):
                    at = join.offsets[topic]
                    stop = min(len(brokers.topics[topic]), at + rng.randrange(12))
                    if not join.busy:
                        values = brokers.topics[topic][at:stop]
                        join.take(topic, [Record(offset, value or b"") for offset, value in enumerate(values, at)])
                    ended[topic] = join.offsets[topic] == len(brokers.topics[topic])
                if step == steps - 1:
                    brokers.crash = rng.choice(["before", "after", ""])
                try:
                    join.step(ended, 10_000_000, rng.choice([0, 1000]))
                except Crash:
                    if rng.random() < 0.5:
                        raise
                    brokers.crash = ""  # it was the broker that went away, and the worker lives
                    self.lives["recovered in place"] += 1
                    if not self.recover(join, rng):
                        return False
                if all(ended.values()) and not join.busy and join.told > 100_000:
                    return True
        except Crash:
            self.lives[f"died {brokers.crash} a transaction"] += 1
        finally:
            state.close()
        return False

    def recover(self, join: JoinPartition, rng: random.Random) -> bool:
        for _ in join.recover():
            if rng.random() < 0.01:
                self.lives["died in recovery"] += 1
                return False
        return True

    def run(self) -> None:
        """Life after life, until one read everything to its end."""
        for _ in range(400):
            if self.live(self.rng.randrange(1, 12)):
                return
        pytest.fail(f"no end in sight: {self.lives}")


@pytest.mark.parametrize("seed", range(20))
def test_every_example_once_through_any_crashes(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.join_partition._REQUESTS_AT_ONCE", 5)
    rng = random.Random(seed)
    world = World(rng, tmp_path)
    labels = fill(world.brokers, rng, 150)
    world.run()
    times: Counter[str] = Counter()
    found: dict[str, float] = {}
    told = []
    for value in world.brokers.topics[EXAMPLES]:
        if value is not None:
            batch, watermark = FORMAT.decode(value)
            told.append(watermark)
            ids = batch.column("example_id").to_pylist()
            times.update(ids)
            found.update(zip(ids, batch.column("label.click").to_pylist(), strict=True))
    assert {name: count for name, count in times.items() if count != 1} == {}, world.lives
    assert found == labels, world.lives
    assert told == sorted(told)
    assert not world.brokers.topics[DEAD_LETTERS]
    assert world.lives["rebuilt"] > 1
    assert world.lives["caught up"] > 1


class Fencing:
    """A worker's producer: who opens next fences it."""

    newest: Fencing | None = None

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers

    def open(self) -> Committed | None:
        Fencing.newest = self
        return self._brokers.open()

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> int:
        if Fencing.newest is not self:
            raise Crash
        return self._brokers.send(outbox, commit)


def feed(join: JoinPartition, brokers: Brokers, records: int) -> None:
    for topic in (IMPRESSIONS, ENGAGEMENTS):
        at = join.offsets[topic]
        values = brokers.topics[topic][at : at + records]
        join.take(topic, [Record(offset, value or b"") for offset, value in enumerate(values, at)])
    ended = {topic: join.offsets[topic] == len(brokers.topics[topic]) for topic in join.offsets}
    join.step(ended, 10_000_000, 0)


@pytest.mark.parametrize("taken", [5, 100])
def test_a_worker_that_slept_does_not_take_anothers_transaction_for_its_own(
    taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.join_partition._REQUESTS_AT_ONCE", 2000)  # a simulation before may have set another
    world = World(random.Random(1), tmp_path)
    labels = fill(world.brokers, world.rng, 150)
    ours, theirs = (
        JoinPartition(
            JoinState(folder, 1 << 20),
            world.make,
            Fencing(world.brokers),
            world.brokers,
            lambda: next(world.ids),
            LATENESS,
            2 * WINDOW + LATENESS,
        )
        for folder in world.folders
    )
    list(ours.recover())
    for _ in range(5):
        feed(ours, world.brokers, 20)
    list(theirs.recover())
    feed(theirs, world.brokers, taken)
    with pytest.raises(Crash):
        feed(ours, world.brokers, 60)
    list(ours.recover())
    while ours.busy or ours.told < 100_000:
        feed(ours, world.brokers, 0 if ours.busy else 20)
    times = Counter(name for name, items in published(world.brokers).items() for _ in items)
    assert times == dict.fromkeys(labels, 1)


def test_what_was_refused_as_late_is_in_no_label_though_its_negative_was_dropped_unsaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watermark that it was too late for was told to nobody, and the transaction that refused it says that more is due."""
    monkeypatch.setattr("streaming.join_partition._REQUESTS_AT_ONCE", 3)
    world = World(random.Random(1), tmp_path, negatives=Negatives(1e-6, 0))
    brokers, ended = world.brokers, {IMPRESSIONS: True, ENGAGEMENTS: True}

    def life() -> JoinPartition:
        join = JoinPartition(
            JoinState(world.folders[0], 1 << 20),
            world.make,
            brokers,
            brokers,
            lambda: next(world.ids),
            LATENESS,
            2 * WINDOW + LATENESS,
        )
        list(join.recover())
        return join

    def take(join: JoinPartition, topic: str, *values: bytes) -> None:
        at = len(brokers.topics[topic])
        brokers.topics[topic] += values
        join.take(topic, [Record(at + number, value) for number, value in enumerate(values)])

    def request(number: int, served_at: int) -> bytes:
        key = number.to_bytes(8, "little")
        return encode(
            Request(
                version=SCHEMA_VERSION,
                request_id=f"r{number}",
                served_at=served_at,
                impression_ids=[f"{number}.0"],
                features={"key": key},
            )
        )

    join = life()
    take(join, IMPRESSIONS, request(0, 10_000))
    join.step(ended, 10_800, 1000)
    join.step(ended, 11_400, 1000)  # the window closed at 11,000; nothing to say
    late = Engagement(version=SCHEMA_VERSION, request_id="r0", impression_id="0.0", action="click", happened_at=10_900)
    take(join, ENGAGEMENTS, encode(late))
    take(join, IMPRESSIONS, *(request(number, 10_200 + number) for number in range(1, 9)))
    join.step(ended, 11_700, 1000)
    assert join.busy
    join._state.close()
    join = life()
    while join.busy:
        join.step(ended, 11_700, 1000)
    join.step(ended, 20_000, 0)
    while join.busy:
        join.step(ended, 20_000, 0)
    assert len([value for value in brokers.topics[DEAD_LETTERS] if value]) == 1
    assert not published(brokers)


@pytest.mark.parametrize("seed", range(3))
def test_a_state_of_another_history_is_not_used(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics and group were made anew; that the numbers fit means nothing."""
    monkeypatch.setattr("streaming.join_partition._REQUESTS_AT_ONCE", 2000)  # a simulation before may have set another
    rng = random.Random(seed)
    worlds = [World(rng, tmp_path / name) for name in ("before", "anew")]
    worlds[1].ids = (f"another {at}" for at in itertools.count())
    labels = [fill(world.brokers, rng, 150) for world in worlds]
    for world in worlds:
        while not world.brokers.committed or world.brokers.committed.sequence < 10:
            world.live(3)
    for folder in worlds[1].folders:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(worlds[0].folders[0], folder)
    worlds[1].run()
    found = {name: [item.label for item in items] for name, items in published(worlds[1].brokers).items()}
    assert found == {name: [label] for name, label in labels[1].items()}


def fill_unruly(brokers: Brokers, rng: random.Random, requests: int) -> None:
    """Several events an impression, a click or an end each, every third record later than the
    lateness, while its request is known."""
    arrivals: list[tuple[float, str, bytes]] = []
    for number in range(requests):
        served_at = 10_000 + number * 20
        ids = [f"{number}.{at}" for at in range(rng.randrange(1, 4))]
        keys = b"".join(number.to_bytes(8, "little") for _ in ids)
        request = Request(
            version=1, request_id=f"r{number}", served_at=served_at, impression_ids=ids, features={"key": keys}
        )
        records = [(served_at, IMPRESSIONS, encode(request))]
        for name in ids:
            for _ in range(rng.randrange(4)):
                at, action = served_at + rng.randrange(WINDOW // 2), rng.choice(["click", "end"])
                done = Engagement(version=1, request_id=f"r{number}", impression_id=name, action=action, happened_at=at)
                records.append((at, ENGAGEMENTS, encode(done)))
        for at, topic, value in records:
            late = LATENESS * 3 if rng.random() < 0.3 else LATENESS
            arrivals += [(at + rng.random() * late, topic, value) for _ in range(1 + (rng.random() < 0.2))]
    for _, topic, value in sorted(arrivals):
        brokers.topics[topic].append(value)


class Counted(NamedTuple):
    """An engagement of an impression, in order of arrival."""

    event: tuple[int, str, float]
    refused: bool


def counted(brokers: Brokers) -> dict[str, list[Counted]]:
    """The engagements of every impression whose request was taken."""
    letters = [
        msgspec.msgpack.decode(value, type=DeadLetter) for value in brokers.topics[DEAD_LETTERS] if value is not None
    ]
    refused = {(letter.topic, letter.offset) for letter in letters}
    found: dict[str, list[Counted]] = {}
    for offset, value in enumerate(brokers.topics[IMPRESSIONS]):
        if (IMPRESSIONS, offset) not in refused:
            found |= {name: [] for name in msgspec.msgpack.decode(value or b"", type=Request).impression_ids}
    for offset, value in enumerate(brokers.topics[ENGAGEMENTS]):
        done = decode_engagement(value or b"", MAX_TIME_MS)
        if done.impression_id in found:
            event = (done.happened_at, done.action, done.value)
            found[done.impression_id].append(Counted(event, (ENGAGEMENTS, offset) in refused))
    return found


def label_of(served_at: int, events: Sequence[Counted]) -> float:
    rules = [Rule.of(label) for label in ENDED.values()]
    return decide(rules, served_at, [item.event for item in events]).values[0]


class Published(NamedTuple):
    revision: int
    label: float
    served_at: int


def published(brokers: Brokers) -> dict[str, list[Published]]:
    found: dict[str, list[Published]] = {}
    for value in brokers.topics[EXAMPLES]:
        if value is not None:
            batch, _ = FORMAT.decode(value)
            for row in batch.to_pylist():
                item = Published(row["revision"], row["label.click"], row["served_at"])
                found.setdefault(row["example_id"], []).append(item)
    return found


@pytest.mark.parametrize(("seed", "keep"), [(seed, 1.0 if seed % 2 else 0.3) for seed in range(SEEDS)])
def test_what_is_refused_is_in_no_label_and_what_is_not_is(
    seed: int, keep: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision stands through any rebuild, also one that nobody saw: of a negative that sampling dropped."""
    monkeypatch.setattr("streaming.join_partition._REQUESTS_AT_ONCE", 5)
    rng = random.Random(seed)
    negatives = Negatives(keep, seed)
    world = World(rng, tmp_path, ENDED, SETTINGS, negatives)
    fill_unruly(world.brokers, rng, 100)
    world.run()
    examples = published(world.brokers)
    for name, events in counted(world.brokers).items():
        first = next((at for at, item in enumerate(events) if item.refused), len(events))
        served_at = 10_000 + int(name.split(".")[0]) * 20
        label = label_of(served_at, events[:first])
        expected = [(0, label, served_at)] if label or negatives.keeps(name) else []
        assert examples.pop(name, []) == expected, (name, events, world.lives)
    assert not examples, "of requests that were refused"


@pytest.mark.parametrize(("seed", "keep"), [(seed, 1.0 if seed % 2 else 0.3) for seed in range(SEEDS)])
def test_late_engagements_correct_examples_once_each_through_any_crashes(
    seed: int, keep: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.join_partition._REQUESTS_AT_ONCE", 5)
    rng = random.Random(seed)
    negatives = Negatives(keep, seed)
    world = World(rng, tmp_path, ENDED, SETTINGS.model_copy(update={"late": "correct"}), negatives)
    fill_unruly(world.brokers, rng, 100)
    world.run()
    examples, times = published(world.brokers), Counter[int]()
    for name, events in counted(world.brokers).items():
        found = examples.pop(name, [])
        served_at = 10_000 + int(name.split(".")[0]) * 20
        label = label_of(served_at, events)
        if not found:
            first = next((at for at, item in enumerate(events) if item.refused), len(events))
            assert not label_of(served_at, events[:first]) and not negatives.keeps(name), (name, events, world.lives)
            continue
        assert not any(item.refused for item in events), (name, found, events, world.lives)
        assert [item.revision for item in found] == list(range(len(found))), (name, found, events, world.lives)
        assert found[-1].label == label, (name, found, events, world.lives)
        assert all(a.label != b.label for a, b in itertools.pairwise(found)), (name, found, events, world.lives)
        times[len(found)] += 1
    assert not examples
    assert times[2] or keep < 1 or seed >= 6, "in some runs nothing comes late enough"
