"""The thread that scores, with a replica's own model."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np

from minutely.services.serve import make_replica_service
from paramserver.delta_log import Cut
from serving.requests import Query
from serving.scoring import Busy
from streaming.clock import EventClock
from tests.paramserver.published import BreakableFiles
from tests.serving.publishing import DAY, Publisher, draw, make_pipeline


def test_what_was_asked_before_keeps_nobody_out(tmp_path: Path) -> None:
    """Large requests after small ones, small after large: all are answered, though by the cost of those before they seemed to take
    seconds. One after the other, none is refused."""
    publisher = Publisher(make_pipeline(serve={"latency_budget": "1s"}), tmp_path)
    publisher.next(DAY)
    service = make_replica_service(publisher.pipeline, publisher.files, EventClock(DAY), "replica")
    service.puller.step()
    random = np.random.default_rng(1)

    async def ask(size: int, count: int) -> int:
        """How many of ``count`` requests at once were refused."""
        asked = [Query(draw(random, size), size) for _ in range(count)]
        answers = await asyncio.gather(*map(service.scoring.score, asked), return_exceptions=True)
        assert all(isinstance(answer, Busy) or len(answer.scores) == size for answer in answers)  # type: ignore[union-attr]
        return sum(isinstance(answer, Busy) for answer in answers)

    async def refused() -> list[int]:
        for _ in range(60):
            assert await ask(1, 1) == 0
        large = await ask(100, 50)
        for _ in range(60):
            assert await ask(500, 1) == 0
        return [large, await ask(1, 1000)]

    service.scoring.start()
    try:
        assert asyncio.run(refused()) == [0, 0]
    finally:
        service.scoring.stop()
    assert service.scoring.waiting == 0


def test_requests_wait_for_a_model_that_takes_over(tmp_path: Path) -> None:
    """All replicas take it at once. They were unready then, and requests that waited longer than the latency's budget refused."""
    publisher = Publisher(make_pipeline(serve={"latency_budget": "100ms"}), tmp_path)
    publisher.next(DAY)
    files = BreakableFiles(publisher.files)
    service = make_replica_service(publisher.pipeline, files, EventClock(DAY), "replica")
    service.puller.step()
    cut = Cut(DAY, DAY, {}, publisher.trainer.dense_weights())
    publisher.log.take_over({name: table.export() for name, table in publisher.tables.items()}, cut)
    reads_weights, may_read = threading.Event(), threading.Event()

    def before(operation: str, name: str) -> None:
        if operation == "read" and name.endswith("dense.safetensors"):
            reads_weights.set()
            assert may_read.wait(20)

    files.before = before
    takes_over = threading.Thread(target=service.replica.pull)
    takes_over.start()
    assert reads_weights.wait(20)
    assert not service.replica.whole
    assert service.answers and service.ready() == (True, "another model takes over: requests wait for it")

    async def ask() -> int:
        answer = asyncio.ensure_future(service.scoring.score(Query(draw(np.random.default_rng(1), 5), 5)))
        await asyncio.sleep(0.4)
        assert not answer.done(), "rows of one model never meet weights of another"
        may_read.set()
        return (await answer).versions.sparse

    service.scoring.start()
    try:
        assert asyncio.run(ask()) == 2
    finally:
        service.scoring.stop()
        takes_over.join()
