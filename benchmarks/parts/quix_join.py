"""The joins of `benchmarks.join` by quixstreams, run in an environment of its own: the project does not depend on it.

Two forms. ``windows`` is what quixstreams has for this: requests and engagements are one stream keyed by request, a stateful
function keeps both as the bytes that they came in, and a tumbling window by event time, whose grace is the label's window and the
lateness, closes when all engagements are there; what is kept then goes out as an examples record of one request.

``queue`` is the fastest form found, which has given up keys and windows: both topics go into one stateful function under one key,
so that its state can hold a queue of the requests in order of arrival, engagements beside it by request id; after every
`look_every` requests, those at the head whose windows are over go out, many in each examples record. It is a small joiner by hand
on quixstreams' consumer, state, changelog and transactions.

In both, examples records are built by the joiner's own code. What they do less than the joiner: they have no timer, so the last
windows close with a later record; examples wait for their window even where their labels are decided before it; nothing is
checked, and no dead letters are written; repeated requests give repeated examples; engagements without a request stay in the
state; there is one label with one action, and ``queue`` wants the log in order of time; they commit every 5 s, quixstreams'
default, where the joiner does with every batch; their wall time begins with their first record and ends with their last example.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from quixstreams import Application
from quixstreams.context import message_context
from quixstreams.models import Deserializer

from streaming.features.kinds import Feature, SparseFeature, VectorFeature
from streaming.join.decided import gather, gather_served
from streaming.records.events import Engagement, Request
from streaming.records.examples import ExampleColumns, ExampleFormat
from streaming.records.identity import example_id
from streaming.records.labels import Label

WINDOW_MS, LATENESS_MS = 10_000, 1000
ROWS = 8192
REQUESTS = 2000
"""``queue`` looks for what is due after so many impressions or requests, as the joiner takes them."""
IDLE_SECONDS = 30.0


class _Times(msgspec.Struct):
    served_at: int = 0
    happened_at: int = 0


_times = msgspec.msgpack.Decoder(_Times)
_request = msgspec.msgpack.Decoder(Request)
_engagement = msgspec.msgpack.Decoder(Engagement)
_packed = msgspec.msgpack.Decoder(list[bytes])
_encode = msgspec.msgpack.Encoder().encode
_ends = struct.Struct("<qq")


class _Constant(Deserializer):
    """State is of one key: this makes all records' the same."""

    def __call__(self, value: bytes, ctx: Any) -> bytes:
        return b"k"


def event_time(value: bytes, _headers: Any, _timestamp: float, _kind: Any) -> int:
    """When a record's event was (ms)."""
    found = _times.decode(value)
    return found.served_at or found.happened_at


def build(example_format: ExampleFormat, requests: list[Request], clicks: list[list[Engagement]]) -> bytes:
    """An examples record of all impressions of these requests, with the clicks of each."""
    ids = [example_id(request.request_id, name) for request in requests for name in request.impression_ids]
    counts = [len(request.impression_ids) for request in requests]
    served_at = np.repeat([request.served_at for request in requests], counts)
    happened_at, decided_at = served_at.copy(), served_at + WINDOW_MS
    labels = np.zeros((len(ids), 1), np.float32)
    start = 0
    for request, count, engagements in zip(requests, counts, clicks, strict=True):
        for each in engagements:
            at = start + request.impression_ids.index(each.impression_id)
            labels[at] = 1
            happened_at[at] = decided_at[at] = each.happened_at
        start += count
    rows = np.arange(len(ids))
    columns, served = gather(example_format.features, requests, rows), gather_served(requests, rows, 1)
    rest = ExampleColumns(ids, labels, served_at, happened_at, decided_at, served=served)
    return example_format.encode(example_format.build(columns, rest), requests[-1].served_at)


