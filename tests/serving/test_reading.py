"""What a request costs to read: lists are counted first, large bodies keep nobody, and who would wait too long is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

from minutely.services.serve import make_replica_service
from serving.http import Service
from serving.reading import Reading
from serving.requests import RequestReader
from serving.scoring import Busy
from serving.service import ReplicaService
from streaming.clock import EventClock
from tests.serving.asgi import ask
from tests.serving.publishing import DAY, Publisher, make_pipeline

MAX_IDS = 20_000
LISTS: dict[str, Any] = {
    "history": {"column": "history", "pool": "mean", "scope": "request"},
    "words": {"column": "words", "split": "|", "pool": "first"},
}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReplicaService]:
    pipeline = make_pipeline(features=LISTS, serve={"max_ids": MAX_IDS, "timeout": "60s", "latency_budget": "30s"})
    publisher = Publisher(pipeline, tmp_path_factory.mktemp("reading"))
    publisher.publish(DAY)
    made = make_replica_service(pipeline, publisher.files, EventClock(DAY), "reading")
    made.puller.step()
    made.scoring.start()
    yield made
    made.scoring.stop()


def _body(history: list[Any], tags: Any, words: list[Any]) -> dict[str, Any]:
    count = len(words)
    features = {"item": [1] * count, "tags": tags, "words": words, "price": [1] * count, "picture": [None] * count}
    return {
        "features": {"user": 1, "history": history},
        "candidates": {"ids": list(range(count)), "features": features},
    }


def _tensors(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request as the Open Inference Protocol has it."""
    given = {**{name: [each] for name, each in body["features"].items()}, **body["candidates"]["features"]}
    inputs = []
    for name, values in given.items():
        if name in ("history", "tags"):
            flat = [each for part in values for each in part]
            inputs.append({"name": name, "datatype": "BYTES", "shape": [len(flat)], "data": flat})
            name, values = f"{name}.lengths", [len(part) for part in values]
        values = [0.0, 0.0, 0.0] if name == "picture" else values
        inputs.append(
            {"name": name, "datatype": "BYTES", "shape": [1, 3] if name == "picture" else [1], "data": values}
        )
    return {"inputs": inputs}


def test_lists_are_bounded_whatever_they_come_as(replica: ReplicaService) -> None:
    """One request of one candidate with a list of 380,000 texts and numbers stopped the replica for seconds."""
    service, half = Service(replica, lambda: None), MAX_IDS // 2
    mixed = (["x", 1] * MAX_IDS)[: MAX_IDS + 1]
    packed = [np.array([MAX_IDS], "<i4").tobytes(), np.arange(MAX_IDS).tobytes()]
    for place, body in {
        "candidates.features.tags": _body([], [mixed[:-1]], ["w"]),
        "features.history": _body(mixed, [[]], [""]),
        "candidates.features.words": _body([1], [[2]], ["|" * (MAX_IDS - 2)]),
    }.items():
        status, answer = ask(service, "POST", "/v1/rank", body)
        counted = sum(map(len, ([*body["features"]["history"]], *body["candidates"]["features"]["tags"])))
        counted += body["candidates"]["features"]["words"][0].count("|") + 1
        most = {"candidates.features.words": MAX_IDS - 1, "features.history": MAX_IDS + 1}.get(place, MAX_IDS)
        assert status == 413, answer
        assert answer["error"] == (
            f"{place}: {most} of {counted} ids in lists; allowed: {MAX_IDS} in a request (serve.max_ids)"
        )
        status, answer = ask(service, "POST", "/v2/models/test/infer", _tensors(body))
        assert status == 413 and f"{most} of {counted} ids" in answer["error"], answer
    status, answer = ask(service, "POST", "/v1/rank", _body([], packed, ["w"]), msgpack=True)
    assert status == 413 and answer["error"].startswith(f"candidates.features.tags: {MAX_IDS} of"), answer
    for words in (b"|" * MAX_IDS, mixed):  # a text that came as bytes, and lists where texts are expected
        status, answer = ask(service, "POST", "/v1/rank", _body([], [[]], [words]), msgpack=True)
        assert status == 413 and answer["error"].startswith(f"candidates.features.words: {MAX_IDS + 1} of"), answer
    within = _body(mixed[:half], [mixed[:half]], [""])
    within["candidates"]["features"]["tags"][0].pop()
    assert ask(service, "POST", "/v1/rank", within)[0] == 200, "as many as are allowed"
    within["candidates"]["features"]["tags"][0].append(1)
    assert ask(service, "POST", "/v1/rank", within)[0] == 413, "one more"


