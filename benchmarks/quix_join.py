"""The join of `benchmarks.join` by quixstreams, in an environment of its own: the project does not depend on it.

Written from quixstreams' documentation, and as it is fastest there: requests and engagements are one stream by key, kept as the
bytes that they came in by a stateful function; a session window, closed by the partition's time, says when a request is due;
what is kept is then decoded once and goes out as an examples record, made by the very code of the joiner.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

import msgspec
import numpy as np
from quixstreams import Application
from quixstreams.context import message_context

from streaming.columns import unpack
from streaming.events import Engagement, Request
from streaming.examples import ExampleColumns, ExampleFormat
from streaming.features import Feature, SparseFeature, VectorFeature
from streaming.labels import Label

GAP_MS, GRACE_MS = (
    5000,
    1000,
)  # a session closes two gaps and the grace after its last event: the joiner's window and lateness
IDLE_SECONDS = 5.0


class Times(msgspec.Struct):
    """What tells a record's event time."""

    served_at: int = 0
    happened_at: int = 0


_times = msgspec.msgpack.Decoder(Times)
_request = msgspec.msgpack.Decoder(Request)
_engagement = msgspec.msgpack.Decoder(Engagement)
_packed = msgspec.msgpack.Decoder(list[bytes])
_encode = msgspec.msgpack.Encoder().encode


def event_time(value: bytes, _headers: Any, _timestamp: float, _kind: Any) -> int:
    found = _times.decode(value)
    return found.served_at or found.happened_at


def main() -> None:
    told = json.loads(sys.argv[1])
    features: dict[str, Feature] = {
        "user": SparseFeature(column="user", scope="request"),
        "item": SparseFeature(column="item"),
        "vector": VectorFeature(kind="vector", column="vector", size=told["values"]),
    }
    example_format = ExampleFormat(features, {"click": Label(action="click", window="10s")})
    names = {name: told["kafka"]["prefix"] + name for name in ("impressions", "engagements")}
    count = 0
    emitted_at = 0.0

    def keep(value: bytes, _key: Any, _timestamp: Any, _headers: Any, state: Any) -> int:
        if message_context().topic == names["impressions"]:
            state.set_bytes("request", value)
        else:
            before = state.get_bytes("engagements")
            state.set_bytes("engagements", _encode([*(_packed.decode(before) if before else []), value]))
        return 1

    def emit(_value: Any, _key: Any, _timestamp: Any, _headers: Any, state: Any) -> bytes:
        nonlocal count, emitted_at
        request = _request.decode(state.get_bytes("request"))
        done = state.get_bytes("engagements")
        state.delete("request")
        number = len(request.impression_ids)
        labels = np.zeros((number, 1), np.float32)
        happened_at = np.full(number, request.served_at)
        if done:
            state.delete("engagements")
            for each in map(_engagement.decode, _packed.decode(done)):
                at = request.impression_ids.index(each.impression_id)
                labels[at], happened_at[at] = 1, each.happened_at
        columns = {
            name: unpack(item, [request.features[name]])
            if name != "user"
            else unpack(item, [request.shared[name]]).repeat(number)
            for name, item in features.items()
        }
        served_at = np.full(number, request.served_at)
        rest = ExampleColumns(request.impression_ids, labels, served_at, happened_at, served_at + 10_000)
        count += number
        emitted_at = time.monotonic()
        return example_format.encode(example_format.build(columns, rest), request.served_at)

    with tempfile.TemporaryDirectory() as folder:
        safe = told["what"] == "quix safe"
        app = Application(
            broker_address=told["kafka"]["bootstrap"],
            consumer_group=told["what"].replace(" ", "-"),
            auto_offset_reset="earliest",
            state_dir=folder,
            processing_guarantee="exactly-once" if safe else "at-least-once",
            use_changelog_topics=safe,
            loglevel="WARNING",
        )
        inputs = [
            app.dataframe(
                app.topic(name, value_deserializer="bytes", key_deserializer="bytes", timestamp_extractor=event_time)
            )
            for name in names.values()
        ]
        stream = inputs[0].concat(inputs[1]).apply(keep, stateful=True, metadata=True)
        due = stream.session_window(GAP_MS, GRACE_MS).count().final(closing_strategy="partition")
        examples = app.topic(told["kafka"]["prefix"] + "examples", value_serializer="bytes", key_serializer="bytes")
        due.apply(emit, stateful=True, metadata=True).to_topic(examples)
        before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        app.run(timeout=IDLE_SECONDS, collect=False)
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"count": count, "wall": emitted_at - begun, "cpu": cpu, "rss": after.ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
