"""What waits for the log and for a shadow is bounded in bytes, and what does not fit is said once."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minutely.services.serve import make_replica_service
from serving.buffer import Buffer
from serving.outbox import Outbox, Outgoing
from serving.ranking import Ranking, order_of
from serving.replica import Versions
from serving.requests import RankQuery
from streaming.clock import EventClock
from streaming.features.columns import Ragged
from streaming.log import IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, decode_request
from tests.serving.publishing import DAY, Publisher, draw, make_pipeline

LIMIT_BYTES = 16 << 20


def _record(size: int) -> Outgoing:
    return Outgoing(IMPRESSIONS, "r", b"x" * (size - 257))


def test_a_buffer_is_bounded_and_says_once_what_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    buffer: Buffer[Outgoing] = Buffer("records", 10_000)
    with caplog.at_level(logging.WARNING):
        assert [buffer.offer(_record(1000)) for _ in range(20)] == [True] * 10 + [False] * 10
        assert len(caplog.records) == 1
        assert len(buffer.take(3500)) == 3
        assert not buffer.offer(_record(1000)), "what was taken is still there"
        buffer.done(3000)
        assert not buffer.offer(*[_record(1000)] * 4), "all or none"
        assert buffer.offer(*[_record(1000)] * 3)
        assert not buffer.offer(_record(1000))
        assert len(caplog.records) == 1, "it was not empty meanwhile"
        assert len(buffer.take(10_000)) == 10
        assert not buffer.offer(_record(1000))
        assert len(caplog.records) == 1, "what was taken is still there"
        buffer.done(10_000)
        assert buffer.size_bytes == 0
        assert not buffer.offer(_record(10_001))
        assert len(caplog.records) == 2
        assert buffer.offer(_record(9000)) and len(buffer.take(1)) == 1, "one at least"


def test_what_is_dropped_is_counted() -> None:
    outbox = Outbox(5000)
    for _ in range(8):
        outbox.offer(_record(1000))
    assert outbox.dropped[IMPRESSIONS] == 3
    assert not outbox.offer_all([_record(1000)])
    assert outbox.dropped[IMPRESSIONS] == 3, "who sent it is told"


def test_memory_while_brokers_are_away_is_bounded(tmp_path: Path) -> None:
    """600 requests of 2,000 candidates, of which 10 are answered, then all: they took 251 MiB as they had been asked."""
    pipeline = make_pipeline(serve={"log": True, "log_buffer_bytes": LIMIT_BYTES})
    publisher = Publisher(pipeline, tmp_path)
    service = make_replica_service(pipeline, publisher.files, EventClock(DAY), "replica")
    columns = draw(np.random.default_rng(1), 2000)

    def serve(number: int, limit: int) -> None:
        copies = {
            name: Ragged(*map(np.copy, each)) if isinstance(each, Ragged) else each.copy()
            for name, each in columns.items()
        }
        asked = RankQuery(copies, 2000, f"r{number}", [f"i{at}" for at in range(2000)], limit, DAY)
        scores = np.full((2000, 2), 0.5, np.float32)
        answer = Ranking(scores, scores[:, 0], Versions(1, 1, 1))
        service.served(asked, answer, order_of(asked, answer))

    serve(-1, 10)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(600):
            serve(number, 10)
        assert not service.outbox.dropped, "ten answers are a small record"
        few = tracemalloc.get_traced_memory()[0] - before
        for number in range(150):
            serve(number, 2000)
        all_of_them = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert few < 3 << 20
    assert all_of_them < 1.05 * LIMIT_BYTES
    assert service.outbox.dropped[IMPRESSIONS] > 20
    records = [decode_request(record.value, MAX_TIME_MS) for record in service.outbox.take(LIMIT_BYTES)]
    assert len(records) + service.outbox.dropped[IMPRESSIONS] == 751
    assert {len(record.impression_ids) for record in records} == {10, 2000}
    assert {record.schema for record in records} == {pipeline.join_spec().schema.fingerprint}
