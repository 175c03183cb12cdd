"""The joiner against a brute-force join that is written down from the contract alone, and what it refuses, one by one."""

from __future__ import annotations

import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from rocksdict import Options, Rdict

from streaming import join_worker, joiner
from streaming.clock import EventClock
from streaming.columns import Ragged
from streaming.events import (
    MAX_ID_LENGTH,
    MAX_IMPRESSIONS,
    MAX_RECORD_BYTES,
    SCHEMA_VERSION,
    DeadLetter,
    Engagement,
    Request,
    encode,
)
from streaming.features import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.join_worker import JoinWorker
from streaming.joiner import Joiner, JoinSettings
from streaming.labels import Label
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.negatives import Negatives
from streaming.pending import PendingStore
from streaming.timers import NEVER

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
        "version": SCHEMA_VERSION,
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
        "version": SCHEMA_VERSION,
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
    return any(value != 0 for value in labels) or xxhash.xxh3_64(name.encode(), SEED).intdigest() / 2**64 < world.keep


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
    store: PendingStore | None = None,
    emit: str = "decided",
    lateness: int = 0,
    now: int = NOW,
    keep: float = 1.0,
    late: str = "dead_letter",
) -> Joiner:
    join = JoinSettings(emit=emit, lateness=f"{lateness}ms", late=late, max_rows=7)
    store = PendingStore(1 << 30, no_disk) if store is None else store
    return Joiner(FEATURES, labels, join, store, EventClock(now), partition=3, negatives=Negatives(keep, SEED))


def no_disk() -> Rdict:
    raise AssertionError("a store with room enough opened its database")


def spilling_store(folder: str) -> PendingStore:
    """Room for nothing but the request at hand."""
    return PendingStore(1, lambda: Rdict(str(Path(folder, "pending")), Options(raw_mode=True)))


def join(core: Joiner, records: Sequence[Arrival], rng: random.Random) -> Iterator[joiner.JoinOutput]:
    """Feed records in this order; now and then the watermark moves, but never past an event that is still to come."""
    still_to_come = [END]
    for record in reversed(records):
        still_to_come.append(min(still_to_come[-1], record.at))
    take = {IMPRESSIONS: core.add_request, ENGAGEMENTS: core.add_engagement}
    for offset, record in enumerate(records):
        take[record.topic](offset, record.payload)
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
    """What came out, with a check that no id came twice and that every example has its own features."""
    found = {}
    for batch in batches:
        columns = core.format.columns(batch)
        labels = core.format.label_values(batch)
        tags = columns["tags"]
        assert isinstance(tags, Ragged)
        for row, name in enumerate(batch.column("example_id").to_pylist()):
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
    assert core.counts["dropped"] == len(everything) - len(kept)
    for batch in joined.examples:
        assert batch.column("sampling_rate").to_pylist() == [np.float32(world.keep)] * batch.num_rows
    reasons = refused(world)
    sent = Counter(record.payload for record in records)
    assert Counter(letter.payload for letter in joined.dead) == Counter({payload: sent[payload] for payload in reasons})
    for letter in joined.dead:
        assert letter.reason in reasons[letter.payload]
        assert (letter.topic, letter.partition) == (ENGAGEMENTS, 3)


@settings(max_examples=150)
@given(worlds(), st.integers(0, 2**32))
def test_joins_as_brute_force_does_in_any_order_of_arrival(world: World, seed: int) -> None:
    records = arrivals(world, random.Random(seed))
    core = make_joiner(world.labels, emit=world.emit, lateness=world.lateness, keep=world.keep)
    joined = join_all(core, records, seed)
    check(world, core, joined, records)
    for batch in joined.examples:
        assert 0 < batch.num_rows <= 7
        assert (np.diff(batch.column("decided_at").to_numpy()) >= 0).all(), "training steps are cut by this order"
    assert core.counts["examples"] + core.counts["dropped"] == sum(served.impressions for served in world.requests)
    assert core.next_due() == NEVER
    assert core.counts["repeated"] >= sum(world.copies[: len(world.requests)]) - len(world.requests)


