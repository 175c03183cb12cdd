"""`minutely produce`: logged events into Kafka as if they happened now, so that the rest of the loop runs live."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minutely.client.client import MEMORY_BYTES
from minutely.client.sender import Lost, NoRoom, Sender
from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.logs.own_logs import load_events
from minutely.services.service import wait_for_topics
from streaming.clock import Clock, WallClock
from streaming.features.columns import Ids
from streaming.kafka.sending import RetryingSender
from streaming.kafka.settings import KafkaSettings
from streaming.log import INPUTS, BrokerError
from streaming.records.events import MAX_RECORD_BYTES
from streaming.source.logged_events import LoggedEvents
from streaming.source.to_records import RequestRecords
from streaming.waiting import retrying

_log = logging.getLogger("minutely.produce")
_TICK_MS = 50
_AT_ONCE = 2000
_WAIT_SECONDS = 2.0


def stamped(events: LoggedEvents, start_ms: int, speed: float | None, rate: float | None) -> LoggedEvents:
    """The events as happening from ``start_ms`` on: requests ``rate`` a second, or their gaps divided by ``speed``.

    Order is kept; an engagement keeps its delay after its request. Features keep their original time.
    """
    first = int(events.served_at[0]) if events.requests else 0
    if rate is not None:
        served_at = start_ms + (np.arange(events.requests) * (1000.0 / rate)).astype(np.int64)
    else:
        assert speed is not None
        served_at = start_ms + ((events.served_at - first) / speed).astype(np.int64)
    done = events.engagements
    request = np.where(done.row >= 0, events.request_of_row[done.row], _last_before(events, done.happened_at))
    happened_at = served_at[request] + np.maximum(done.happened_at - events.served_at[request], 0)
    order = np.argsort(happened_at, kind="stable")
    moved = replace(
        done,
        happened_at=happened_at[order],
        row=done.row[order],
        action=done.action[order],
        value=done.value[order],
        request_id=done.request_id.take(order),
        impression_id=done.impression_id.take(order),
    )
    return replace(events, served_at=served_at, engagements=moved)


def of_run(events: LoggedEvents, run: str) -> LoggedEvents:
    """The events with the ids of their requests prefixed, so that they are other requests than those of any other run."""

    def named(ids: pa.Array) -> pa.Array:
        return pc.binary_join_element_wise(pa.scalar(f"{run}-", ids.type), ids, pa.scalar("", ids.type))

    engagements = replace(events.engagements, request_id=named(events.engagements.request_id))
    return replace(events, request_ids=named(events.request_ids), engagements=engagements)


def _last_before(events: LoggedEvents, happened_at: Ids) -> Ids:
    """The request served last before each time, whose delay an engagement without an impression keeps."""
    return np.maximum(np.searchsorted(events.served_at, happened_at, side="right") - 1, 0)


def produce(pipeline: Pipeline, speed: float | None, rate: float | None) -> None:
    """Send everything that the pipeline's source holds; Ctrl-C ends it. Started again, it sends the same as other requests.

    Raises:
        NoAnswerError: no broker is there in a minute.
    """
    clock = WallClock()
    logging.getLogger("kafka").propagate = False  # it logs every try to connect; ours says that once
    with stop_on_signal() as stop:
        wait_for_topics(pipeline, _log, stop)
        if stop():
            return
        events = load_events(pipeline, clock.now_ms())
        if not events.requests:
            return
        client = ProductsQueue(pipeline.kafka)
        retrying(_log, stop, client.connect, pipeline.kafka.asked)
        start_ms = clock.now_ms()
        run = f"{start_ms // 1000:x}-{secrets.token_hex(2)}"  # fits beside the longest id of a log
        _log.info("run %s: the ids of its requests begin with that", run)
        with closing(client):
            send(pipeline, client, of_run(stamped(events, start_ms, speed, rate), run), start_ms, clock, stop)


class ProductsQueue:
    """The queue of the client that products send with."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._lost: Lost | None = None
        self._sender = Sender(
            settings, self._note, memory_bytes=MEMORY_BYTES, wait_seconds=_WAIT_SECONDS, delivery_seconds=math.inf
        )
        self.taken = self._sender.acknowledged

    def connect(self) -> None:
        """Connect; `BrokerError` if brokers are away."""
        self._sender.connect()

    def offer(self, topic: str, value: bytes, key: bytes | None, partition: int) -> bool:
        """Queue a record for the partition of its key; False, after a short wait, if the queue is full."""
        assert key is not None and partition < 0
        self._check()
        try:
            self._sender.send(topic, key.decode(), value)
        except NoRoom:
            return False
        return True

    def flush(self, seconds: float) -> int:
        """Wait until brokers have everything, or for so long; return how many records they lack."""
        left = self._sender.flush(seconds)
        self._check()
        return left

    def close(self) -> None:
        """Let go of the brokers, and of what they lack."""
        self._sender.close(0)

    def _note(self, lost: Lost) -> None:
        self._lost = self._lost or lost

    def _check(self) -> None:
        if self._lost is not None:
            raise BrokerError(f"{self._lost.error} (request {self._lost.request_id:.60})")