def test_a_vector_of_another_size_is_refused_before_it_is_read(replica: ReplicaService) -> None:
    body = _body([], [[]], [""])
    body["candidates"]["features"]["picture"] = [[*range(100_000), {}]]
    status, answer = ask(Service(replica, lambda: None), "POST", "/v1/rank", body)
    assert status == 422 and "a list of 100001 numbers; allowed: a list of 3 numbers" in answer["error"]


def test_large_bodies_are_read_beside_the_event_loop(replica: ReplicaService) -> None:
    threads = []

    def sides() -> Mapping[str, Any]:
        threads.append(threading.current_thread())
        return replica.sides.tables

    settings = replica.settings
    reader = RequestReader(replica.reader.features, replica.reader.inputs, sides, 2000, settings.max_ids)
    service = Service(dataclasses.replace(replica, reader=reader), lambda: None)
    small, large = _body([1], [[2]], ["w"]), _body(["a text that is long"] * 5000, [[2]], ["w"])
    for body, aside in ((small, False), (large, True)):
        assert ask(service, "POST", "/v1/rank", body)[0] == 200
        assert ask(service, "POST", "/v2/models/test/infer", _tensors(body))[0] == 200
        assert [thread is not threading.main_thread() for thread in threads] == [aside] * 2
        threads.clear()


def test_what_waits_to_be_read_is_bounded_however_long_it_may_wait() -> None:
    may_go_on, size = threading.Event(), 4 << 20

    async def read() -> None:
        reading = Reading(budget_seconds=60.0)
        let_in = [asyncio.create_task(reading.read(size, may_go_on.wait)) for _ in range(16)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="65536 KiB"):
            await reading.read(size, may_go_on.wait)
        may_go_on.set()
        assert all(await asyncio.gather(*let_in))

    asyncio.run(read())


def test_who_would_wait_too_long_to_be_read_is_refused() -> None:
    may_go_on, size = threading.Event(), 1 << 20

    async def read() -> None:
        reading = Reading(budget_seconds=0.025)  # of 1 MiB each, two are read in 20 ms by the first guess
        first = asyncio.create_task(reading.read(size, may_go_on.wait))
        second = asyncio.create_task(reading.read(size, lambda: "second"))
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="2048 KiB"):
            await reading.read(size, lambda: "third")
        assert await reading.read(1000, lambda: "small") == "small", "which are read at once"
        may_go_on.set()
        assert [await first, await second] == [True, "second"]
        failing = reading.read(size, partial(int, "no number"))
        with pytest.raises(ValueError, match="no number"):
            await failing
        assert await reading.read(size, lambda: "alone") == "alone", (
            "whatever the costs: there is always one to learn from"
        )

    asyncio.run(read())


def test_one_body_is_read_at_a_time_also_when_askers_give_up() -> None:
    at_once, most, begun = 0, 0, 0
    lock = threading.Lock()

    def read() -> None:
        nonlocal at_once, most, begun
        with lock:
            at_once, begun = at_once + 1, begun + 1
            most = max(most, at_once)
        time.sleep(1)
        with lock:
            at_once -= 1

    async def run() -> None:
        reading = Reading(60)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reading.read(1 << 20, read)
        await reading.read(1 << 20, read)

    asyncio.run(run())
    assert most == 1
    assert begun == 2, "nobody waits any longer for what was given up before its turn"