@settings(max_examples=40)
@given(worlds(), st.integers(0, 2**32), st.integers(1, 3))
def test_joins_the_same_when_its_store_spills(world: World, seed: int, due_at_once: int) -> None:
    records = arrivals(world, random.Random(seed))
    roomy = make_joiner(world.labels, emit=world.emit, lateness=world.lateness)
    expected = join_all(roomy, records, seed)
    with tempfile.TemporaryDirectory() as folder, patch.object(joiner, "_DUE_AT_ONCE", due_at_once):
        store = spilling_store(folder)
        tight = make_joiner(world.labels, store, emit=world.emit, lateness=world.lateness)
        joined = join_all(tight, records, seed)
        assert len(store) == 0
        assert tight.next_due() == NEVER
        store.close()
    assert [batch.to_pydict() for batch in joined.examples] == [batch.to_pydict() for batch in expected.examples]
    assert sorted(map(encode, joined.dead)) == sorted(map(encode, expected.dead))
    assert tight.counts == roomy.counts


def test_what_does_not_fit_in_memory_is_on_disk_and_comes_back(tmp_path: Path) -> None:
    store = spilling_store(str(tmp_path))
    core = make_joiner(CLICK, store, lateness=10)
    for number in range(20):
        core.add_request(number, request_record(Served(f"r{number}", 1000 + number, 2)))
    assert (len(store), store.spilled) == (20, 19)
    for number in range(20):
        core.add_engagement(number, engagement_record(Done(f"r{number}", f"r{number}.0", "click", 1050, 1.0)))
    assert core.next_due() == 1050
    core.advance(1051)
    assert len(by_id(core, core.drain().examples)) == 20
    assert store.spilled > 0, "markers too"
    core.advance(1105)
    assert {name: item.labels for name, item in by_id(core, core.drain().examples).items()} == {
        f"r{number}.1": (0.0,) for number in range(5)
    }
    core.advance(2000)
    assert len(by_id(core, core.drain().examples)) == 15
    assert (len(store), store.spilled, core.next_due()) == (0, 0, NEVER)
    store.close()


@settings(max_examples=80)
@given(worlds(), st.integers(0, 2**32), st.booleans())
def test_nothing_comes_twice_or_vanishes_when_the_watermark_runs_ahead(world: World, seed: int, spills: bool) -> None:
    """With events later than promised labels may differ, but an impression is an example once, or its record refused."""
    rng = random.Random(seed)
    records = arrivals(world, rng)
    with tempfile.TemporaryDirectory() as folder:
        store = spilling_store(folder) if spills else None
        core = make_joiner(world.labels, store, emit=world.emit, lateness=world.lateness)
        examples, dead = [], []
        for offset, record in enumerate([*records, None]):
            if record is None:
                core.advance(END)
            else:
                (core.add_request if record.topic == IMPRESSIONS else core.add_engagement)(offset, record.payload)
                core.advance(record.at + rng.randint(-30, 80) if rng.random() < 0.5 else 0)
            output = core.drain()
            examples += output.examples
            dead += output.dead_letters
        assert core.next_due() == NEVER
        if store is not None:
            store.close()
    found = by_id(core, examples)
    letters = Counter(letter.payload for letter in dead)
    sent = Counter(record.payload for record in records)
    for served in world.requests:
        emitted = {served.impression(index) for index in range(served.impressions)} & found.keys()
        payload = request_record(served)
        assert len(emitted) in (0, served.impressions)
        assert emitted or letters[payload] == sent[payload]
    assert all(letters[payload] <= sent[payload] for payload in letters)


class MemoryLog:
    """A log for one test."""

    def __init__(self) -> None:
        self.topics: dict[str, list[bytes]] = defaultdict(list)

    def append(self, topic: str, partition: int, values: Sequence[bytes]) -> None:
        self.topics[topic] += values

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        return [Record(at, value) for at, value in enumerate(self.topics[topic])][offset : offset + limit]

    def trim(self, topic: str, partition: int, offset: int) -> None:
        raise AssertionError("the joiner trims nothing")


