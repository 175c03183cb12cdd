"""A partition's joiner over several lives, for tests of its recovery: it dies anywhere, and its state is lost or old.

The brokers here are a log in memory whose transactions are whole or absent; everything else is what ships.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from streaming.features.kinds import Feature, SparseFeature
from streaming.join.commit import Committed, decode_commit, encode_commit
from streaming.join.negatives import Negatives
from streaming.join.partition import JoinPartition
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.loop.brokers import Outlet, OutputRecord
from streaming.records.events import FORMAT_VERSION, Engagement, Request, decode_letter, encode
from streaming.records.examples import ExampleFormat
from streaming.records.labels import Label

FEATURES: dict[str, Feature] = {"key": SparseFeature(column="key")}
WINDOW, LATENESS = 1000, 300
LABELS = {"click": Label(action="click", window=f"{WINDOW}ms")}
ENDED = {"click": Label(action="click", decided_by="end", window=f"{WINDOW}ms")}
FORMAT = ExampleFormat(FEATURES, LABELS)
TAKEN_AT = 10_000_000
"""When brokers took the records of a test that does not ask: after everything in them."""
SETTINGS = JoinSettings(lateness=f"{LATENESS}ms", max_rows=16)


class Crash(Exception):
    """The process is gone."""


class Brokers:
    """One partition of every topic, and the joiner's group; ``crash_at`` lets a transaction's sender die, before or after it."""

    def __init__(self) -> None:
        self.topics: dict[str, list[bytes | None]] = {
            name: [] for name in (IMPRESSIONS, ENGAGEMENTS, EXAMPLES, DEAD_LETTERS)
        }
        self.committed: str | None = None
        self.begins: dict[str, int] = {}
        self.crash: str = ""

    def open(self) -> Committed | None:
        return None if self.committed is None else decode_commit(self.committed)

    def send(self, outbox: Sequence[OutputRecord], commit: Committed) -> dict[str, int]:
        if self.crash == "before":
            raise Crash
        for item in outbox:
            self.topics[item.topic].append(item.value)
        for name in {item.topic for item in outbox}:
            self.topics[name].append(None)  # the mark that a transaction leaves takes an offset
        self.committed = encode_commit(commit)
        if self.crash == "after":
            raise Crash
        return {name: len(self.topics[name]) for name in {item.topic for item in outbox}}

    def beginning(self, topic: str) -> int:
        return self.begins.get(topic, 0)

    def end(self, topic: str) -> int:
        return len(self.topics[topic])

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        for at in range(start, stop, 7):
            yield [
                Record(offset, value, TAKEN_AT)
                for offset, value in enumerate(self.topics[topic][at : min(stop, at + 7)], at)
                if value is not None
            ]


def records_of(values: Sequence[bytes | None], start: int) -> list[Record]:
    """What stands from an offset on, all of it taken by its broker at one time."""
    return [Record(offset, value or b"", TAKEN_AT) for offset, value in enumerate(values, start)]


def fill(brokers: Brokers, rng: random.Random, requests: int) -> dict[str, float]:
    """Input in any order within the lateness, some of it twice; the labels that it must lead to."""
    labels: dict[str, float] = {}
    arrivals: list[tuple[float, str, bytes]] = []
    for number in range(requests):
        served_at = 10_000 + number * 20
        ids = [f"{number}.{at}" for at in range(rng.randrange(1, 4))]
        keys = b"".join(number.to_bytes(8, "little") for _ in ids)
        request = Request(
            version=FORMAT_VERSION,
            request_id=f"r{number}",
            served_at=served_at,
            impression_ids=ids,
            features={"key": keys},
        )
        records = [(served_at, IMPRESSIONS, encode(request))]
        for name in ids:
            clicked = rng.random() < 0.3
            labels[f"r{number}/{name}"] = float(clicked)
            if clicked:
                at = served_at + rng.randrange(WINDOW + 1)
                click = Engagement(
                    version=FORMAT_VERSION, request_id=f"r{number}", impression_id=name, action="click", happened_at=at
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
        requests_at_once: int = 5,
    ) -> None:
        self.rng = rng
        self.requests_at_once = requests_at_once
        self.spec = JoinSpec(FEATURES, labels, join, negatives)
        self.prefix = ""
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
        # The state is written after every transaction, or after the first and when memory is full.
        join = self.join(state, brokers, rng.choice([0, 1 << 40]))
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
                        join.take(topic, records_of(values, at))
                    ended[topic] = join.offsets[topic] == len(brokers.topics[topic])
                if step == steps - 1:
                    brokers.crash = rng.choice(["before", "after", ""])
                try:
                    join.step(ended, TAKEN_AT, rng.choice([0, 1000]))
                except Crash:
                    if rng.random() < 0.5:
                        raise
                    brokers.crash = ""  # it was the broker that went away, and the worker lives
                    self.lives["recovered in place"] += 1
                    if not self.recover(join, rng):
                        return False
                if all(ended.values()) and not join.busy and join.published > 100_000:
                    return True
        except Crash:
            self.lives[f"died {brokers.crash} a transaction"] += 1
        finally:
            state.close()
        return False

    def join(self, state: JoinState, outlet: Outlet, write_every_ms: int = 5000) -> JoinPartition:
        return JoinPartition(
            self.spec,
            state,
            outlet,
            self.brokers,
            0,
            new_id=lambda: next(self.ids),
            prefix=self.prefix,
            write_every_ms=write_every_ms,
            requests_at_once=self.requests_at_once,
        )

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


class Published(NamedTuple):
    revision: int
    label: float
    served_at: int


def published(brokers: Brokers, labels: dict[str, Label] = LABELS) -> dict[str, list[Published]]:
    """What is in `examples`, by the example's name."""
    found: dict[str, list[Published]] = {}
    form = ExampleFormat(FEATURES, labels)
    for value in brokers.topics[EXAMPLES]:
        if value is not None:
            batch, _ = form.decode(value)
            for row in batch.to_pylist():
                item = Published(row["revision"], row["label.click"], row["served_at"])
                found.setdefault(row["example_id"], []).append(item)
    return found


def life(world: World, write_every_ms: int = 5000) -> JoinPartition:
    join = world.join(JoinState(world.folders[0], 1 << 20), world.brokers, write_every_ms)
    list(join.recover())
    return join


def take(join: JoinPartition, brokers: Brokers, topic: str, *values: bytes) -> None:
    at = len(brokers.topics[topic])
    brokers.topics[topic] += values
    join.take(topic, records_of(values, at))


def clicked(request_id: str, impression_id: str, happened_at: int) -> Engagement:
    return Engagement(
        version=FORMAT_VERSION,
        request_id=request_id,
        impression_id=impression_id,
        action="click",
        happened_at=happened_at,
    )


def request(number: int, served_at: int, impression_id: str = "") -> bytes:
    return encode(
        Request(
            version=FORMAT_VERSION,
            request_id=f"r{number}",
            served_at=served_at,
            impression_ids=[impression_id or f"{number}.0"],
            features={"key": number.to_bytes(8, "little")},
        )
    )


def letters(brokers: Brokers) -> list[tuple[str, int, str]]:
    found = [decode_letter(value) for value in brokers.topics[DEAD_LETTERS] if value is not None]
    return sorted((letter.topic, letter.offset, letter.reason) for letter in found)
