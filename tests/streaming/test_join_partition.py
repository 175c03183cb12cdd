"""The recovery protocol, simulated: any crash between any two steps, state lost or old, and still every example once.

The brokers here are a log in memory whose transactions are whole or absent; everything else is what ships.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from streaming.clock import EventClock
from streaming.events import SCHEMA_VERSION, Engagement, Request, encode
from streaming.examples import ExampleFormat
from streaming.features import Feature, SparseFeature
from streaming.join_partition import Committed, JoinPartition
from streaming.join_state import JoinState, Outgoing
from streaming.joiner import Joiner, JoinSettings
from streaming.labels import Label
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record

FEATURES: dict[str, Feature] = {"key": SparseFeature(column="key")}
WINDOW, LATENESS = 1000, 300
LABELS = {"click": Label(action="click", window=f"{WINDOW}ms")}
SETTINGS = JoinSettings(lateness=f"{LATENESS}ms", max_rows=16, memory_bytes=1 << 20)
FORMAT = ExampleFormat(FEATURES, LABELS)


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
    """One partition over several lives; each life has a folder, of which there are two and which may be lost."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng = rng
        self.folders = [folder / "a", folder / "b"]
        self.brokers = Brokers()
        self.ids = map(str, itertools.count())
        self.lives = Counter[str]()

    def live(self, steps: int) -> bool:
        """One life of a worker. Whether it read everything to its end."""
        rng, brokers = self.rng, self.brokers
        folder = rng.choice(self.folders)
        if rng.random() < 0.2:
            shutil.rmtree(folder, ignore_errors=True)
        brokers.crash = ""
        state = JoinState(folder, 4096 if rng.random() < 0.5 else 1 << 20)
        clock = EventClock(10_000_000)
        join = JoinPartition(
            state,
            lambda over: Joiner(FEATURES, LABELS, SETTINGS, over, clock),
            brokers,
            brokers,
            lambda: next(self.ids),
            LATENESS,
            2 * WINDOW + LATENESS,
        )
        before = state.head
        try:
            for _ in join.recover():
                if rng.random() < 0.02:
                    self.lives["died in a rebuild"] += 1
                    return False
            went_on = before is not None and join._head.state_id == before.state_id
            self.lives["went on" if went_on else "rebuilt"] += 1
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
                join.step(ended, 10_000_000, rng.choice([0, 1000]))
                if all(ended.values()) and not join.busy and join.told > 100_000:
                    return True
        except Crash:
            self.lives[f"died {brokers.crash} a transaction"] += 1
        finally:
            state.close()
        return False


@pytest.mark.parametrize("seed", range(20))
def test_every_example_once_through_any_crashes(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.join_partition._REQUESTS_AT_ONCE", 5)
    rng = random.Random(seed)
    world = World(rng, tmp_path)
    labels = fill(world.brokers, rng, 150)
    for _ in range(400):
        if world.live(rng.randrange(1, 12)):
            break
    else:
        pytest.fail(f"no end in sight: {world.lives}")
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
