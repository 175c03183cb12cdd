"""The recovery protocol, simulated: any crash between any two steps, state lost or old, and still every example once."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from streaming.join.commit import Committed
from streaming.join.negatives import Negatives
from streaming.join.partition import JoinPartition
from streaming.join.state import JoinState
from streaming.join.timers import NEVER
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.loop.brokers import OutputRecord
from streaming.records.events import (
    FORMAT_VERSION,
    MAX_TIME_MS,
    DeadLetter,
    Engagement,
    Request,
    decode_engagement,
    decode_letter,
    encode,
)
from streaming.records.labels import Rule, decide
from tests.streaming.join.join_lives import (
    ENDED,
    FORMAT,
    LATENESS,
    SETTINGS,
    TAKEN_AT,
    WINDOW,
    Brokers,
    Crash,
    World,
    clicked,
    fill,
    letters,
    life,
    published,
    records_of,
    request,
    take,
)

SEEDS = int(os.environ.get("JOIN_SEEDS", "6"))


@pytest.mark.parametrize("seed", range(20))
def test_every_example_once_through_any_crashes(seed: int, tmp_path: Path) -> None:
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

    def send(self, outbox: Sequence[OutputRecord], commit: Committed) -> dict[str, int]:
        if Fencing.newest is not self:
            raise Crash
        return self._brokers.send(outbox, commit)


def feed(join: JoinPartition, brokers: Brokers, records: int) -> None:
    for topic in (IMPRESSIONS, ENGAGEMENTS):
        at = join.offsets[topic]
        values = brokers.topics[topic][at : at + records]
        join.take(topic, records_of(values, at))
    ended = {topic: join.offsets[topic] == len(brokers.topics[topic]) for topic in join.offsets}
    join.step(ended, TAKEN_AT, 0)


@pytest.mark.parametrize("taken", [5, 100])
def test_a_worker_that_slept_does_not_take_anothers_transaction_for_its_own(taken: int, tmp_path: Path) -> None:
    world = World(random.Random(1), tmp_path)
    labels = fill(world.brokers, world.rng, 150)
    ours, theirs = (world.join(JoinState(folder, 1 << 20), Fencing(world.brokers)) for folder in world.folders)
    list(ours.recover())
    for _ in range(5):
        feed(ours, world.brokers, 20)
    list(theirs.recover())
    feed(theirs, world.brokers, taken)
    with pytest.raises(Crash):
        feed(ours, world.brokers, 60)
    list(ours.recover())
    while ours.busy or ours.published < 100_000:
        feed(ours, world.brokers, 0 if ours.busy else 20)
    times = Counter(name for name, items in published(world.brokers).items() for _ in items)
    assert times == dict.fromkeys(labels, 1)


def test_what_was_refused_as_late_is_in_no_label_though_its_negative_was_dropped_unsaid(tmp_path: Path) -> None:
    """The watermark that it was too late for was told to nobody, and the transaction that refused it says that more is due."""
    world = World(random.Random(1), tmp_path, negatives=Negatives(1e-6, 0), requests_at_once=3)
    brokers, ended = world.brokers, {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world)
    take(join, brokers, IMPRESSIONS, request(0, 10_000))
    join.step(ended, 10_800, 1000)
    join.step(ended, 11_400, 1000)  # the window closed at 11,000; nothing to say
    late = Engagement(version=FORMAT_VERSION, request_id="r0", impression_id="0.0", action="click", happened_at=10_900)
    take(join, brokers, ENGAGEMENTS, encode(late))
    take(join, brokers, IMPRESSIONS, *(request(number, 10_200 + number) for number in range(1, 9)))
    join.step(ended, 11_700, 1000)
    assert join.busy
    join.state.close()
    join = life(world)
    while join.busy:
        join.step(ended, 11_700, 1000)
    join.step(ended, 20_000, 0)
    while join.busy:
        join.step(ended, 20_000, 0)
    assert len([value for value in brokers.topics[DEAD_LETTERS] if value]) == 1
    assert not published(brokers)


@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
def test_impressions_of_two_requests_may_share_an_id(lost: bool, tmp_path: Path) -> None:
    world = World(random.Random(1), tmp_path)
    ended = {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world)
    take(join, world.brokers, IMPRESSIONS, request(1, 10_000, "i"))
    for as_of in (10_400, 10_800, 11_400, 12_400, 12_900):  # it is emitted, and forgotten
        join.step(ended, as_of, 0)
    take(join, world.brokers, IMPRESSIONS, request(2, 12_950, "i"))
    join.step(ended, 13_050, 0)
    join.state.close()
    if lost:
        shutil.rmtree(world.folders[0])
    join = life(world)
    for as_of in (14_000, 16_000, 17_000):
        join.step(ended, as_of, 0)
    assert {name: len(items) for name, items in published(world.brokers).items()} == {"r1/i": 1, "r2/i": 1}


@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
def test_two_requests_of_one_millisecond_may_show_the_same_item(lost: bool, tmp_path: Path) -> None:
    world = World(random.Random(1), tmp_path)
    ended = {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world)
    take(join, world.brokers, IMPRESSIONS, request(1, 10_000, "item7"), request(2, 10_000, "item7"))
    join.step(ended, 10_050, 0)  # the state goes to disk
    click = Engagement(
        version=FORMAT_VERSION, request_id="r1", impression_id="item7", action="click", happened_at=10_100
    )
    take(join, world.brokers, ENGAGEMENTS, encode(click))
    join.step(ended, 10_500, 0)
    assert published(world.brokers).keys() == {"r1/item7"}
    join.state.close()
    if lost:
        shutil.rmtree(world.folders[0])
    join = life(world)
    join.step(ended, 13_000, 0)
    labels = {name: [item.label for item in items] for name, items in published(world.brokers).items()}
    assert labels == {"r1/item7": [1.0], "r2/item7": [0.0]}


@pytest.mark.parametrize("written", [True, False], ids=["state written", "state behind"])
@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
def test_a_request_id_used_again_is_told_from_a_repeat_after_a_restart(
    lost: bool, written: bool, tmp_path: Path
) -> None:
    world = World(random.Random(1), tmp_path)
    ended = {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world, write_every_ms=0 if written else NEVER)
    join.step(ended, 9000, 0)
    take(join, world.brokers, IMPRESSIONS, request(1, 10_000), request(2, 10_000))
    join.step(ended, 10_100, 0)
    take(join, world.brokers, IMPRESSIONS, request(1, 10_050))
    join.step(ended, 10_200, 0)
    join.state.close()
    if lost:
        shutil.rmtree(world.folders[0])
    join = life(world)
    take(join, world.brokers, IMPRESSIONS, request(1, 10_000), request(2, 10_060))
    join.step(ended, 20_000, 0)
    found = [decode_letter(value) for value in world.brokers.topics[DEAD_LETTERS] if value]
    assert [(letter.reason, letter.payload) for letter in found] == [
        ("request_id used again", request(1, 10_050)),
        ("request_id used again", request(2, 10_060)),
    ]
    assert {name: len(items) for name, items in published(world.brokers).items()} == {"r1/1.0": 1, "r2/2.0": 1}


@pytest.mark.parametrize("lost", [False, True], ids=["state kept", "state lost"])
def test_a_request_whose_id_was_free_again_is_pending_after_a_restart(lost: bool, tmp_path: Path) -> None:
    """A recovery meets the one of before as well, which was forgotten by then."""
    world = World(random.Random(1), tmp_path)
    ended = {IMPRESSIONS: True, ENGAGEMENTS: True}
    join = life(world, write_every_ms=NEVER)
    join.step(ended, 9000, 0)
    take(join, world.brokers, IMPRESSIONS, request(1, 10_000))
    take(join, world.brokers, ENGAGEMENTS, encode(clicked("r1", "1.0", 10_500)))
    join.step(ended, 10_100, 0)
    over = 10_000 + WINDOW + 2 * LATENESS + 1
    join.step(ended, over, 0)
    join.step(ended, over, 0)
    assert join.pending == 0
    take(join, world.brokers, IMPRESSIONS, request(1, over))
    join.step(ended, over, 0)
    join.state.close()
    if lost:
        shutil.rmtree(world.folders[0])
    join = life(world)
    assert join.pending == 1
    join.step(ended, over + 10_000, 0)
    assert [(item.served_at, item.label) for item in published(world.brokers)["r1/1.0"]] == [(10_000, 1), (over, 0)]
    assert not letters(world.brokers)


@pytest.mark.parametrize("seed", range(3))
def test_a_state_of_another_history_is_not_used(seed: int, tmp_path: Path) -> None:
    """Topics and group were made anew; that the numbers fit means nothing."""
    rng = random.Random(seed)
    worlds = [World(rng, tmp_path / name) for name in ("before", "anew")]
    worlds[1].ids = (f"another {at}" for at in itertools.count())
    labels = [fill(world.brokers, rng, 150) for world in worlds]
    for world in worlds:
        while (committed := world.brokers.open()) is None or committed.sequence < 10:
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
            request = msgspec.msgpack.decode(value or b"", type=Request)
            found |= {f"{request.request_id}/{name}": [] for name in request.impression_ids}
    for offset, value in enumerate(brokers.topics[ENGAGEMENTS]):
        done = decode_engagement(value or b"", MAX_TIME_MS)
        name = f"{done.request_id}/{done.impression_id}"
        if name in found:
            event = (done.happened_at, done.action, done.value)
            found[name].append(Counted(event, (ENGAGEMENTS, offset) in refused))
    return found


def label_of(served_at: int, events: Sequence[Counted]) -> float:
    rules = [Rule.of(label) for label in ENDED.values()]
    return decide(rules, served_at, [item.event for item in events]).values[0]


@pytest.mark.parametrize(("seed", "keep"), [(seed, 1.0 if seed % 2 else 0.3) for seed in range(SEEDS)])
def test_what_is_refused_is_in_no_label_and_what_is_not_is(seed: int, keep: float, tmp_path: Path) -> None:
    """A decision stands through any rebuild, also one that nobody saw: of a negative that sampling dropped."""
    rng = random.Random(seed)
    negatives = Negatives(keep, seed)
    world = World(rng, tmp_path, ENDED, SETTINGS, negatives)
    fill_unruly(world.brokers, rng, 100)
    world.run()
    examples = published(world.brokers, ENDED)
    for name, events in counted(world.brokers).items():
        first = next((at for at, item in enumerate(events) if item.refused), len(events))
        served_at = 10_000 + int(name[1:].split("/")[0]) * 20
        label = label_of(served_at, events[:first])
        expected = [(0, label, served_at)] if label or negatives.keeps(name) else []
        assert examples.pop(name, []) == expected, (name, events, world.lives)
    assert not examples, "of requests that were refused"


@pytest.mark.parametrize(("seed", "keep"), [(seed, 1.0 if seed % 2 else 0.3) for seed in range(SEEDS)])
def test_late_engagements_correct_examples_once_each_through_any_crashes(
    seed: int, keep: float, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    negatives = Negatives(keep, seed)
    world = World(rng, tmp_path, ENDED, SETTINGS.model_copy(update={"late": "correct"}), negatives)
    fill_unruly(world.brokers, rng, 100)
    world.run()
    examples, times = published(world.brokers, ENDED), Counter[int]()
    for name, events in counted(world.brokers).items():
        found = examples.pop(name, [])
        served_at = 10_000 + int(name[1:].split("/")[0]) * 20
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