@settings(max_examples=100)
@given(worlds(), st.integers(0, 2**32), st.integers(1, 5))
def test_the_worker_never_lets_its_watermark_pass_an_event_to_come(world: World, seed: int, at_once: int) -> None:
    """Records come in bursts, larger than what a step reads, so that inputs are at their end or far behind it in turns."""
    rng = random.Random(seed)
    records = arrivals(world, rng)
    log, clock = MemoryLog(), EventClock(0)
    settings_ = JoinSettings(emit=world.emit, lateness=f"{world.lateness}ms")
    store = PendingStore(1 << 30, no_disk)
    core = Joiner(FEATURES, world.labels, settings_, store, clock, 3, Negatives(world.keep, SEED))
    with patch.object(join_worker, "_RECORDS_AT_ONCE", at_once):
        worker = JoinWorker(log, core, clock, world.lateness)
        while records:
            burst, records = records[: (size := rng.randint(1, 12))], records[size:]
            for record in burst:
                log.append(record.topic, 0, [record.payload])
                clock.move_to(record.at)
            while worker.step() and rng.random() < 0.8:
                pass
        clock.move_to(END)
        while worker.step():
            pass
    batches, watermarks = zip(*(core.format.decode(payload) for payload in log.topics[EXAMPLES]), strict=True)
    dead = [msgspec.msgpack.decode(payload, type=DeadLetter) for payload in log.topics[DEAD_LETTERS]]
    sent = [Arrival(0, topic, payload) for topic in (IMPRESSIONS, ENGAGEMENTS) for payload in log.topics[topic]]
    check(world, core, Joined([batch for batch in batches if batch.num_rows], dead), sent)
    assert list(watermarks) == sorted(watermarks), "a watermark never goes back"
    for batch, watermark in zip(batches, watermarks, strict=True):
        assert not batch.num_rows or batch.column("decided_at").to_numpy().max() < watermark
    assert watermarks[-1] == END - world.lateness
    assert worker.offsets == {topic: len(log.topics[topic]) for topic in (IMPRESSIONS, ENGAGEMENTS)}


# One case each.


def test_a_label_is_decided_at_once_or_when_the_window_closes() -> None:
    core = make_joiner(CLICK)
    core.add_request(0, request_record(Served("r1", 1000, 2)))
    core.add_engagement(0, engagement_record(Done("r1", "r1.1", "click", 1020, 1.0)))
    core.advance(1020)
    assert core.drain().examples == [], "an earlier event may still come at 1020"
    core.advance(1021)
    assert by_id(core, core.drain().examples) == {"r1.1": Expected(1000, (1.0,), 1020, 1020)}
    core.advance(1100)
    assert core.drain().examples == [], "a click may still come at the window's last millisecond"
    core.advance(1101)
    assert by_id(core, core.drain().examples) == {"r1.0": Expected(1000, (0.0,), 1100, 1000)}


def test_at_one_millisecond_the_positive_action_goes_before_the_deciding_one() -> None:
    labels = {"like": Label(action="like", decided_by="end", window="100ms")}
    for order in (("like", "end"), ("end", "like")):
        core = make_joiner(labels)
        core.add_request(0, request_record(Served("r1", 1000, 1)))
        for offset, action in enumerate(order):
            core.add_engagement(offset, engagement_record(Done("r1", "r1.0", action, 1010, 1.0)))
        core.advance(2000)
        assert by_id(core, core.drain().examples)["r1.0"].labels == (1.0,)


def test_what_falls_on_the_watermark_still_waits_when_its_neighbour_goes() -> None:
    labels = {"like": Label(action="like", decided_by="end", window="100ms")}
    core = make_joiner(labels)
    core.add_request(0, request_record(Served("r1", 1000, 2)))
    core.add_engagement(0, engagement_record(Done("r1", "r1.0", "end", 1010, 1.0)))
    core.add_engagement(1, engagement_record(Done("r1", "r1.1", "end", 1020, 1.0)))
    core.advance(1020)
    assert by_id(core, core.drain().examples).keys() == {"r1.0"}
    core.add_engagement(2, engagement_record(Done("r1", "r1.1", "like", 1020, 1.0)))
    core.advance(1021)
    assert by_id(core, core.drain().examples) == {"r1.1": Expected(1000, (1.0,), 1020, 1020)}


def test_a_negative_value_too_goes_before_the_deciding_action_of_its_millisecond() -> None:
    labels = {"change": Label(action="trade", decided_by="end", window="100ms", loss="squared")}
    core = make_joiner(labels)
    core.add_request(0, request_record(Served("r1", 1000, 1)))
    core.add_engagement(0, engagement_record(Done("r1", "r1.0", "trade", 1010, -5.0)))
    core.add_engagement(1, engagement_record(Done("r1", "r1.0", "end", 1010, 1.0)))
    core.advance(2000)
    assert by_id(core, core.drain().examples)["r1.0"].labels == (-5.0,)


