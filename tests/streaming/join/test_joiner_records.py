"""What the joiner refuses, and what it writes to the log."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.join.embedded import catch_up
from streaming.join.negatives import Negatives
from streaming.join.timers import NEVER
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import (
    FORMAT_VERSION,
    MAX_ID_LENGTH,
    MAX_IMPRESSIONS,
    MAX_RECORD_BYTES,
    DeadLetter,
    encode,
)
from streaming.records.labels import Label
from tests.streaming.join.join_world import (
    CLICK,
    END,
    NOW,
    R1,
    Done,
    Served,
    arrived,
    by_id,
    clicks_service,
    engagement_record,
    make_joiner,
    reasons,
    request_record,
)

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
    "another version": ("version", lambda: request_with(version=FORMAT_VERSION + 1)),
    "too large": ("too_large", lambda: request_with(scores=b"\0" * (MAX_RECORD_BYTES + 1024))),
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
    "a time beyond any": ("malformed", lambda: request_with(served_at=2**63)),
    "feature missing": ("feature", lambda: request_with(features={})),
    "shared feature missing": ("feature", lambda: request_with(shared={})),
    "one id too few": ("feature", lambda: features_with(item=b"\0" * 8)),
    "a shared feature for each impression": ("feature", lambda: request_with(shared={"user": b"\0" * 16})),
    "ids instead of lists": ("feature", lambda: features_with(tags=b"\0" * 16)),
    "lists instead of ids": ("feature", lambda: features_with(item=lists([1, 1], 16))),
    "lengths cut off": ("feature", lambda: features_with(tags=lists([1], 8))),
    "lengths that do not add up": ("feature", lambda: features_with(tags=lists([1, 2], 16))),
    "negative length": ("feature", lambda: features_with(tags=lists([3, -1], 16))),
    "half an id": ("feature", lambda: features_with(tags=lists([1, 1], 17))),
    "dense cut off": ("feature", lambda: features_with(price=b"\0" * 7)),
    "dense not a number": ("feature", lambda: features_with(price=floats(1, float("nan")))),
    "dense infinite": ("feature", lambda: features_with(price=floats(float("inf"), 1))),
    "vector too short": ("feature", lambda: features_with(embedding=floats(1, 2, 3))),
    "vector not finite": ("feature", lambda: features_with(embedding=floats(1, 2, 3, float("-inf")))),
}
BAD_ENGAGEMENTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "no bytes": ("malformed", lambda: b""),
    "cut off": ("malformed", lambda: encode(DONE)[:-3]),
    "a request": ("malformed", lambda: request_record(R1)),
    "another version": ("version", lambda: encode({**DONE, "version": 0})),
    "too large": ("too_large", lambda: encode({**DONE, "action": "x" * (MAX_RECORD_BYTES + 1024)})),
    "request id too long": ("malformed", lambda: encode({**DONE, "request_id": "x" * (MAX_ID_LENGTH + 1)})),
    "before 1970": ("malformed", lambda: encode({**DONE, "happened_at": -1})),
    "from the far future": ("future", lambda: encode({**DONE, "happened_at": FAR})),
    "value not a number": ("malformed", lambda: encode({**DONE, "value": float("nan")})),
    "value infinite": ("malformed", lambda: encode({**DONE, "value": float("inf")})),
    "value beyond 32 bits": ("malformed", lambda: encode({**DONE, "value": 1e300})),
    "value below 32 bits": ("malformed", lambda: encode({**DONE, "value": -3.5e38})),
    "value beyond 32 bits in JSON": ("malformed", lambda: msgspec.json.encode({**DONE, "value": 1e300})),
    "value not a number in JSON": ("malformed", lambda: msgspec.json.encode({**DONE, "value": float("nan")})),
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
    before = dict(core.reached.inputs), core.reached.newest
    core.add(topic, arrived(41, bad))
    assert (core.reached.inputs, core.reached.newest) == before, "a refused record does not move the watermark"
    core.add(IMPRESSIONS, arrived(42, request_record(Served("r1", 1000, 2))))
    core.add(ENGAGEMENTS, arrived(42, engagement_record(Done("r1", "r1.0", "click", 1001, 1.0))))
    core.advance(END)
    output = core.drain()
    assert reasons(output.dead_letters) == [(topic, 41, reason)]
    (letter,) = output.dead_letters
    assert letter.payload == bad[:MAX_RECORD_BYTES]
    assert letter.cut_from == (len(bad) if len(bad) > MAX_RECORD_BYTES else 0)
    assert letter.detail
    assert letter.partition == 3
    assert core.counts.refused[reason] == 1
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
        core.add(IMPRESSIONS, arrived(offset, payload))
        core.add(ENGAGEMENTS, arrived(offset, payload))
    core.advance(END)
    core.drain()
    assert core.next_due() == NEVER


@pytest.mark.parametrize("late", ["dead_letter", "correct"])
def test_an_engagement_after_its_negative_was_dropped_is_late(late: str) -> None:
    labels = {"click": Label(action="click", decided_by="skip", window="100ms")}
    core = make_joiner(labels, lateness=50, keep=1e-6, late=late)
    core.add(IMPRESSIONS, arrived(0, request_record(R1)))
    name = R1.impression(0)
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", name, "skip", R1.served_at + 20, 1.0))))
    core.advance(R1.served_at + 21)
    assert core.drain().examples == []
    assert core.counts.dropped == 1
    core.add(ENGAGEMENTS, arrived(1, engagement_record(Done("r1", name, "click", R1.served_at + 10, 1.0))))
    core.add(ENGAGEMENTS, arrived(2, engagement_record(Done("r1", name, "click", R1.served_at + 30, 1.0))))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 1, "late")]
    assert core.counts.refused["late"] == 1
    assert core.counts.redundant == 1, "a click after the skip would have changed nothing"
    core.advance(END)
    assert by_id(core, core.drain().examples) == {}
    assert core.counts.dropped == R1.impressions


def test_what_was_served_travels_with_the_example() -> None:
    """Of requests with scores and positions, without any, and of a replica with one label more."""
    core = make_joiner(CLICK)
    scores, positions = np.array([0.25, 0.5, 0.125], "<f4"), np.array([2, 0, 1], "<i4")
    versions = {"sparse_version": 41, "dense_version": 40}
    served = request_record(Served("r1", 1000, 3), scores=scores.tobytes(), positions=positions.tobytes(), **versions)
    core.add(IMPRESSIONS, arrived(0, served))
    core.add(IMPRESSIONS, arrived(1, request_record(Served("r2", 1000, 3))))
    core.add(
        IMPRESSIONS, arrived(2, request_record(Served("r3", 1000, 3), scores=bytes(24), positions=bytes(3), **versions))
    )
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.1", "click", 1010, 1.0))))
    core.advance(END)
    found = {}
    for batch in core.drain().examples:
        found |= {row["example_id"]: row for row in batch.to_pylist()}
    columns = ("position", "score.click", "sparse_version", "dense_version")
    assert [[found[f"r1/r1.{at}"][name] for name in columns] for at in range(3)] == [
        [2, 0.25, 41, 40],
        [0, 0.5, 41, 40],
        [1, 0.125, 41, 40],
    ]
    for name, version in (("r2", 0), ("r3", 41)):
        rows = [found[f"{name}/{name}.{at}"] for at in range(3)]
        assert [row["position"] for row in rows] == [0, 1, 2]
        assert all(np.isnan(row["score.click"]) for row in rows)
        assert {row["sparse_version"] for row in rows} == {version}


def test_the_share_of_negatives_that_is_kept() -> None:
    names = [f"example {number}" for number in range(20_000)]
    kept = {rate: {name for name in names if Negatives(rate, 7).keeps(name)} for rate in (1.0, 0.5, 0.1, 0.01)}
    for rate, found in kept.items():
        assert abs(len(found) - 20_000 * rate) <= 4 * (20_000 * rate * (1 - rate)) ** 0.5
    assert kept[0.01] < kept[0.1] < kept[0.5], "a lower rate keeps fewer of the same"
    assert {name for name in names if Negatives(0.5, 8).keeps(name)} != kept[0.5]


def test_an_item_that_is_seldom_clicked_is_a_negative_now_and_then() -> None:
    """Of every request that shows it, by chance: by the item's id alone it would be always one or never."""
    core = make_joiner(CLICK, keep=0.1)
    items = [f"item{number}" for number in range(100)]
    for number in range(200):
        served = Served(f"r{number}", 1000 + number, len(items))
        core.add(IMPRESSIONS, arrived(number, request_record(served, impression_ids=items)))
    core.advance(END)
    names = [name for batch in core.drain().examples for name in batch.column("example_id").to_pylist()]
    assert {name.partition("/")[2] for name in names} == set(items)
    assert abs(len(names) - 2000) <= 4 * (20_000 * 0.1 * 0.9) ** 0.5


def test_the_watermark_is_told_when_there_is_nothing_else_to_say(tmp_path: Path) -> None:
    clock = EventClock()
    with closing(EmbeddedLog(tmp_path, durable=False, clock=clock)) as log:
        service = clicks_service(log, clock, lateness=100)
        for now in (4000, 5000, 5000, 6000):
            clock.move_to(now)
            catch_up(service)
        example_format = service.members[0].work.joiner.format
        told = [example_format.decode(record.value) for record in log.read(EXAMPLES, 0, 0, 10)]
    assert [(batch.num_rows, watermark) for batch, watermark in told] == [(0, 4900), (0, 5900)]


def test_dead_letters_go_to_their_topic(tmp_path: Path) -> None:
    clock = EventClock(5000)
    with closing(EmbeddedLog(tmp_path, durable=False, clock=clock)) as log:
        service = clicks_service(log, clock)
        log.append(IMPRESSIONS, 0, [b"\xc1"])
        catch_up(service)
        (record,) = log.read(DEAD_LETTERS, 0, 0, 10)
    letter = msgspec.msgpack.decode(record.value, type=DeadLetter)
    assert (letter.topic, letter.offset, letter.reason, letter.payload) == (IMPRESSIONS, 0, "malformed", b"\xc1")
