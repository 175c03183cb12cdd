"""Records that were made to end the joiner: nothing comes out of its decoding but a refusal, and each is a dead letter."""

from __future__ import annotations

import json
import random
import timeit
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from basis.decoding import UNDECODABLE
from streaming.join.core import Joiner, JoinSettings
from streaming.join.pending import PendingStore
from streaming.join.watermark import JoinWorker
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, BadRecord, decode_engagement, decode_request, encode
from streaming.records.examples import ExampleFormat
from streaming.records.json_records import pack_request
from tests.streaming.join.join_world import (
    CLICK,
    END,
    FEATURES,
    R1,
    Done,
    EventClock,
    MemoryLog,
    engagement_record,
    make_joiner,
    no_disk,
    reasons,
    request_record,
)

FORMAT = ExampleFormat(FEATURES, CLICK)
DEPTHS = (300, 850, 930, 1100)


def nested_json(depth: int, within: str = "1") -> str:
    return "[" * depth + within + "]" * depth


def nested_msgpack(depth: int) -> bytes:
    return b"\x81\xa1x" + b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize("depth", [1100, 100_000])
def test_a_nested_record_is_a_dead_letter(depth: int) -> None:
    log, clock = MemoryLog(), EventClock(5000)
    core = Joiner(FEATURES, CLICK, JoinSettings(), PendingStore(1 << 30, no_disk), clock)
    for topic in (IMPRESSIONS, ENGAGEMENTS):
        log.append(topic, 0, [b'{"x":%b}' % nested_json(depth).encode(), nested_msgpack(depth)])
    JoinWorker(log, core, clock, 0).step()
    letters = [msgspec.msgpack.decode(payload, type=msgspec.Raw) for payload in log.topics[DEAD_LETTERS]]
    assert len(letters) == 4
    assert core.counts == {IMPRESSIONS: 2, ENGAGEMENTS: 2, "dead.malformed": 4, "examples": 0}


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
    core.add_engagement(7, payload)
    assert core.counts["dead.malformed"] == 0, "it waits for its request"
    deeper(350, lambda: advance(core))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 7, "malformed")]


HOSTILE = [
    *(nested_json(depth) for depth in DEPTHS),
    *(nested_json(depth, '1,"a"') for depth in DEPTHS),
    *('{"a":' * depth + "1" + "}" * depth for depth in DEPTHS),
    "9" * 30,
    "-" + "9" * 30,
    "9" * 4200,
    "9" * 5000,
    "1e400",
    "-1e400",
    "1" + "0" * 400 + ".5",
    "NaN",
    "null",
    "true",
    "{}",
    "[[1],[2]]",
    "[1,[2]]",
    "[null,1,1.5]",
    '["x",1,1e300]',
    '[{"a":1}]',
    r'"\ud800"',
    r'"\udc00"',
    r'"\ud800\u0041"',
    r'"\u0000"',
    '"\udcff"',  # becomes a byte that is no UTF-8
    '"' + "9" * 5000 + '"',
    '"0001-01-01T00:00+23:59"',
]


def hostile_json(rng: random.Random, good: Any) -> bytes:
    """A valid record with one of its parts, at any depth, replaced, and a few bytes of some changed."""
    whole = json.loads(json.dumps(good))
    at = whole
    while True:
        place = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        if isinstance(at[place], dict | list) and at[place] and rng.random() < 0.7:
            at = at[place]
            continue
        at[place] = "PART"
        break
    text = json.dumps(whole).replace('"PART"', rng.choice(HOSTILE), 1).encode("utf-8", "surrogateescape")
    return changed(rng, text) if rng.random() < 0.3 else text


def changed(rng: random.Random, record: bytes) -> bytes:
    out = bytearray(record)
    for _ in range(rng.randint(1, 4)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def hostile_msgpack(rng: random.Random, good: bytes) -> bytes:
    """A valid record with a field of no name that holds anything, or one of its own replaced, and a few bytes changed."""
    fields = msgspec.msgpack.decode(good)
    place = rng.choice([*fields, "x"])
    value = rng.choice(
        [
            *(b"\x91" * depth + b"\xc0" for depth in DEPTHS),
            *(b"\x81\xa1x" * depth + b"\xc0" for depth in DEPTHS),
            *(b"\x81" * depth + b"\xc0" * (depth + 1) for depth in DEPTHS),
            b"\xcf" + b"\xff" * 8,
            b"\xd3\x80" + b"\0" * 7,
            b"\xcb\x7f\xf0" + b"\0" * 6,
            b"\xa2\xff\xfe",
            b"\xa3\xed\xa0\x80",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xc7\x0c\xff" + b"\xff" * 12,
            b"\xd6\xff\xff\xff\xff\xff",
            b"\xd4\x05\x00",
        ]
    )
    raw = {name: msgspec.Raw(value if name == place else encode(each)) for name, each in {"x": 0, **fields}.items()}
    out = encode(raw)
    return changed(rng, out) if rng.random() < 0.3 else out


def is_refused(read: Callable[[bytes], object], record: bytes) -> bool:
    try:
        read(record)
    except BadRecord:
        return True
    return False


def read_json_request(record: bytes) -> object:
    return decode_request(pack_request(record, FEATURES), MAX_TIME_MS)


JSON_REQUEST = {
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
def test_nothing_but_a_refusal_comes_out_of_decoding(seed: int) -> None:
    rng = random.Random(seed)
    request, done = request_record(R1), engagement_record(Done("r1", "r1.0", "click", 1001, 1.0))
    json_done = msgspec.msgpack.decode(done)
    example = FORMAT.encode(FORMAT.empty(), 7)
    readers: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
        "JSON request": (
            lambda: hostile_json(rng, JSON_REQUEST),
            read_json_request,
        ),
        "request": (lambda: hostile_msgpack(rng, request), lambda data: decode_request(data, MAX_TIME_MS)),
        "JSON engagement": (
            lambda: hostile_json(rng, json_done),
            lambda data: decode_engagement(data, MAX_TIME_MS),
        ),
        "engagement": (lambda: hostile_msgpack(rng, done), lambda data: decode_engagement(data, MAX_TIME_MS)),
        EXAMPLES: (lambda: hostile_msgpack(rng, example), FORMAT.decode),
    }
    for name, (make, read) in readers.items():
        assert sum(is_refused(read, make()) for _ in range(400)) > 40, name
    core = make_joiner(CLICK)
    for offset in range(400):
        make, _ = readers[rng.choice(list(readers))]
        core.add_request(offset, make())
        core.add_engagement(offset, make())
    core.advance(END)
    assert len(core.drain().dead_letters) > 400


def test_lists_within_lists_cost_no_more_than_others() -> None:
    deep = json.dumps(JSON_REQUEST).replace("[12, 15]", nested_json(600, '1,"a"')).encode()
    least = min(timeit.repeat(lambda: is_refused(read_json_request, deep), number=1, repeat=3))
    assert least < 0.5, "seconds; of quadratic work it was four"


@pytest.mark.parametrize("data", [b"\xff", b'"\xff"', b"[" * 2000, b'"\\ud800"', b"9" * 5000, b"1e400", b"", b"{1:2}"])
def test_what_decoders_raise_is_in_the_list(data: bytes) -> None:
    for kind in (int, float, str, list[int], dict[str, Any]):
        with pytest.raises(UNDECODABLE):
            msgspec.json.decode(data, type=kind)
