"""Records that were made to end the joiner: nothing comes out of its decoding but a refusal, and each is a dead letter."""

from __future__ import annotations

import json
import random
import timeit
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streaming.embedded_log import EmbeddedLog
from streaming.features.kinds import Feature, VectorFeature
from streaming.join.core import Joiner
from streaming.join.embedded import catch_up
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, BadRecord, decode_engagement, decode_request, encode, is_json
from streaming.records.examples import ExampleFormat
from streaming.records.json_records import pack_request
from tests.fuzz.mutate import hostile_json, hostile_msgpack, nested_json
from tests.streaming.join.join_world import (
    CLICK,
    END,
    FEATURES,
    R1,
    Done,
    EventClock,
    arrived,
    clicks_service,
    engagement_record,
    make_joiner,
    reasons,
    request_record,
)

FORMAT = ExampleFormat(FEATURES, CLICK)


def nested_msgpack(depth: int) -> bytes:
    return b"\x81\xa1x" + b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize("depth", [1100, 100_000])
def test_a_nested_record_is_a_dead_letter(depth: int, tmp_path: Path) -> None:
    clock = EventClock(5000)
    with closing(EmbeddedLog(tmp_path, durable=False, clock=clock)) as log:
        service = clicks_service(log, clock)
        for topic in (IMPRESSIONS, ENGAGEMENTS):
            log.append(topic, 0, [b'{"x":%b}' % nested_json(depth).encode(), nested_msgpack(depth)])
        catch_up(service)
        assert log.end(DEAD_LETTERS, 0) == 4
    counts = service.members[0].work.joiner.counts
    assert (
        counts.records == {IMPRESSIONS: 2, ENGAGEMENTS: 2}
        and counts.refused == {"malformed": 4}
        and not counts.examples
    )


def advance(core: Joiner) -> None:
    core.advance(END)


def deeper(calls: int, step: Callable[[], None]) -> None:
    if calls:
        deeper(calls - 1, step)
    else:
        step()


def test_what_was_decoded_once_may_be_refused_where_the_stack_is_deeper() -> None:
    core = make_joiner(CLICK)
    done = msgspec.msgpack.decode(engagement_record(Done("r1", "r1.0", "click", 1001, 1.0)))
    payload = json.dumps(done)[:-1].encode() + b',"x":%b}' % nested_json(700).encode()
    core.add(ENGAGEMENTS, arrived(7, payload))
    assert core.counts.refused["malformed"] == 0, "it waits for its request"
    deeper(350, lambda: advance(core))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 7, "malformed")]


def is_refused(read: Callable[[bytes], object], record: bytes) -> bool:
    try:
        read(record)
    except BadRecord:
        return True
    return False


def read_json_request(record: bytes) -> object:
    return decode_request(pack_request(record, FEATURES), MAX_TIME_MS)


JSON_REQUEST: dict[str, Any] = {
    "version": 1,
    "request_id": "r1",
    "served_at": 5000,
    "impression_ids": ["a", "b"],
    "shared": {"user": "u7"},
    "features": {"item": [12, 15], "tags": [[1, 2], []], "price": [0.5, 2], "embedding": [[1, 2], [3, 4]]},
    "positions": [0, 1],
    "scores": [[0.5], [0.25]],
}


@pytest.mark.parametrize("seed", range(2))
def test_every_hostile_record_is_a_dead_letter(seed: int) -> None:
    """What decoders do with them alone is in tests/fuzz."""
    rng = random.Random(seed)
    request, done = request_record(R1), engagement_record(Done("r1", "r1.0", "click", 1001, 1.0))
    json_done = json.dumps(msgspec.msgpack.decode(done)).encode()
    json_request = json.dumps(JSON_REQUEST).encode()
    makers: list[Callable[[], bytes]] = [
        lambda: hostile_json(rng, json_request),
        lambda: hostile_msgpack(rng, request),
        lambda: hostile_json(rng, json_done),
        lambda: hostile_msgpack(rng, done),
    ]
    core = make_joiner(CLICK)
    for offset in range(400):
        core.add(IMPRESSIONS, arrived(offset, rng.choice(makers)()))
        core.add(ENGAGEMENTS, arrived(offset, rng.choice(makers)()))
    core.advance(END)
    assert len(core.drain().dead_letters) > 400


WIDE: dict[str, Feature] = {"embedding": VectorFeature(kind="vector", column="embedding", size=1024)}


@pytest.mark.parametrize(
    ("name", "value"),
    [("item", "null"), ("item", "1"), ("tags", "null"), ("tags", "[]"), ("price", "null"), ("embedding", "null")],
)
def test_values_are_counted_before_they_are_converted(name: str, value: str) -> None:
    """The nulls of one vector asked for 160 MB here, and for 6 GiB in a record of 4 MB."""
    record = json.dumps(JSON_REQUEST | {"features": {name: ["VALUES"]}}).replace('"VALUES"', ",".join([value] * 20_000))
    tracemalloc.start()
    try:
        with pytest.raises(BadRecord, match=f"feature {name}: 20000 values for 2 impressions"):
            pack_request(record.encode(), FEATURES | WIDE)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("features", [{"embedding": 1025}, {"embedding": 1000, "picture": 25}])
