"""A client that leaves before its answer gets no impressions, and where it still waits, no work."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvloop
from prometheus_client import generate_latest
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from uvicorn import Config

from minutely.services.serve import make_replica_service
from serving.connections import Connections, Limits
from serving.cost import BatchCost
from serving.http import Service
from serving.listening import Listener
from serving.requests import Query
from serving.service import ReplicaService
from streaming.clock import WallClock
from tests.serving.publishing import Publisher, draw, make_pipeline, rank_body

COUNT = 100
LEAVE = 10


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[ReplicaService]:
    publisher = Publisher(make_pipeline(serve={"log": True, "latency_budget": "30s", "timeout": "30s"}), tmp_path)
    publisher.next(WallClock().now_ms())
    made = make_replica_service(publisher.pipeline, publisher.files, WallClock(), "replica")
    made.puller.step()
    yield made
    made.scoring.stop()


def _request(name: str) -> bytes:
    body = json.dumps(rank_body(draw(np.random.default_rng(1), COUNT), list(range(COUNT)), request_id=name)).encode()
    head = f"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def test_nothing_is_logged_for_clients_that_left(replica: ReplicaService) -> None:
    """Ten of ten that closed right after sending were logged as served, and counted as answered."""
    app = Service(replica, lambda: None)

    async def serve() -> bytes:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        limits = Limits(100, 100, *[5.0] * (len(Limits._fields) - 2))
        listener = Listener(
            Config(app, http="httptools", lifespan="off", log_config=None),
            bound,
            Connections(limits, app.connections.of("main")),
        )
        listener.config.load()
        serving = asyncio.create_task(listener.serve())
        for at in range(LEAVE):
            reader, writer = await asyncio.open_connection(*bound.getsockname())
            writer.write(_request(f"left {at}"))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        writer.write(_request("stayed"))
        await asyncio.sleep(0.2)
        replica.scoring.start()  # what is asked before waits, so that whoever leaves does so in time
        answer = await reader.readuntil(b"\r\n")
        writer.close()
        listener.should_exit = True
        await serving
        return answer

    assert asyncio.run(serve()).startswith(b"HTTP/1.1 200")
    assert [record.key for record in replica.outbox.take(1 << 20)] == ["stayed"]
    assert replica.scoring.scored == COUNT, "those who left made no work"
    counted = generate_latest(app._registry).decode()
    assert f'minutely_serve_requests_total{{route="/v1/rank",status="499"}} {LEAVE}.0' in counted
    assert 'minutely_serve_requests_total{route="/v1/rank",status="200"} 1.0' in counted


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_ended_is_let_go_at_once(reset: bool) -> None:
    """Each waited for the garbage collector, and for its keep-alive timer where it was reset."""
    limits = Limits(100, 100, *[60.0] * (len(Limits._fields) - 2))

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def serve() -> None:
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        config = Config(app, http="httptools", lifespan="off", log_config=None)
        listener = Listener(config, bound, Connections(limits, lambda reason: None))
        serving = asyncio.create_task(listener.serve())
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = map(weakref.ref, listener.server_state.connections)
        if reset:
            of_client = writer.get_extra_info("socket")
            of_client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        _, other = await asyncio.open_connection(*bound.getsockname())  # the listener has the last one at hand
        until = time.monotonic() + 10
        while connection() is not None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert connection() is None
        other.close()
        listener.should_exit = True
        await serving

    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    finally:
        gc.enable()


def test_who_leaves_while_waiting_is_not_scored_and_others_are(replica: ReplicaService) -> None:
    left = threading.Event()
    left.set()
    asked = [Query(draw(np.random.default_rng(at), COUNT), COUNT) for at in range(3)]

    async def ask() -> list[object]:
        waiting = [
            asyncio.create_task(replica.scoring.score(each, left.is_set if at == 1 else threading.Event().is_set))
            for at, each in enumerate(asked)
        ]
        await asyncio.sleep(0)
        replica.scoring.start()
        return list(await asyncio.gather(*waiting, return_exceptions=True))

    first, second, third = asyncio.run(ask())
    assert isinstance(second, ClientDisconnect)
    alone = [replica.ranker.answer([each]) for each in (asked[0], asked[2])]
    for answer, (wanted,) in zip((first, third), filter(None, alone), strict=True):
        assert np.allclose(answer.scores, wanted.scores, atol=1e-6)  # type: ignore[attr-defined]
    assert replica.scoring.scored == 2 * COUNT
    replica.scoring.stop()
    assert replica.scoring._batches.cost != BatchCost().cost, "what it cost is learned, whoever left"
