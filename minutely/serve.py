"""`minutely serve`: a replica over HTTP, put together from a pipeline. Its sockets and threads begin and end here."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import math
import platform
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from random import Random

import torch
import uvicorn
import uvloop
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from starlette.types import ASGIApp

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.place import open_published
from minutely.service import BACKLOG, Address, bind, stop_on_signal
from paramserver.files import Files
from paramserver.form import fingerprint_of
from paramserver.manifest import Manifest
from serving.access import Gate
from serving.comparison import Comparison
from serving.connections import Connections, Limits
from serving.freshness import Freshness
from serving.http import Service
from serving.inputs import Inputs
from serving.listening import HealthOnly, Listener, files_for
from serving.outbox import Outbox, Outgoing
from serving.pulling import Puller
from serving.ranking import Ranker
from serving.replica import Replica
from serving.requests import RequestReader
from serving.scoring import Scoring
from serving.service import ReplicaService, pull_step, send_step
from serving.settings import Role, ServeTlsSettings, TokenSettings
from serving.shadow import Shadow, Shadowing
from serving.sides import Sides
from serving.worker import Worker
from streaming.clock import Clock, WallClock
from streaming.kafka.sending import producer_of
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.kafka.waiting import Patience
from trainer.models import make_model

_log = logging.getLogger("minutely.serve")

_HEALTH_CONNECTIONS = 128
_KEEP_ALIVE_SECONDS = 30
_LOOK_SECONDS = 0.05
_QUIET_SECONDS = 1.0
_CLOSE_SECONDS = 5
_CLOSE_HEALTH_SECONDS = 1
_DELIVERY_MS = 60_000
_LOST_SECONDS = 1.0
_POLL_SECONDS = 0.1


def serve(pipeline: Pipeline, place: str, address: Address, health: Address | None, name: str | None) -> None:
    """Answer until SIGINT or SIGTERM with what is published at ``place``. Then it says that it is not ready, answers what still
    comes for as long as balancers take to notice, finishes what is being answered, and ends, all within ``serve.timeout``.

    `Problems` where there is no such folder: only who publishes makes one.
    """
    torch.set_num_threads(1)
    with ExitStack() as sockets:
        bound = sockets.enter_context(bind(address, "--listen"))
        bound_health = sockets.enter_context(bind(health, "--health")) if health else None
        _serve(pipeline, place, address, bound, health, bound_health, name)


def _serve(
    pipeline: Pipeline,
    place: str,
    address: Address,
    bound: socket.socket,
    health: Address | None,
    bound_health: socket.socket | None,
    name: str | None,
) -> None:
    service = make_replica_service(
        pipeline, open_published(place), WallClock(), name or f"{platform.node()}:{address.port}"
    )
    puller = Worker("pull", Announcing(service))
    app = Service(service, puller.wake)
    settings = pipeline.serve
    places = files_for(settings.max_connections + _HEALTH_CONNECTIONS) - _HEALTH_CONNECTIONS
    if places < settings.max_connections:
        _log.warning("takes %d connections, not %d: the system's limit of open files", places, settings.max_connections)
    seconds = settings.header_timeout / 1000, settings.timeout / 1000
    limits = Limits(places, settings.max_connections_by_peer, *seconds)
    main = Listener(_config(app, settings.tls), bound, Connections(limits, app.connections.of("main")))
    listeners = [main]
    if bound_health is not None:
        of_health = Limits(_HEALTH_CONNECTIONS, _HEALTH_CONNECTIONS // 2, *seconds)
        connections = Connections(of_health, app.connections.of("health"))
        listeners.append(Listener(_config(HealthOnly(app), None), bound_health, connections))
    _warn_who_may(address, settings.tokens)
    _log.info(
        "listens at %s://%s%s, versions come from %s",
        "https" if settings.tls else "http",
        address,
        f", for health at http://{health}" if health else "",
        place,
    )
    sink = KafkaSink(pipeline.kafka, service.outbox)
    sender = Worker("log", partial(send_step, service.outbox, sink))
    workers = [puller, Worker("sides", service.sides.step)] + ([sender] if pipeline.serve.log else [])
    with stop_on_signal() as stopping:
        service.scoring.start()
        for worker in workers:
            worker.start()
        gc.freeze()  # what is there now stays; collections look at requests alone
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(service, listeners, stopping))
        finally:
            service.scoring.stop()
            service.shadowing.end(_CLOSE_SECONDS)
            sink.stop()
            ended = [worker.stop(_CLOSE_SECONDS) for worker in workers]
            if pipeline.serve.log and all(ended):
                while send_step(service.outbox, sink) == 0:
                    pass
                sink.close()
            gc.unfreeze()
    _log.info("ended; %d records were not logged", sum(service.outbox.dropped.values()) + len(service.outbox))


def _config(app: ASGIApp, tls: ServeTlsSettings | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        proxy_headers=False,
        access_log=False,
        log_config=None,
        backlog=BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        server_header=False,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    try:
        config.load()
    except OSError as error:  # an SSLError is one
        named = f"{tls.certificate}, {tls.key}" if tls else ""
        raise Problems([Problem("serve.tls", "files", named, f"{error}; allowed: PEM files")]) from None
    return config


class Announcing:
    """A step of pulling that says which version is served first."""

    def __init__(self, service: ReplicaService) -> None:
        self._service = service
        self._said = False

    def __call__(self) -> float:
        """Pull if it is time; how long to sleep."""
        seconds = pull_step(self._service.puller)
        replica = self._service.replica
        if not self._said and replica.whole:
            self._said = True
            _log.info("serves version %d, with the dense weights of %d", replica.sparse_version, replica.dense_version)
        return seconds


async def _run(service: ReplicaService, listeners: Sequence[Listener], stopping: Callable[[], bool]) -> None:
    """Answer until ``stopping``, then drain: the first listener ends before those that answer about health."""
    running = [asyncio.create_task(listener.serve()) for listener in listeners]
    try:
        while not stopping() and not any(task.done() for task in running):
            await asyncio.sleep(_LOOK_SECONDS)
        main, *health = listeners
        within, begun = service.settings.timeout / 1000, time.monotonic()
        service.draining.set()
        main.drain()
        answered, quiet_since = main.server_state.total_requests, begun
        while (now := time.monotonic()) < begun + within / 2 and now < quiet_since + _QUIET_SECONDS:
            await asyncio.sleep(_LOOK_SECONDS)
            if answered != main.server_state.total_requests:
                answered, quiet_since = main.server_state.total_requests, now
        main.config.timeout_graceful_shutdown = math.ceil(begun + within - now)
        main.should_exit = True
        await running[0]
        for listener in health:
            listener.config.timeout_graceful_shutdown = _CLOSE_HEALTH_SECONDS
            listener.should_exit = True
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()


def _warn_who_may(address: Address, tokens: Mapping[Role, TokenSettings]) -> None:
    """Name the roles without tokens: those that anybody has who can connect from elsewhere, and admin's, which nobody has."""
    opened = [f"serve.tokens.{role}" for role in ("rank", "engage") if role not in tokens]
    said = (
        [f"{' and '.join(opened)} not set, so whoever can reach {address} may do what they are for"] if opened else []
    )
    if "admin" not in tokens:
        said.append("serve.tokens.admin not set, so nobody may pin, shadow or change weights")
    if said:
        _log.log(logging.INFO if _is_loopback(address.host) else logging.WARNING, "%s", "; ".join(said))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _make_replica(
    pipeline: Pipeline, files: Files, applied: Callable[[Manifest], None] = lambda manifest: None
) -> Replica:
    model, plan = make_model(pipeline.model, pipeline.features, pipeline.labels, pipeline.seed)
    tables = {
        table: pipeline.tables.make_replica(
            table, model.row_dim, pipeline.seed, pipeline.sync.rows, secrets.randbits(64)
        )
        for table in plan.tables
    }
    return Replica(files, model, plan, tables, pipeline.labels, applied, fingerprint_of(pipeline.form()))