def test_vectors_that_no_record_has_room_for_are_too_large(features: dict[str, int]) -> None:
    kinds: dict[str, Feature] = {
        name: VectorFeature(kind="vector", column=name, size=size) for name, size in features.items()
    }
    impressions = [f"i{at}" for at in range(1024)]
    request = JSON_REQUEST | {"impression_ids": impressions, "features": dict.fromkeys(features, [None] * 1024)}
    with pytest.raises(BadRecord, match="bytes; allowed: 4194304") as refused:
        pack_request(json.dumps(request).encode(), kinds)
    assert refused.value.reason == "too_large"


def test_a_large_json_record_is_not_decoded() -> None:
    record = json.dumps(JSON_REQUEST | {"pad": "x" * ((4 << 20) + 1024)}).encode()
    with pytest.raises(BadRecord, match=f"{len(record)} bytes; allowed: 4194304"):
        pack_request(record, FEATURES)


def test_too_many_nulls_are_a_dead_letter() -> None:
    core = make_joiner(CLICK)
    record = json.dumps(JSON_REQUEST | {"features": JSON_REQUEST["features"] | {"embedding": [None] * 100_000}})
    core.add(IMPRESSIONS, arrived(3, record.encode()))
    assert reasons(core.drain().dead_letters) == [(IMPRESSIONS, 3, "feature")]


def test_lists_within_lists_cost_no_more_than_others() -> None:
    deep = json.dumps(JSON_REQUEST).replace("[12, 15]", nested_json(600, '1,"a"')).encode()
    least = min(timeit.repeat(lambda: is_refused(read_json_request, deep), number=1, repeat=3))
    assert least < 0.5, "seconds; of quadratic work it was four"


NEWER: dict[str, tuple[Callable[[bytes], object], dict[str, Any]]] = {
    "a request": (lambda value: decode_request(value, MAX_TIME_MS), {"request_id": 1, "impression_ids": {"a": 1}}),
    "an engagement": (lambda value: decode_engagement(value, MAX_TIME_MS), {"value": [1, 2]}),
    "an example": (lambda value: FORMAT.decode(value), {"batches": [b""]}),
}


@pytest.mark.parametrize("name", NEWER)
@pytest.mark.parametrize(("version", "reason"), [(9, "version"), (None, "malformed"), ("x", "malformed")])
def test_another_version_is_named_also_where_it_has_another_shape(name: str, version: Any, reason: str) -> None:
    """Once the program is updated, `dead-letters --again` sends it; it leaves what is malformed."""
    decode, fields = NEWER[name]
    packed = [encode({"version": version, **fields})]
    packed += [msgspec.json.encode({"version": version, **fields})] if name == "an engagement" else []
    for value in packed:
        with pytest.raises(BadRecord) as caught:
            decode(value)
        assert caught.value.reason == reason


def test_another_version_of_a_json_request_is_named() -> None:
    with pytest.raises(BadRecord, match="record version 9; allowed: 1"):
        pack_request(b'{"version": 9, "impressions": {"a": 1}}', {})


MARKS = ("\ufeff", " ", "\n", "\r\n\t ", "\ufeff\n")


@pytest.mark.parametrize("before", MARKS)
def test_json_behind_blanks_or_a_mark_is_json(before: str) -> None:
    """Editors and PowerShell write the mark, and templates blanks; both are what JSON parsers of most languages pass over."""
    done = {"version": 1, "request_id": "r", "impression_id": "a", "action": "click", "happened_at": 5}
    engagement = (before + json.dumps(done)).encode()
    assert is_json(engagement)
    assert decode_engagement(engagement, MAX_TIME_MS).happened_at == 5
    seen = {"version": 1, "request_id": "r", "served_at": 5, "impression_ids": ["a"]}
    request = (before + json.dumps(seen)).encode()
    assert decode_request(pack_request(request, {}), MAX_TIME_MS).request_id == "r"
    for other in (done, seen):
        with pytest.raises(BadRecord, match="record version 9; allowed: 1"):
            decode_engagement((before + json.dumps(other | {"version": 9})).encode(), MAX_TIME_MS)


def test_blanks_alone_are_no_json() -> None:
    assert not any(is_json(before.encode()) for before in MARKS)
    assert not is_json(encode({"version": 1}))


def test_the_frame_of_a_schema_registry_is_named() -> None:
    for decode in (decode_request, decode_engagement):
        with pytest.raises(
            BadRecord, match=r"it begins as what Confluent's serializers write .* allowed: JSON or msgpack"
        ) as caught:
            decode(b"\0\0\0\0\7" + b'{"version": 1}', MAX_TIME_MS)
        assert caught.value.reason == "malformed"
