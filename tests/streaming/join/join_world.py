"""What was served and done, how it reaches the joiner, and a brute-force join written down from the contract alone."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import strategies as st

from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.features.columns import Ragged
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.join.core import Joiner
from streaming.join.embedded import embedded_service
from streaming.join.negatives import Negatives
from streaming.join.output import JoinOutput
from streaming.join.pending import Pending
from streaming.join.service import JoinService
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec
from streaming.join.state import Head, JoinState
from streaming.log import ENGAGEMENTS, IMPRESSIONS, Record
from streaming.records.events import (
    FORMAT_VERSION,
    DeadLetter,
    Engagement,
    Request,
    encode,
)
from streaming.records.labels import Label
from tests.simulation.process import Process
from tests.simulation.store import Store, StoreFolder

NOW = 10_000_000
END = 1_000_000_000
SEED = 5
FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="user", scope="request"),
    "item": SparseFeature(column="item"),
    "tags": SparseFeature(column="tags", pool="mean"),
    "price": DenseFeature(kind="dense", column="price"),
    "embedding": VectorFeature(kind="vector", column="embedding", size=2),
}
CLICK = {"click": Label(action="click", window="100ms")}


# The world of a test: what was served and done, and how it reaches the joiner.


class Served(NamedTuple):
    name: str
    served_at: int
    impressions: int

    def impression(self, index: int) -> str:
        return f"{self.name}.{index}"


class Done(NamedTuple):
    request: str
    impression: str
    action: str
    happened_at: int
    value: float


class World(NamedTuple):
    labels: dict[str, Label]
    emit: str
    lateness: int
    requests: list[Served]
    engagements: list[Done]
    copies: list[int]
    """How often each record is sent, requests first."""
    keep: float
    """The share of negatives that becomes examples."""


class Arrival(NamedTuple):
    at: int
    topic: str
    payload: bytes


def number_of(impression: str) -> int:
    """A number that features are made of, so that a test sees whether an example got its own."""
    request, index = impression.removeprefix("r").split(".")
    return 10 * int(request) + int(index)


def request_record(served: Served, **changes: Any) -> bytes:
    numbers = np.array([number_of(served.impression(index)) for index in range(served.impressions)])
    lengths = numbers % 3
    fields: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "request_id": served.name,
        "served_at": served.served_at,
        "impression_ids": [served.impression(index) for index in range(served.impressions)],
        "shared": {"user": np.int64(served.served_at).tobytes()},
        "features": {
            "item": numbers.astype("<i8").tobytes(),
            "tags": (lengths.astype("<i4").tobytes(), np.repeat(numbers, lengths).astype("<i8").tobytes()),
            "price": (numbers / 2).astype("<f4").tobytes(),
            "embedding": np.stack((numbers, -numbers), 1).astype("<f4").tobytes(),
        },
    }
    return encode(Request(**{**fields, **changes}))


def engagement_record(done: Done, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "request_id": done.request,
        "impression_id": done.impression,
        "action": done.action,
        "happened_at": done.happened_at,
        "value": done.value,
    }
    return encode(Engagement(**{**fields, **changes}))


# The oracle: every impression with every engagement, by the words of the contract.


class Expected(NamedTuple):
    served_at: int
    labels: tuple[float, ...]
    decided_at: int
    happened_at: int


def windows(labels: dict[str, Label]) -> dict[str, int]:
    """For how long after the serving each action may matter to any label."""
    found: dict[str, int] = defaultdict(int)
    for label in labels.values():
        for action in (label.action, label.decided_by):
            if action is not None:
                found[action] = max(found[action], label.window)
    return found


def is_kept(world: World, name: str, labels: tuple[float, ...]) -> bool:
    """Positive in any label, or a negative whose hash falls into the kept share."""
    hashed = xxhash.xxh3_64(f"{name.split('.')[0]}/{name}".encode(), SEED).intdigest()
    return any(value != 0 for value in labels) or hashed / 2**64 < world.keep


def brute_force(world: World) -> dict[str, Expected]:
    """What every impression comes to; `is_kept` says which of them are examples."""
    expected = {}
    longest = max(label.window for label in world.labels.values())
    for served in world.requests:
        for index in range(served.impressions):
            events = [done for done in world.engagements if done.impression == served.impression(index)]
            decisions = [decide_by_hand(label, served.served_at, events) for label in world.labels.values()]
            closes = served.served_at + longest
            expected[served.impression(index)] = Expected(
                served.served_at,
                tuple(value for value, _, _ in decisions),
                closes if world.emit == "window" else max(at for _, at, _ in decisions),
                max([served.served_at, *(at for _, at, by_event in decisions if by_event)]),
            )
    return expected


def decide_by_hand(label: Label, served_at: int, events: list[Done]) -> tuple[float, int, bool]:
    """Millisecond by millisecond from the serving to the window's close: the first that decides."""
    for at in range(served_at, served_at + label.window + 1):
        now = [done for done in events if done.happened_at == at]
        positive = [
            done.value
            for done in now
            if done.action == label.action and (label.min_value is None or done.value >= label.min_value)
        ]
        if positive:
            return (max(positive) if label.is_value else 1.0), at, True
        if any(done.action == label.decided_by for done in now):
            return 0.0, at, True
    return 0.0, served_at + label.window, False