def make_replica_service(pipeline: Pipeline, files: Files, clock: Clock, name: str) -> ReplicaService:
    """A replica with nothing pulled yet."""
    settings = pipeline.serve
    freshness = Freshness(clock, settings.fresh_within)
    replica = _make_replica(pipeline, files, freshness.applied)
    ranker = Ranker(replica, pipeline.labels, settings.score)
    inputs = Inputs(pipeline.features, pipeline.source.sides)
    sides = Sides(pipeline.source, pipeline.features, pipeline.data_folder)

    def make_shadow(version: int, share: float) -> Shadow:
        beside = _make_replica(pipeline, files)
        puller = Puller(files, beside, clock, Random(), pipeline.sync.sparse_every)
        puller.pin(puller.find(version))
        return Shadow(share, beside, puller, ranker, Comparison(pipeline.labels, pipeline.join.lateness), clock)

    return ReplicaService(
        name=name,
        model=pipeline.name,
        settings=settings,
        clock=clock,
        replica=replica,
        ranker=ranker,
        reader=RequestReader(pipeline.features, inputs, lambda: sides.tables, settings.max_candidates),
        sides=sides,
        scoring=Scoring(ranker, settings.latency_budget / 1000),
        puller=Puller(files, replica, clock, Random(), pipeline.sync.sparse_every),
        shadowing=Shadowing(make_shadow),
        freshness=freshness,
        outbox=Outbox(settings.log_buffer_bytes),
        gate=Gate({role: tokens.read(role) for role, tokens in settings.tokens.items()}),
        max_future_ms=pipeline.join.max_future,
        log_retention_ms=pipeline.kafka.retention,
        log_needed_ms=2 * max(label.window for label in pipeline.labels.values()) + pipeline.join.lateness,
    )