def reasons(dead: Sequence[DeadLetter]) -> list[tuple[str, int, str]]:
    return [(letter.topic, letter.offset, letter.reason) for letter in dead]


def test_an_event_that_would_change_an_emitted_label_is_late() -> None:
    labels = {"like": Label(action="like", decided_by="end", window="100ms")}
    core = make_joiner(labels)
    core.add_request(0, request_record(Served("r1", 1000, 1)))
    core.add_engagement(0, engagement_record(Done("r1", "r1.0", "end", 1020, 1.0)))
    core.advance(1050)
    assert by_id(core, core.drain().examples)["r1.0"].labels == (0.0,)
    like = engagement_record(Done("r1", "r1.0", "like", 1010, 1.0))
    core.add_engagement(1, like)
    output = core.drain()
    assert output.examples == []
    assert reasons(output.dead_letters) == [(ENGAGEMENTS, 1, "late")]
    assert output.dead_letters[0].payload == like
    assert core.counts["dead.late"] == 1


@pytest.mark.parametrize("emit", ["decided", "window"])
def test_an_event_that_changes_an_emitted_label_corrects_it_while_its_request_is_known(
    emit: str, tmp_path: Path
) -> None:
    labels = {"like": Label(action="like", decided_by="end", window="100ms")}
    store = PendingStore(1, lambda: Rdict(str(tmp_path / "pending"), Options(raw_mode=True)))
    core = make_joiner(labels, store, lateness=500, late="correct", emit=emit)
    for name in ("r1", "r2"):  # with this little memory, the other's record is on disk
        core.add_request(0, request_record(Served(name, 1000, 2)))
    core.add_engagement(0, engagement_record(Done("r1", "r1.0", "end", 1020, 1.0)))
    core.advance(1150)
    first = by_id(core, core.drain().examples)
    assert first["r1.0"] == Expected(1000, (0.0,), 1100 if emit == "window" else 1020, 1020)
    core.add_engagement(1, engagement_record(Done("r1", "r1.0", "like", 1010, 1.0)))
    core.add_engagement(2, engagement_record(Done("r1", "r1.0", "like", 1010, 1.0)))
    output = core.drain()
    assert by_id(core, output.examples) == {"r1.0": Expected(1000, (1.0,), 1150, 1010)}
    assert [batch.column("revision").to_pylist() for batch in output.examples] == [[1]]
    core.add_engagement(3, engagement_record(Done("r1", "r1.0", "end", 1005, 1.0)))
    output = core.drain()
    assert by_id(core, output.examples) == {"r1.0": Expected(1000, (0.0,), 1150, 1005)}
    assert [batch.column("revision").to_pylist() for batch in output.examples] == [[2]]
    assert core.counts["corrected"] == 2
    core.advance(1701)  # the request is forgotten
    core.add_engagement(4, engagement_record(Done("r1", "r1.0", "like", 1001, 1.0)))
    output = core.drain()
    assert output.examples == []
    assert reasons(output.dead_letters) == [(ENGAGEMENTS, 4, "unmatched")]
    store.close()


def test_an_event_that_changes_nothing_any_more_is_only_counted() -> None:
    core = make_joiner(CLICK)
    core.add_request(0, request_record(Served("r1", 1000, 1)))
    core.add_engagement(0, engagement_record(Done("r1", "r1.0", "click", 1010, 1.0)))
    core.advance(1050)
    core.drain()
    core.add_engagement(1, engagement_record(Done("r1", "r1.0", "click", 1060, 1.0)))
    assert core.drain() == ([], [])
    assert core.counts["redundant"] == 1


def test_an_action_that_no_label_uses_is_only_counted() -> None:
    core = make_joiner(CLICK)
    core.add_engagement(0, engagement_record(Done("r1", "r1.0", "hover", 1000, 1.0)))
    core.advance(END)
    assert core.drain() == ([], [])
    assert core.counts["unused"] == 1


