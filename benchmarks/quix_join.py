"""The join of `benchmarks.join` by quixstreams, run in an environment of its own: the project does not depend on it.

The fastest form found that gives the right examples. Both topics are one stream into one stateful function, under one key, so that
its state can hold a queue of the requests in order of arrival: a request is put in as the bytes that it came in, engagements
beside it by request id; after every `look_every` requests, those at the head whose windows are over are taken out, and go out as
examples records, many requests in each, built by the joiner's own code. It is a small joiner by hand on quixstreams' consumer,
state, changelog and transactions; quixstreams' own windows and joins are not used.

What it does less than the joiner: it has no timer, so the last windows close with a later record; examples wait for their
window even where their labels are decided before it; nothing is checked, and no dead letters are written; repeated requests give
repeated examples; engagements without a request stay in its state; there is one label with one action, and no other
than this log's order of impressions by time; it commits every 5 s, its default, where the joiner does with every batch; its wall
time begins with its first record and ends with its last example.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import tempfile
import time
from typing import Any

import msgspec
import numpy as np
from quixstreams import Application
from quixstreams.context import message_context
from quixstreams.models import Deserializer

from streaming.events import Engagement, Request
from streaming.examples import ExampleColumns, ExampleFormat
from streaming.features import Feature, SparseFeature, VectorFeature
from streaming.labels import Label
from streaming.ready import gather

WINDOW_MS, LATENESS_MS = 10_000, 1000
ROWS = 8192
REQUESTS = 2000
"""It looks for what is due after so many impressions or requests, as the joiner takes them."""
IDLE_SECONDS = 30.0

_request = msgspec.msgpack.Decoder(Request)
_engagement = msgspec.msgpack.Decoder(Engagement)
_packed = msgspec.msgpack.Decoder(list[bytes])
_encode = msgspec.msgpack.Encoder().encode
_ends = struct.Struct("<qq")


class _Constant(Deserializer):
    """State is of one key: this makes all records' the same."""

    def __call__(self, value: bytes, ctx: Any) -> bytes:
        return b"k"


def build(example_format: ExampleFormat, requests: list[Request], clicks: list[list[Engagement]]) -> bytes:
    """An examples record of all impressions of these requests, with the clicks of each."""
    ids = [impression_id for request in requests for impression_id in request.impression_ids]
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
    columns = gather(example_format.features, requests, np.arange(len(ids)))
    rest = ExampleColumns(ids, labels, served_at, happened_at, decided_at)
    return example_format.encode(example_format.build(columns, rest), requests[-1].served_at)


def main() -> None:
    told = json.loads(sys.argv[1])
    features: dict[str, Feature] = {
        "user": SparseFeature(column="user", scope="request"),
        "item": SparseFeature(column="item"),
        "vector": VectorFeature(kind="vector", column="vector", size=told["values"]),
    }
    example_format = ExampleFormat(features, {"click": Label(action="click", window="10s")})
    names = {name: told["kafka"]["prefix"] + name for name in ("impressions", "engagements")}
    look_every = min(REQUESTS, ROWS // told["impressions"])
    count = 0
    first_at = last_at = 0.0

    def due(state: Any, head: int, tail: int, watermark: int) -> tuple[int, list[bytes]]:
        """Take what is due from the queue."""
        records, requests, clicks = [], [], []
        while head < tail:
            request = _request.decode(state.get_bytes(f"q{head}"))
            if request.served_at + WINDOW_MS >= watermark:
                break
            kept = state.get_bytes(f"e{request.request_id}")
            if kept is not None:
                state.delete(f"e{request.request_id}")
            state.delete(f"q{head}")
            requests.append(request)
            clicks.append([_engagement.decode(item) for item in _packed.decode(kept)] if kept else [])
            head += 1
            if len(requests) == look_every:
                records.append(build(example_format, requests, clicks))
                requests, clicks = [], []
        if requests:
            records.append(build(example_format, requests, clicks))
        return head, records

    def join(value: bytes, _key: Any, _timestamp: Any, _headers: Any, state: Any) -> list[bytes]:
        nonlocal count, first_at, last_at
        first_at = first_at or time.monotonic()
        if message_context().topic == names["engagements"]:
            key = f"e{_engagement.decode(value).request_id}"
            before = state.get_bytes(key)
            state.set_bytes(key, _encode([*(_packed.decode(before) if before else []), value]))
            return []
        head, tail = _ends.unpack(state.get_bytes("ends") or bytes(_ends.size))
        state.set_bytes(f"q{tail}", value)
        tail += 1
        records: list[bytes] = []
        if tail % look_every == 0 or tail == told["requests"]:
            begin = head
            head, records = due(state, head, tail, _request.decode(value).served_at - LATENESS_MS)
            count += (head - begin) * told["impressions"]
            if tail == told["requests"]:
                last_at = time.monotonic()
                app.stop()
        state.set_bytes("ends", _ends.pack(head, tail))
        return records

    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=told["kafka"]["bootstrap"],
            consumer_group="quix",
            auto_offset_reset="earliest",
            state_dir=folder,
            processing_guarantee="exactly-once",
            use_changelog_topics=True,
            producer_extra_config={"message.max.bytes": told["largest"]},
            loglevel="WARNING",
        )
        inputs = [
            app.dataframe(app.topic(name, value_deserializer="bytes", key_deserializer=_Constant()))
            for name in names.values()
        ]
        examples = app.topic(told["output"], value_serializer="bytes", key_serializer="bytes")
        stream = inputs[0].concat(inputs[1])
        stream.apply(join, stateful=True, metadata=True, expand=True).to_topic(examples)
        before = resource.getrusage(resource.RUSAGE_SELF)
        app.run(timeout=IDLE_SECONDS)
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"count": count, "wall": last_at - first_at, "cpu": cpu, "rss": after.ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
