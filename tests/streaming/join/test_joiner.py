"""The joiner against a brute-force join that is written down from the contract alone."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.clock import EventClock
from streaming.join import core as joiner
from streaming.join.negatives import Negatives
from streaming.join.partition import JoinPartition
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec
from streaming.join.timers import NEVER
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import (
    DeadLetter,
    encode,
)
from tests.streaming.join.join_lives import Brokers, records_of
from tests.streaming.join.join_world import (
    CLICK,
    END,
    FEATURES,
    HEAD,
    SEED,
    Arrival,
    Done,
    Joined,
    Served,
    SpillingState,
    World,
    arrivals,
    arrived,
    by_id,
    check,
    engagement_record,
    join_all,
    make_joiner,
    request_record,
    roomy_state,
    worlds,
)


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
    assert core.counts.examples + core.counts.dropped == sum(served.impressions for served in world.requests)
    assert core.next_due() == NEVER
    assert core.counts.repeated >= sum(world.copies[: len(world.requests)]) - len(world.requests)


@settings(max_examples=40)
@given(worlds(), st.integers(0, 2**32), st.integers(1, 3))
def test_joins_the_same_when_its_state_spills(world: World, seed: int, due_at_once: int) -> None:
    records = arrivals(world, random.Random(seed))
    roomy = make_joiner(world.labels, emit=world.emit, lateness=world.lateness)
    expected = join_all(roomy, records, seed)
    with tempfile.TemporaryDirectory() as folder, patch.object(joiner, "_DUE_AT_ONCE", due_at_once):
        state = SpillingState(folder)
        tight = make_joiner(world.labels, state, emit=world.emit, lateness=world.lateness)
        joined = join_all(tight, records, seed)
        assert len(state) == 0
        assert tight.next_due() == NEVER
        state.close()
    found, wanted = ([repr(batch.to_pydict()) for batch in each.examples] for each in (joined, expected))
    assert found == wanted  # as texts, since a score that is missing equals none
    assert sorted(map(encode, joined.dead)) == sorted(map(encode, expected.dead))
    assert tight.counts == roomy.counts


def test_what_does_not_fit_in_memory_is_on_disk_and_comes_back(tmp_path: Path) -> None:
    state = SpillingState(tmp_path)
    core = make_joiner(CLICK, state, lateness=10)
    for number in range(20):
        core.add(IMPRESSIONS, arrived(number, request_record(Served(f"r{number}", 1000 + number, 2))))
    assert (len(state), state.in_memory) == (20, 0)
    for number in range(20):
        core.add(
            ENGAGEMENTS, arrived(number, engagement_record(Done(f"r{number}", f"r{number}.0", "click", 1050, 1.0)))
        )
    assert core.next_due() == 1050
    core.advance(1051)
    assert len(by_id(core, core.drain().examples)) == 20
    state.write(HEAD)
    assert (len(state), state.in_memory) == (20, 0), "markers too"
    core.advance(1105)
    assert {name: item.labels for name, item in by_id(core, core.drain().examples).items()} == {
        f"r{number}.1": (0.0,) for number in range(5)
    }
    core.advance(2000)
    assert len(by_id(core, core.drain().examples)) == 15
    assert (len(state), core.next_due()) == (0, NEVER)
    state.close()


@settings(max_examples=80)
@given(worlds(), st.integers(0, 2**32), st.booleans())
def test_nothing_comes_twice_or_vanishes_when_the_watermark_runs_ahead(world: World, seed: int, spills: bool) -> None:
    """With events later than promised labels may differ, but an impression is an example once, or its record refused."""
    rng = random.Random(seed)
    records = arrivals(world, rng)
    with tempfile.TemporaryDirectory() as folder:
        state = SpillingState(folder) if spills else None
        core = make_joiner(world.labels, state, emit=world.emit, lateness=world.lateness)
        examples, dead = [], []
        for offset, record in enumerate([*records, None]):
            if record is None:
                core.advance(END)
            else:
                core.add(record.topic, arrived(offset, record.payload))
                core.advance(record.at + rng.randint(-30, 80) if rng.random() < 0.5 else 0)
            output = core.drain()
            examples += output.examples
            dead += output.dead_letters
        assert core.next_due() == NEVER
        if state is not None:
            state.close()
    found = by_id(core, examples)
    letters = Counter(letter.payload for letter in dead)
    sent = Counter(record.payload for record in records)
    for served in world.requests:
        emitted = {served.impression(index) for index in range(served.impressions)} & found.keys()
        payload = request_record(served)
        assert len(emitted) in (0, served.impressions)
        assert emitted or letters[payload] == sent[payload]
    assert all(letters[payload] <= sent[payload] for payload in letters)


@settings(max_examples=100)
@given(worlds(), st.integers(0, 2**32), st.integers(1, 5))
def test_a_partition_never_lets_its_watermark_pass_an_event_to_come(world: World, seed: int, at_once: int) -> None:
    """Records come in bursts, larger than what a step takes, so that inputs are at their end or far behind it in turns."""
    rng = random.Random(seed)
    records = arrivals(world, rng)
    brokers, clock = Brokers(), EventClock(0)
    settings_ = JoinSettings(emit=world.emit, lateness=f"{world.lateness}ms")

    spec = JoinSpec(FEATURES, world.labels, settings_, Negatives(world.keep, SEED))
    partition = JoinPartition(spec, roomy_state(), brokers, brokers, 3, new_id=lambda: "id", write_every_ms=NEVER)
    for _ in partition.recover():
        pass

    def step() -> bool:
        """Whether an input had more to take."""
        ended = {}
        for topic in (IMPRESSIONS, ENGAGEMENTS):
            at = partition.offsets[topic]
            values = brokers.topics[topic][at : at + at_once]
            partition.take(topic, records_of(values, at))
            ended[topic] = len(values) < at_once
        partition.step(ended, clock.now_ms(), 1)
        return not all(ended.values())

    while records:
        burst, records = records[: (size := rng.randint(1, 12))], records[size:]
        for record in burst:
            brokers.topics[record.topic].append(record.payload)
            clock.move_to(record.at)
        while step() and rng.random() < 0.8:
            pass
    clock.move_to(END)
    while step():
        pass
    core = partition.joiner
    sent = {topic: [value for value in values if value is not None] for topic, values in brokers.topics.items()}
    batches, watermarks = zip(*(core.format.decode(payload) for payload in sent[EXAMPLES]), strict=True)
    dead = [msgspec.msgpack.decode(payload, type=DeadLetter) for payload in sent[DEAD_LETTERS]]
    came = [Arrival(0, topic, payload) for topic in (IMPRESSIONS, ENGAGEMENTS) for payload in sent[topic]]
    check(world, core, Joined([batch for batch in batches if batch.num_rows], dead), came)
    assert list(watermarks) == sorted(watermarks), "a watermark never goes back"
    for batch, watermark in zip(batches, watermarks, strict=True):
        assert not batch.num_rows or batch.column("decided_at").to_numpy().max() < watermark
    assert watermarks[-1] == END - world.lateness
    assert partition.offsets == {topic: len(sent[topic]) for topic in (IMPRESSIONS, ENGAGEMENTS)}