@pytest.mark.parametrize("engagement_first", [False, True])
def test_happened_before_served(engagement_first: bool) -> None:
    core = make_joiner(CLICK)
    early = engagement_record(Done("r1", "r1.0", "click", 999, 1.0))
    request = request_record(Served("r1", 1000, 1))
    for step in ("engagement", "request") if engagement_first else ("request", "engagement"):
        core.add_engagement(5, early) if step == "engagement" else core.add_request(0, request)
    output = core.drain()
    assert reasons(output.dead_letters) == [(ENGAGEMENTS, 5, "before_served")]
    assert output.dead_letters[0].payload == early
    core.advance(END)
    assert by_id(core, core.drain().examples)["r1.0"].labels == (0.0,)


def test_after_the_window() -> None:
    core = make_joiner(CLICK)
    core.add_request(0, request_record(Served("r1", 1000, 1)))
    core.add_engagement(0, engagement_record(Done("r1", "r1.0", "click", 1101, 1.0)))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 0, "late")]


def test_an_impression_that_the_request_does_not_have() -> None:
    core = make_joiner(CLICK)
    core.add_request(0, request_record(Served("r1", 1000, 1)))
    core.add_engagement(7, engagement_record(Done("r1", "r1.9", "click", 1001, 1.0)))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 7, "unmatched")]


def test_an_engagement_waits_for_its_request_and_no_longer() -> None:
    core = make_joiner(CLICK, lateness=30)
    core.add_engagement(0, engagement_record(Done("r1", "r1.0", "click", 1000, 1.0)))
    core.advance(1130)
    assert core.drain().dead_letters == []
    core.advance(1131)
    output = core.drain()
    assert reasons(output.dead_letters) == [(ENGAGEMENTS, 0, "unmatched")]
    core.add_engagement(1, engagement_record(Done("r2", "r2.0", "click", 1000, 1.0)))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 1, "unmatched")]


def test_a_request_whose_window_closed_is_late_however_often_it_comes() -> None:
    core = make_joiner(CLICK, lateness=30)
    request = request_record(Served("r1", 1000, 1))
    core.add_request(0, request)
    core.advance(5000)
    assert len(by_id(core, core.drain().examples)) == 1
    core.add_request(1, request)
    core.advance(6000)
    output = core.drain()
    assert output.examples == []
    assert reasons(output.dead_letters) == [(IMPRESSIONS, 1, "late")]
    assert output.dead_letters[0].payload == request


def test_a_request_that_comes_again_before_and_after_its_examples_is_one() -> None:
    core = make_joiner(CLICK, lateness=1000)
    for offset, watermark in enumerate((900, 1150, 1150)):
        core.add_request(offset, request_record(Served("r1", 1000, 2)))
        core.advance(watermark)
    assert len(by_id(core, core.drain().examples)) == 2
    assert core.counts["repeated"] == 2


def test_too_many_engagements_of_one_impression() -> None:
    labels = {"like": Label(action="like", min_value=4, window="10s")}
    core = make_joiner(labels)
    core.add_request(0, request_record(Served("r1", 1000, 1)))
    for offset in range(1001):
        core.add_engagement(offset, engagement_record(Done("r1", "r1.0", "like", 1000 + offset, 1.0)))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 1000, "too_many")]


R1 = Served("r1", 1000, 2)
FIELDS = msgspec.msgpack.decode(request_record(R1))
DONE = msgspec.msgpack.decode(engagement_record(Done("r1", "r1.0", "click", 1001, 1.0)))
FAR = NOW + 3_600_001


def request_with(**changes: Any) -> bytes:
    return encode({**FIELDS, **changes})


def features_with(**changes: Any) -> bytes:
    return request_with(features={**FIELDS["features"], **changes})


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def lists(lengths: Sequence[int], values: int) -> tuple[bytes, bytes]:
    return np.array(lengths, "<i4").tobytes(), b"\0" * values