def refused(world: World) -> dict[bytes, set[str]]:
    """The engagements that no example can take, and the reasons that may be given: an impression's marker goes some time
    after its window, so an event far outside of it may find it gone."""
    found = {}
    served_by_name = {served.name: served for served in world.requests}
    for done in world.engagements:
        window = windows(world.labels).get(done.action)
        served = served_by_name.get(done.request)
        if window is None:
            continue
        if served is None or done.impression not in map(served.impression, range(served.impressions)):
            found[engagement_record(done)] = {"unmatched"}
        elif done.happened_at < served.served_at:
            found[engagement_record(done)] = {"before_served", "unmatched"}
        elif done.happened_at > served.served_at + window:
            found[engagement_record(done)] = {"late", "unmatched"}
    return found


# Random worlds.

ACTIONS = ["click", "play", "rate"]
# Few different times, so that events, decisions, window closes and watermarks often fall on the same millisecond.
SERVED = st.integers(0, 8).map(lambda at: 10 * at)
DELAYS = st.sampled_from([-10, -1, 0, 1, 5, 10, 10, 11, 20, 20, 30, 31, 60, 70])
WINDOWS = st.sampled_from([1, 5, 10, 20, 30, 60])


@st.composite
def random_labels(draw: st.DrawFn) -> dict[str, Label]:
    labels = {}
    for name in ["first", "second", "third"][: draw(st.integers(1, 3))]:
        is_value = draw(st.booleans())
        labels[name] = Label(
            action=draw(st.sampled_from(ACTIONS)),
            decided_by=draw(st.sampled_from([None, *ACTIONS])),
            window=f"{draw(WINDOWS)}ms",
            loss="squared" if is_value else "log",
            min_value=None if is_value else draw(st.sampled_from([None, 2.0, 4.0])),
        )
    return labels


@st.composite
def worlds(draw: st.DrawFn) -> World:
    requests = [Served(f"r{at}", draw(SERVED), draw(st.integers(1, 3))) for at in range(draw(st.integers(1, 5)))]
    engagements = []
    for _ in range(draw(st.integers(0, 20))):
        at = draw(st.integers(0, len(requests)))  # the last one is a request that nobody ever served
        served = requests[at] if at < len(requests) else Served("r99", 50, 1)
        engagements.append(
            Done(
                served.name,
                served.impression(draw(st.integers(0, served.impressions - (draw(st.integers(0, 9)) > 0)))),
                draw(st.sampled_from([*ACTIONS, "unused"])),
                max(0, served.served_at + draw(DELAYS)),
                float(draw(st.integers(0, 5))),
            )
        )
    engagements = list(dict.fromkeys(engagements))
    copies = [1 + (draw(st.integers(0, 4)) == 0) for _ in range(len(requests) + len(engagements))]
    emit = draw(st.sampled_from(["decided", "window"]))
    lateness, keep = draw(st.sampled_from([0, 1, 10, 40])), draw(st.sampled_from([1.0, 1.0, 0.5, 0.1]))
    return World(draw(random_labels()), emit, lateness, requests, engagements, copies, keep)


def arrivals(world: World, rng: random.Random) -> list[Arrival]:
    """All records of both inputs, each copy up to ``lateness`` out of order."""
    records = [Arrival(served.served_at, IMPRESSIONS, request_record(served)) for served in world.requests]
    records += [Arrival(done.happened_at, ENGAGEMENTS, engagement_record(done)) for done in world.engagements]
    sent = [record for record, copies in zip(records, world.copies, strict=True) for _ in range(copies)]
    return sorted(sent, key=lambda record: (record.at + rng.randint(0, world.lateness), rng.random()))


def make_joiner(
    labels: dict[str, Label],
    state: JoinState | None = None,
    emit: str = "decided",
    lateness: int = 0,
    keep: float = 1.0,
    late: str = "dead_letter",
) -> Joiner:
    join = JoinSettings(emit=emit, lateness=f"{lateness}ms", late=late, max_rows=7)
    state = roomy_state() if state is None else state
    spec = JoinSpec(FEATURES, labels, join, Negatives(keep, SEED))
    return Joiner(spec, state, partition=3)