def send(
    pipeline: Pipeline,
    client: ProductsQueue,
    events: LoggedEvents,
    start_ms: int,
    clock: Clock,
    stop: Callable[[], bool],
) -> None:
    """Send every event when its time has come, where it is ``start_ms`` now; a clock that is set changes no pace."""
    begun_at = clock.elapsed_ms()
    maker = RequestRecords(events, pipeline.features)
    happened_at = events.engagements.happened_at
    scores = np.zeros((events.impressions, 0), np.float32)
    request = engagement = 0
    sender = RetryingSender(pipeline.kafka, _log, stop, client)
    names = [pipeline.kafka.topic(name) for name in INPUTS]
    too_large: set[str] = set()
    without_request = 0

    def fits(key: str, value: bytes) -> bool:
        if len(value) <= MAX_RECORD_BYTES:
            return True
        too_large.add(key)
        if len(too_large) == 1:
            _log.warning("request %s has %d bytes, which are not sent; allowed: %d", key, len(value), MAX_RECORD_BYTES)
        return False

    while (request < events.requests or engagement < len(happened_at)) and not stop():
        now = start_ms + clock.elapsed_ms() - begun_at
        until = min(int(np.searchsorted(events.served_at, now, side="right")), request + _AT_ONCE)
        ids = events.request_ids.slice(request, until - request).to_pylist()
        records = zip(ids, maker.requests(request, until, scores, 0, 0), strict=True)
        if not all(sender.send(names[0], value, key=key.encode()) for key, value in records if fits(key, value)):
            break
        request = until
        known = (
            now if request == events.requests else min(now, int(events.served_at[request]) - 1)
        )  # whose requests went
        until = min(int(np.searchsorted(happened_at, known, side="right")), engagement + _AT_ONCE)
        ids = events.engagements.request_id.slice(engagement, until - engagement).to_pylist()
        done = [
            each for each in zip(ids, maker.engagements(engagement, until), strict=True) if each[0] not in too_large
        ]
        without_request += len(ids) - len(done)
        if not all(sender.send(names[1], value, key=key.encode()) for key, value in done):
            break
        behind = request < events.requests and events.served_at[request] <= now
        engagement = until
        sender.wait()  # bounds what is in memory while brokers are away
        if not behind:
            time.sleep(_TICK_MS / 1000)
    if left := sender.wait():
        _log.warning("the last %d records were not acknowledged", left)
    if too_large:
        _log.warning(
            "%d requests were too large to be sent; %d engagements of them were left out",
            len(too_large),
            without_request,
        )
    _log.info("sent %d requests, %d engagements", *(sender.taken[name] for name in names))