BAD_REQUESTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no bytes": ("malformed", lambda: b""),
    "not msgpack": ("malformed", lambda: b"\xc1 what is this"),
    "cut off": ("malformed", lambda: request_record(R1)[:-5]),
    "something after it": ("malformed", lambda: request_record(R1) + b"\0"),
    "another thing": ("malformed", lambda: encode([1, 2, 3])),
    "an engagement": ("malformed", lambda: engagement_record(Done("r1", "r1.0", "click", 1001, 1.0))),
    "broken text": ("malformed", lambda: request_record(R1).replace(b"r1.0", b"r\xff.0")),
    "a field of another type": ("malformed", lambda: request_with(served_at="noon")),
    "another version": ("version", lambda: request_with(version=SCHEMA_VERSION + 1)),
    "too large": ("too_large", lambda: request_with(scores=b"\0" * MAX_RECORD_BYTES)),
    "no request id": ("malformed", lambda: request_with(request_id="")),
    "request id too long": ("malformed", lambda: request_with(request_id="x" * (MAX_ID_LENGTH + 1))),
    "impression id too long": ("malformed", lambda: request_with(impression_ids=["a", "x" * (MAX_ID_LENGTH + 1)])),
    "empty impression id": ("malformed", lambda: request_with(impression_ids=["a", ""])),
    "no impressions": ("malformed", lambda: request_with(impression_ids=[])),
    "too many impressions": (
        "malformed",
        lambda: request_with(impression_ids=list(map(str, range(MAX_IMPRESSIONS + 1)))),
    ),
    "an impression twice": ("malformed", lambda: request_with(impression_ids=["a", "a"])),
    "before 1970": ("malformed", lambda: request_with(served_at=-1)),
    "from the far future": ("future", lambda: request_with(served_at=FAR)),
    "a time beyond any": ("future", lambda: request_with(served_at=2**63)),
    "feature missing": ("malformed", lambda: request_with(features={})),
    "shared feature missing": ("malformed", lambda: request_with(shared={})),
    "one id too few": ("malformed", lambda: features_with(item=b"\0" * 8)),
    "a shared feature for each impression": ("malformed", lambda: request_with(shared={"user": b"\0" * 16})),
    "ids instead of lists": ("malformed", lambda: features_with(tags=b"\0" * 16)),
    "lists instead of ids": ("malformed", lambda: features_with(item=lists([1, 1], 16))),
    "lengths cut off": ("malformed", lambda: features_with(tags=lists([1], 8))),
    "lengths that do not add up": ("malformed", lambda: features_with(tags=lists([1, 2], 16))),
    "negative length": ("malformed", lambda: features_with(tags=lists([3, -1], 16))),
    "half an id": ("malformed", lambda: features_with(tags=lists([1, 1], 17))),
    "dense cut off": ("malformed", lambda: features_with(price=b"\0" * 7)),
    "dense not a number": ("malformed", lambda: features_with(price=floats(1, float("nan")))),
    "dense infinite": ("malformed", lambda: features_with(price=floats(float("inf"), 1))),
    "vector too short": ("malformed", lambda: features_with(embedding=floats(1, 2, 3))),
    "vector not finite": ("malformed", lambda: features_with(embedding=floats(1, 2, 3, float("-inf")))),
}
BAD_ENGAGEMENTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no bytes": ("malformed", lambda: b""),
    "cut off": ("malformed", lambda: encode(DONE)[:-3]),
    "a request": ("malformed", lambda: request_record(R1)),
    "another version": ("version", lambda: encode({**DONE, "version": 0})),
    "too large": ("too_large", lambda: encode({**DONE, "action": "x" * MAX_RECORD_BYTES})),
    "request id too long": ("malformed", lambda: encode({**DONE, "request_id": "x" * (MAX_ID_LENGTH + 1)})),
    "before 1970": ("malformed", lambda: encode({**DONE, "happened_at": -1})),
    "from the far future": ("future", lambda: encode({**DONE, "happened_at": FAR})),
    "value not a number": ("malformed", lambda: encode({**DONE, "value": float("nan")})),
    "value infinite": ("malformed", lambda: encode({**DONE, "value": float("inf")})),
    "value a text": ("malformed", lambda: encode({**DONE, "value": "4"})),
}
BAD = [
    *(pytest.param(IMPRESSIONS, *case, id=f"request: {name}") for name, case in BAD_REQUESTS.items()),
    *(pytest.param(ENGAGEMENTS, *case, id=f"engagement: {name}") for name, case in BAD_ENGAGEMENTS.items()),
]


