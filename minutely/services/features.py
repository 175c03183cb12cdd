"""`minutely features`: keeps live features, put together from a pipeline."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from functools import partial

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.services.service import Address, bind, serve_metrics
from streaming.clock import Clock, WallClock
from streaming.kafka.brokers import KEEPERS, KafkaBrokers
from streaming.kafka.outlet import LIVE_GROUP
from streaming.kafka.topics import ensure_topics
from streaming.live.metrics import LiveMetrics
from streaming.live.partition import LivePartition, Progress
from streaming.loop.brokers import History, Outlet
from streaming.loop.service import PartitionService
from streaming.waiting import retrying

_log = logging.getLogger("minutely.features")
_WAIT_MS = 100
"""How long changes wait for others: a transaction takes some 15 ms."""


def features(pipeline: Pipeline, metrics: Address | None, host: str = "own") -> None:
    """Keep live features until SIGINT or SIGTERM, in a loop of our own or in a Faust worker. `Problems` where there are none."""
    kept_ms = pipeline.live_spec().kept_ms
    if kept_ms is None:
        raise Problems([Problem(pipeline.name, "live", "nothing", "allowed: a config with live features")])

    def begin() -> PartitionService[LivePartition]:
        ensure_topics(pipeline.kafka, kept_ms)
        return make_features_service(pipeline, WallClock())

    if metrics is not None:
        bind(metrics, "--metrics").close()  # said now, not when brokers are there
    if host == "faust":
        _run_faust(pipeline, kept_ms, metrics)
        return
    with stop_on_signal() as stop:
        service = retrying(_log, stop, begin, pipeline.kafka.asked)
        if service is None:
            return
        if metrics is not None:
            serve_metrics(LiveMetrics(service.members), metrics)
        service.run(stop)


def _run_faust(pipeline: Pipeline, kept_ms: int, metrics: Address | None) -> None:
    try:
        from minutely.services.faust_host import FaustHost
    except ImportError as error:
        allowed = f"{error}; allowed: own, or faust after pip install 'minutely[faust]'"
        raise Problems([Problem("features", "--host", "faust", allowed)]) from None
    with stop_on_signal() as stop:
        retrying(_log, stop, partial(ensure_topics, pipeline.kafka, kept_ms), pipeline.kafka.asked)
        if stop():
            return
    brokers = KafkaBrokers(pipeline.kafka, KEEPERS)
    host = FaustHost(pipeline.kafka, brokers, LIVE_GROUP, make_partition(pipeline), _WAIT_MS)
    if metrics is not None:
        serve_metrics(LiveMetrics(host.members), metrics)
    host.run()


def make_partition(pipeline: Pipeline) -> Callable[[int, Outlet[Progress], History], LivePartition]:
    """What makes the work on a partition of a pipeline's interactions."""
    spec = pipeline.live_spec()

    def make(partition: int, outlet: Outlet[Progress], history: History) -> LivePartition:
        return LivePartition(spec, pipeline.features, outlet, history, partition, new_id=lambda: uuid.uuid4().hex)

    return make


def make_features_service(pipeline: Pipeline, clock: Clock) -> PartitionService[LivePartition]:
    """The service that keeps a pipeline's live features."""
    return PartitionService(
        KafkaBrokers(pipeline.kafka, KEEPERS),
        make_partition(pipeline),
        clock,
        _log,
        max_wait_ms=_WAIT_MS,
        batch_records=1 << 30,
        asked=pipeline.kafka.asked,
    )
