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
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from random import Random

import torch
import uvicorn
import uvloop
from starlette.types import ASGIApp

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.parts import make_replica
from minutely.place import open_published
from minutely.services.kafka_features import KafkaFeatures
from minutely.services.kafka_sink import KafkaSink
from minutely.services.service import BACKLOG, Address, bind
from paramserver.files import Files
from serving.access import Gate
from serving.comparison import Comparison
from serving.connections import Connections, Limits
from serving.freshness import Freshness
from serving.http import Service
from serving.inputs import Inputs
from serving.listening import HealthOnly, Listener, room_for_files
from serving.live import LiveValues
from serving.outbox import Outbox
from serving.pulling import Puller
from serving.ranking import Ranker, record_problems
from serving.requests import RequestReader
from serving.scoring import Scoring
from serving.service import ReplicaService, pull_step, send_step
from serving.settings import Role, ServeTlsSettings, TokenSettings
from serving.shadow import Shadow, Shadowing
from serving.sides import Sides
from serving.worker import Worker
from streaming.clock import Clock, WallClock
from streaming.records.labels import used_actions
from streaming.records.schema import Schema

_log = logging.getLogger("minutely.serve")

_HEALTH_CONNECTIONS = 128
_LOOK_SECONDS = 0.05
_QUIET_SECONDS = 1.0
_CLOSE_SECONDS = 5
_CLOSE_HEALTH_SECONDS = 1


def serve(pipeline: Pipeline, place: str, address: Address, health: Address | None, name: str | None) -> None:
    """Answer until SIGINT or SIGTERM with what is published at ``place``. Then it says that it is not ready, answers what still
    comes for as long as balancers take to notice, finishes what is being answered, and ends, all within ``serve.timeout``.

    `Problems` where there is no such folder: only trainers create one.
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
    places = room_for_files(settings.max_connections + _HEALTH_CONNECTIONS) - _HEALTH_CONNECTIONS
    if places < 1:
        allowed = f"allowed: room for {1 - places} more (ulimit -n)"
        raise Problems([Problem("system", "limit of open files", "", allowed)])
    if places < settings.max_connections:
        _log.warning(
            "serve.max_connections lowered to %d from %d: limit of open files", places, settings.max_connections
        )
    seconds = settings.header_timeout / 1000, settings.timeout / 1000, settings.idle_timeout / 1000
    limits = Limits(places, settings.max_connections_by_peer, *seconds)
    main = Listener(_config(app, settings.tls), bound, Connections(limits, app.connections.of("main")))
    listeners = [main]
    if bound_health is not None:
        of_health = Limits(_HEALTH_CONNECTIONS, _HEALTH_CONNECTIONS // 2, *seconds)
        connections = Connections(of_health, app.connections.of("health"))
        listeners.append(Listener(_config(HealthOnly(app), None), bound_health, connections))
    _warn_who_may(address, settings.tokens)
    _log.info(
        "listening at %s://%s%s, versions from %s",
        "https" if settings.tls else "http",
        address,
        f", for health at http://{health}" if health else "",
        place,
    )
    if settings.log:
        _log.info("what is served goes to Kafka at %s; what waits there when this ends is lost", pipeline.kafka.asked)
    sink = KafkaSink(pipeline.kafka, service.outbox)
    sender = Worker("log", partial(send_step, service.outbox, sink))
    features = KafkaFeatures(pipeline.kafka, service.live) if service.live else None
    follower = [Worker("live", features.step)] if features else []
    workers = [puller, Worker("sides", service.sides.step), *follower, *([sender] if pipeline.serve.log else [])]
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
            ended = {worker: worker.stop(_CLOSE_SECONDS) for worker in workers}
            if features and ended[follower[0]]:
                features.close()
            if pipeline.serve.log and ended[sender]:
                while send_step(service.outbox, sink) == 0:
                    pass
                sink.close()
            gc.unfreeze()
    _log.info("ended; %d records were not logged", sum(service.outbox.dropped.values()) + service.outbox.open)


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
        server_header=False,
        ssl_context_factory=partial(_tls_context, tls) if tls else None,
    )
    config.load()
    return config


def _tls_context(tls: ServeTlsSettings, *_: object) -> ssl.SSLContext:
    def no_passphrase() -> str:  # without this, the library would ask on the terminal
        raise ValueError("a key with a passphrase")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key, no_passphrase)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        named = f"{tls.certificate}, {tls.key}"
        raise Problems(
            [Problem("serve.tls", "files", named, f"{error}; allowed: PEM files, the key without a passphrase")]
        ) from None
    return context


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
    """Log the roles without tokens: those open to anyone who can connect, and admin, which is closed."""
    opened = [f"serve.tokens.{role}" for role in ("rank", "engage") if role not in tokens]
    said = [f"{' and '.join(opened)} not set, so anyone who can reach {address} may use them"] if opened else []
    if "admin" not in tokens:
        said.append("serve.tokens.admin not set, so nobody may pin, shadow or change weights")
    if said:
        _log.log(logging.INFO if _is_loopback(address.host) else logging.WARNING, "%s", "; ".join(said))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def make_replica_service(pipeline: Pipeline, files: Files, clock: Clock, name: str) -> ReplicaService:
    """A replica with nothing pulled yet; `Problems` where the configuration cannot be served."""
    settings = pipeline.serve
    if settings.log and (
        problems := record_problems(pipeline.name, pipeline.features, len(pipeline.labels), settings.max_candidates)
    ):
        raise Problems(problems)
    freshness = Freshness(clock, settings.fresh_within)
    replica = make_replica(pipeline, files, freshness.applied, secrets.randbits(64))
    ranker = Ranker(replica, pipeline.labels, settings.score)
    inputs = Inputs(pipeline.features, pipeline.source.sides)
    sides = Sides(pipeline.source, pipeline.features, pipeline.data_folder)
    live = LiveValues.of(pipeline.live_spec(), pipeline.features, clock, settings.fresh_within)

    def make_shadow(version: int, share: float) -> Shadow:
        beside = make_replica(pipeline, files, secret=secrets.randbits(64))
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
        reader=RequestReader(
            pipeline.features, inputs, lambda: sides.tables, settings.max_candidates, settings.max_ids, live
        ),
        sides=sides,
        live=live,
        scoring=Scoring(ranker, settings.latency_budget / 1000),
        puller=Puller(files, replica, clock, Random(), pipeline.sync.sparse_every),
        shadowing=Shadowing(make_shadow),
        freshness=freshness,
        outbox=Outbox(settings.log_buffer_bytes),
        gate=Gate({role: tokens.read(role) for role, tokens in settings.tokens.items()}),
        actions=used_actions(pipeline.labels),
        schema=Schema.of(pipeline.features, pipeline.labels).fingerprint,
        earliest_ms=pipeline.source.earliest_ms,
        max_future_ms=pipeline.join.max_future,
    )
