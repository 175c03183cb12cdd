"""`minutely join`: the joiner's service, put together from a pipeline."""

from __future__ import annotations

import gc
import logging
import uuid
from pathlib import Path

from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.place import require_writable
from minutely.services.service import Address, bind, serve_metrics
from streaming.clock import Clock, WallClock
from streaming.join.calibration import ServedCalibration
from streaming.join.commit import Committed
from streaming.join.memory import MemoryShare
from streaming.join.metrics import JoinMetrics
from streaming.join.partition import JoinPartition
from streaming.join.refusals import RefusalLog
from streaming.join.service import GARBAGE_AFTER, JoinService
from streaming.kafka.brokers import JOINERS, LIVE_JOINERS, KafkaBrokers
from streaming.kafka.topics import ensure_topics
from streaming.loop.brokers import History, Outlet
from streaming.waiting import retrying

_log = logging.getLogger("minutely.join")


def join(pipeline: Pipeline, folder: Path, metrics: Address | None) -> None:
    """Join until SIGINT or SIGTERM; a folder for each partition's state in ``folder``."""

    def begin() -> JoinService:
        ensure_topics(pipeline.kafka, pipeline.live_spec().kept_ms)
        return make_join_service(pipeline, folder, WallClock())

    require_writable(folder, "--state")
    if metrics is not None:
        bind(metrics, "--metrics").close()  # said now, not when brokers are there
    gc.set_threshold(GARBAGE_AFTER)
    with stop_on_signal() as stop:
        service = retrying(_log, stop, begin, pipeline.kafka.asked)
        if service is None:
            return
        if metrics is not None:
            serve_metrics(JoinMetrics(service), metrics)
        service.run(stop)


def make_join_service(pipeline: Pipeline, folder: Path, clock: Clock) -> JoinService:
    """The service with a pipeline's joiners."""
    spec, settings = pipeline.service_join_spec(), pipeline.join
    bounds = pipeline.train.guards.served_calibration
    memory = MemoryShare(settings.memory_bytes)
    refusals = RefusalLog(clock)
    served = None if bounds is None else ServedCalibration(pipeline.labels, bounds, _log.warning, _log.info)

    def make(partition: int, outlet: Outlet[Committed], history: History) -> JoinPartition:
        return JoinPartition(
            spec,
            memory.open(folder / str(partition)),
            outlet,
            history,
            partition,
            new_id=lambda: uuid.uuid4().hex,
            prefix=pipeline.kafka.prefix,
            served=served,
            refused=refusals.add,
        )

    brokers = KafkaBrokers(pipeline.kafka, JOINERS if spec.live is None else LIVE_JOINERS)
    return JoinService(
        brokers, make, clock, max_wait_ms=settings.max_wait, asked=pipeline.kafka.asked, served=served, memory=memory
    )
