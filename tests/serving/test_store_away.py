"""Where what is published is slow to list, or cannot be: admins wait or are told so, and everybody else is answered."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from minutely.services.serve import make_replica_service
from paramserver.files import LocalFiles
from serving.http import Service
from serving.service import ReplicaService
from streaming.clock import EventClock
from tests.serving.publishing import DAY, Publisher, make_pipeline

TOKEN = "admin-0123456789abcdef"
ASKED = {"/v1/pin": {"version": 1}, "/v1/shadow": {"version": 1, "share": 0.5}}


class Store(LocalFiles):
    """A folder that lists its files when it is told to, and not while it is away."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, durable=False)
        self.may_list = threading.Event()
        self.may_list.set()
        self.away = False

    def names(self) -> list[str]:
        if not self.may_list.wait(5):
            raise AssertionError("nothing else was answered meanwhile")
        if self.away:
            raise OSError("no route to host")
        return super().names()


async def call(service: Service, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and decoded answer, without a socket between."""
    sent: list[Any] = []
    headers = [(b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(body).encode() if body else b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await service(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deltas")


@pytest.fixture
def replica(store: Store, tmp_path: Path) -> ReplicaService:
    (tmp_path / "token").write_text(TOKEN)
    pipeline = make_pipeline(serve={"timeout": "2s", "tokens": {"admin": {"file": str(tmp_path / "token")}}})
    Publisher(pipeline, tmp_path / "deltas").next(DAY)
    made = make_replica_service(pipeline, store, EventClock(DAY), "replica")
    made.puller.step()
    return made


@pytest.mark.parametrize("path", ASKED)
def test_a_slow_listing_keeps_nobody_waiting(store: Store, replica: ReplicaService, path: str) -> None:
    service = Service(replica, lambda: None)

    async def run() -> None:
        store.may_list.clear()
        asked = asyncio.create_task(call(service, "PUT", path, ASKED[path]))
        await asyncio.sleep(0.05)
        assert (await call(service, "GET", "/v2/health/ready"))[0] == 200 and not asked.done()
        store.may_list.set()
        assert (await asked)[0] == 200

    asyncio.run(run())
    replica.shadowing.end(10)


def test_what_was_answered_as_too_slow_does_not_come_later(store: Store, replica: ReplicaService) -> None:
    service = Service(replica, lambda: None)

    async def run() -> None:
        store.may_list.clear()
        assert (await call(service, "PUT", "/v1/pin", ASKED["/v1/pin"]))[0] == 408
        store.may_list.set()
        await asyncio.sleep(0.1)

    asyncio.run(run())
    assert replica.puller.pinned is None


@pytest.mark.parametrize("path", ASKED)
def test_a_store_that_is_away_is_no_fault_of_the_service(store: Store, replica: ReplicaService, path: str) -> None:
    store.away = True
    status, answer = asyncio.run(call(Service(replica, lambda: None), "PUT", path, ASKED[path]))
    assert status == 503 and "no route to host" in answer["error"]
    assert replica.puller.pinned is None and replica.shadowing.current is None