class KafkaSink:
    """Sends to the pipeline's topics. While brokers are away it waits, and what comes meanwhile fills the outbox."""

    def __init__(self, settings: KafkaSettings, outbox: Outbox) -> None:
        self._settings = settings
        self._outbox = outbox
        self._producer: Producer | None = None
        self._stopping = threading.Event()
        self._patience = Patience(_log, "brokers", settings.asked)

    def send(self, records: Sequence[Outgoing]) -> None:
        """Send records; what the brokers do not take in a minute is counted as dropped."""
        for record in records:
            while not self._try(record):
                if self._stopping.wait(0.1):
                    self._outbox.dropped[record.topic] += 1
                    break
        self._listen()

    def _try(self, record: Outgoing) -> bool:
        if not self._patience.ready:
            return False
        try:
            if self._producer is None:
                ensure_topics(self._settings)
                self._producer = producer_of(self._settings, _DELIVERY_MS, linger_ms=20)
        except (KafkaException, Problems) as error:
            self._patience.failed(error)
            return False
        topic, key = self._settings.topic(record.topic), record.key.encode(errors="surrogatepass")
        told = partial(self._delivered, record.topic)
        try:
            self._producer.produce(topic, record.value, key, on_delivery=told)
        except BufferError:
            self._listen()
            return False
        except KafkaException as error:
            if error.args[0].code() == KafkaError._FATAL:
                self._let_go(_LOST_SECONDS)
                return False
            self._outbox.dropped[record.topic] += 1  # a record that no broker would take
        return True

    def _listen(self) -> None:
        """Hear what became of records."""
        if self._producer is None:
            return
        try:
            self._producer.poll(0)
        except KafkaException as error:  # the producer is lost: the client raises nothing else here
            self._patience.failed(error)
            self._let_go(_LOST_SECONDS)

    def _let_go(self, seconds: float) -> None:
        """Forget the producer; what is on its way has so long to arrive. All of it is counted; the next try makes a new one."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        self._hear_all(producer, seconds)
        producer.purge()
        self._hear_all(producer, seconds)

    def _hear_all(self, producer: Producer, seconds: float) -> None:
        """Hear what became of records until none is on its way, or for so long. The client's `flush` would end at an error."""
        until = time.monotonic() + seconds
        while len(producer) and time.monotonic() < until:
            try:
                producer.poll(_POLL_SECONDS)
            except KafkaException as error:
                self._patience.failed(error)

    def _delivered(self, topic: str, error: KafkaError | None, _message: Message | None) -> None:
        if error is None:
            self._outbox.sent[topic] += 1
            self._patience.worked()
        else:
            self._outbox.dropped[topic] += 1
            self._patience.failed(KafkaException(error))

    def stop(self) -> None:
        """Do not wait for brokers any longer."""
        self._stopping.set()

    def close(self) -> None:
        """Send what is on its way, in bounded time."""
        self._let_go(_CLOSE_SECONDS)