def arrived(offset: int, payload: bytes) -> Record:
    """A record that its broker took long after everything in it."""
    return Record(offset, payload, NOW)


def roomy_state() -> JoinState:
    return JoinState(Path("nowhere"), 1 << 30, lambda _: memory_store(StoreFolder()))


def memory_store(folder: StoreFolder) -> Store:
    """A store of a process that never dies."""
    return Store(folder, Process("joiner", lambda process: None))


HEAD = Head(state_id="id", sequence=1, published=0, offsets={}, rebuild_points=[])


class SpillingState(JoinState):
    """Room for nothing: what changes goes to disk at once, and leaves memory."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(Path(folder, "pending"), 1)

    def add(self, request_id: str, pending: Pending, grown_bytes: int) -> None:
        super().add(request_id, pending, grown_bytes)
        self.write(HEAD)

    @property
    def in_memory(self) -> int:
        return len(self._entries)


def clicks_service(log: EmbeddedLog, clock: EventClock, lateness: int = 0, max_ahead: int = 5000) -> JoinService:
    """The joiners' service as a replay runs it, started."""
    spec = JoinSpec(FEATURES, CLICK, JoinSettings(lateness=f"{lateness}ms", max_ahead=f"{max_ahead}ms"))
    service = embedded_service(log, spec, roomy_state, clock)
    service.start()
    return service


def join(core: Joiner, records: Sequence[Arrival], rng: random.Random) -> Iterator[JoinOutput]:
    """Feed records in this order; now and then the watermark moves, but never past an event that is still to come."""
    still_to_come = [END]
    for record in reversed(records):
        still_to_come.append(min(still_to_come[-1], record.at))
    for offset, record in enumerate(records):
        core.add(record.topic, arrived(offset, record.payload))
        still_to_come.pop()
        if rng.random() < 0.4:
            core.advance(min(still_to_come[-1], record.at + rng.choice([-10, 0, 1, 10, 11, 200])))
        if rng.random() < 0.4:
            yield core.drain()
    core.advance(END)
    yield core.drain()


class Joined(NamedTuple):
    examples: list[pa.RecordBatch]
    dead: list[DeadLetter]


def join_all(core: Joiner, records: Sequence[Arrival], seed: int) -> Joined:
    examples, dead = [], []
    for output in join(core, records, random.Random(seed)):
        examples += output.examples
        dead += output.dead_letters
    return Joined(examples, dead)


def by_id(core: Joiner, batches: Sequence[pa.RecordBatch]) -> dict[str, Expected]:
    """What came out by its impression, with a check that none came twice and that every example has its own features."""
    found = {}
    for batch in batches:
        columns = core.format.columns(batch)
        labels = core.format.label_values(batch)
        tags = columns["tags"]
        assert isinstance(tags, Ragged)
        for row, example in enumerate(batch.column("example_id").to_pylist()):
            name = example.partition("/")[2]
            assert name not in found, f"{name} came twice"
            number = number_of(name)
            served_at, decided_at, happened_at = (
                batch.column(key)[row].as_py() for key in ("served_at", "decided_at", "happened_at")
            )
            assert columns["user"][row] == served_at
            assert columns["item"][row] == number
            assert columns["price"][row] == number / 2
            assert columns["embedding"][row].tolist() == [number, -number]
            assert tags.rows(row, row + 1).values.tolist() == [number] * (number % 3)
            found[name] = Expected(served_at, tuple(labels[row].tolist()), decided_at, happened_at)
    return found


def check(world: World, core: Joiner, joined: Joined, records: Sequence[Arrival]) -> None:
    everything = brute_force(world)
    kept = {name: expected for name, expected in everything.items() if is_kept(world, name, expected.labels)}
    assert by_id(core, joined.examples) == kept
    assert core.counts.dropped == len(everything) - len(kept)
    for batch in joined.examples:
        assert batch.column("sampling_rate").to_pylist() == [np.float32(world.keep)] * batch.num_rows
    reasons = refused(world)
    sent = Counter(record.payload for record in records)
    assert Counter(letter.payload for letter in joined.dead) == Counter({payload: sent[payload] for payload in reasons})
    for letter in joined.dead:
        assert letter.reason in reasons[letter.payload]
        assert (letter.topic, letter.partition) == (ENGAGEMENTS, 3)


R1 = Served("r1", 1000, 2)


def reasons(dead: Sequence[DeadLetter]) -> list[tuple[str, int, str]]:
    return [(letter.topic, letter.offset, letter.reason) for letter in dead]