class Join:
    """What both forms share. ``due`` stops the application when all requests but the closing one are out."""

    def __init__(self, told: dict[str, Any], folder: Path) -> None:
        features: dict[str, Feature] = {
            "user": SparseFeature(column="user", scope="request"),
            "item": SparseFeature(column="item"),
            "vector": VectorFeature(kind="vector", column="vector", size=told["values"]),
        }
        self._format = ExampleFormat(features, {"click": Label(action="click", window="10s")})
        self._requests: int = told["requests"] - 1
        self.out = 0
        self.first_at = self.last_at = 0.0
        self._impressions, self._engagements = (
            told["kafka"]["prefix"] + name for name in ("impressions", "engagements")
        )
        self.app = Application(
            broker_address=told["kafka"]["bootstrap"],
            consumer_group=told["what"],
            auto_offset_reset="earliest",
            state_dir=str(folder),
            processing_guarantee="exactly-once",
            use_changelog_topics=True,
            producer_extra_config={"message.max.bytes": told["largest"]},
            loglevel="WARNING",
        )

    def is_request(self) -> bool:
        """Whether the record at hand is one of `impressions`."""
        self.first_at = self.first_at or time.monotonic()
        return bool(message_context().topic == self._impressions)

    def stream(self, **options: Any) -> Any:
        """Both inputs as one stream of bytes."""
        topics = [
            self.app.topic(name, value_deserializer="bytes", **options)
            for name in (self._impressions, self._engagements)
        ]
        first, second = map(self.app.dataframe, topics)
        return first.concat(second)

    def record(self, requests: list[Request], clicks: list[list[Engagement]]) -> bytes:
        """An examples record of requests that are due."""
        self.out += len(requests)
        self.last_at = time.monotonic()
        if self.out >= self._requests:
            self.app.stop()
        return build(self._format, requests, clicks)


def keep(state: Any, key: str, engagement: bytes) -> None:
    before = state.get_bytes(key)
    state.set_bytes(key, _encode([*(_packed.decode(before) if before else []), engagement]))


def take(state: Any, key: str) -> list[Engagement]:
    kept = state.get_bytes(key)
    if kept is None:
        return []
    state.delete(key)
    return [_engagement.decode(item) for item in _packed.decode(kept)]


def windows(join: Join, told: dict[str, Any]) -> Any:
    def note(value: bytes, _key: Any, _timestamp: Any, _headers: Any, state: Any) -> int:
        if join.is_request():
            state.set_bytes("request", value)
        else:
            keep(state, "engagements", value)
        return 1

    def emit(_value: Any, _key: Any, _timestamp: Any, _headers: Any, state: Any) -> bytes:
        kept = state.get_bytes("request")
        if kept is None:  # it went out with the window before, together with the click that this one is of
            return b""
        state.delete("request")
        return join.record([_request.decode(kept)], [take(state, "engagements")])

    stream = join.stream(key_deserializer="bytes", timestamp_extractor=event_time)
    counted = (
        stream.apply(note, stateful=True, metadata=True).tumbling_window(WINDOW_MS, WINDOW_MS + LATENESS_MS).count()
    )
    return counted.final(closing_strategy="partition").apply(emit, stateful=True, metadata=True).filter(bool)


def queue(join: Join, told: dict[str, Any]) -> Any:
    look_every = min(REQUESTS, ROWS // told["impressions"])

    def due(state: Any, head: int, tail: int, watermark: int) -> tuple[int, list[bytes]]:
        """Take what is due from the queue."""
        records: list[bytes] = []
        requests: list[Request] = []
        clicks: list[list[Engagement]] = []
        while head < tail:
            request = _request.decode(state.get_bytes(f"q{head}"))
            if request.served_at + WINDOW_MS >= watermark:
                break
            clicks.append(take(state, f"e{request.request_id}"))
            state.delete(f"q{head}")
            requests.append(request)
            head += 1
            if len(requests) == look_every:
                records.append(join.record(requests, clicks))
                requests, clicks = [], []
        if requests:
            records.append(join.record(requests, clicks))
        return head, records

    def each(value: bytes, _key: Any, _timestamp: Any, _headers: Any, state: Any) -> list[bytes]:
        if not join.is_request():
            keep(state, f"e{_engagement.decode(value).request_id}", value)
            return []
        head, tail = _ends.unpack(state.get_bytes("ends") or bytes(_ends.size))
        state.set_bytes(f"q{tail}", value)
        tail += 1
        records: list[bytes] = []
        if tail % look_every == 0 or tail == told["requests"]:
            head, records = due(state, head, tail, _request.decode(value).served_at - LATENESS_MS)
        state.set_bytes("ends", _ends.pack(head, tail))
        return records

    return join.stream(key_deserializer=_Constant()).apply(each, stateful=True, metadata=True, expand=True)


def main() -> None:
    told = json.loads(sys.argv[1])
    forms: dict[str, Callable[[Join, dict[str, Any]], Any]] = {"windows": windows, "queue": queue}
    with tempfile.TemporaryDirectory() as folder:
        join = Join(told, Path(folder))
        examples = join.app.topic(told["output"], value_serializer="bytes", key_serializer="bytes")
        forms[told["what"]](join, told).to_topic(examples)
        before = resource.getrusage(resource.RUSAGE_SELF)
        join.app.run(timeout=IDLE_SECONDS)
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    count = join.out * told["impressions"]
    print(json.dumps({"count": count, "wall": join.last_at - join.first_at, "cpu": cpu}))


if __name__ == "__main__":
    main()