@pytest.mark.parametrize(("topic", "reason", "payload"), BAD)
def test_a_bad_record_is_a_dead_letter_and_costs_nothing_else(
    topic: str, reason: str, payload: Callable[[], bytes]
) -> None:
    core = make_joiner(CLICK)
    bad = payload()
    newest = dict(core.newest)
    (core.add_request if topic == IMPRESSIONS else core.add_engagement)(41, bad)
    assert core.newest == newest, "a refused record does not move the watermark"
    core.add_request(42, request_record(Served("r1", 1000, 2)))
    core.add_engagement(42, engagement_record(Done("r1", "r1.0", "click", 1001, 1.0)))
    core.advance(END)
    output = core.drain()
    assert reasons(output.dead_letters) == [(topic, 41, reason)]
    (letter,) = output.dead_letters
    assert letter.payload == bad
    assert letter.detail
    assert letter.partition == 3
    assert core.counts[f"dead.{reason}"] == 1
    assert {name: item.labels for name, item in by_id(core, output.examples).items()} == {
        "r1.0": (1.0,),
        "r1.1": (0.0,),
    }


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_no_bytes_end_it(noise: bytes, seed: int) -> None:
    core = make_joiner(CLICK)
    rng = random.Random(seed)
    good = bytearray(request_record(R1) if seed % 2 else engagement_record(Done("r1", "r1.0", "click", 1001, 1.0)))
    for _ in range(rng.randint(1, 4)):
        good[rng.randrange(len(good))] = rng.randrange(256)
    for offset, payload in enumerate((noise, bytes(good))):
        core.add_request(offset, payload)
        core.add_engagement(offset, payload)
    core.advance(END)
    core.drain()
    assert core.next_due() == NEVER


@pytest.mark.parametrize("late", ["dead_letter", "correct"])
def test_an_engagement_after_its_negative_was_dropped_is_late(late: str) -> None:
    labels = {"click": Label(action="click", decided_by="skip", window="100ms")}
    core = make_joiner(labels, lateness=50, keep=1e-6, late=late)
    core.add_request(0, request_record(R1))
    name = R1.impression(0)
    core.add_engagement(0, engagement_record(Done("r1", name, "skip", R1.served_at + 20, 1.0)))
    core.advance(R1.served_at + 21)
    assert core.drain().examples == []
    assert core.counts["dropped"] == 1
    core.add_engagement(1, engagement_record(Done("r1", name, "click", R1.served_at + 10, 1.0)))
    core.add_engagement(2, engagement_record(Done("r1", name, "click", R1.served_at + 30, 1.0)))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 1, "late")]
    assert core.counts["dead.late"] == 1
    assert core.counts["redundant"] == 1, "a click after the skip would have changed nothing"
    core.advance(END)
    assert by_id(core, core.drain().examples) == {}
    assert core.counts["dropped"] == R1.impressions


def test_the_share_of_negatives_that_is_kept() -> None:
    names = [f"example {number}" for number in range(20_000)]
    kept = {rate: {name for name in names if Negatives(rate, 7).keeps(name)} for rate in (1.0, 0.5, 0.1, 0.01)}
    for rate, found in kept.items():
        assert abs(len(found) - 20_000 * rate) <= 4 * (20_000 * rate * (1 - rate)) ** 0.5
    assert kept[0.01] < kept[0.1] < kept[0.5], "a lower rate keeps fewer of the same"
    assert {name for name in names if Negatives(0.5, 8).keeps(name)} != kept[0.5]


def test_the_watermark_is_told_when_there_is_nothing_else_to_say() -> None:
    log, clock = MemoryLog(), EventClock(5000)
    core = Joiner(FEATURES, CLICK, JoinSettings(lateness="100ms"), PendingStore(1 << 30, no_disk), clock)
    worker = JoinWorker(log, core, clock, 100)
    assert not worker.step()
    assert not worker.step()
    clock.move_to(6000)
    assert not worker.step()
    told = [core.format.decode(payload) for payload in log.topics[EXAMPLES]]
    assert [(batch.num_rows, watermark) for batch, watermark in told] == [(0, 4900), (0, 5900)]


def test_a_worker_writes_dead_letters_to_their_topic() -> None:
    log, clock = MemoryLog(), EventClock(5000)
    core = Joiner(FEATURES, CLICK, JoinSettings(), PendingStore(1 << 30, no_disk), clock)
    worker = JoinWorker(log, core, clock, 0)
    log.append(IMPRESSIONS, 0, [b"\xc1"])
    worker.step()
    (letter,) = (msgspec.msgpack.decode(payload, type=DeadLetter) for payload in log.topics[DEAD_LETTERS])
    assert (letter.topic, letter.offset, letter.reason, letter.payload) == (IMPRESSIONS, 0, "malformed", b"\xc1")
