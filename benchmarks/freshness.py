"""How long from an engagement to a changed score, seen from outside, and whether the metrics say the same?

    python -m benchmarks.freshness [--every 1s] [--seconds 60] [--impressions 1000]

Real Kafka, one joiner, one trainer, one replica, all on this machine, beside traffic of so many impressions a second, each with the
engagement that decides it. A probe is a new item: it is ranked (and so logged), gets a click, and is then scored again and again
until its score changes. Printed: quantiles of that time, of the replica's own `decided_to_servable`, and their ratio.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from basis.settings import parse_duration
from minutely.config import Pipeline
from serving.client import Client
from stack.kafka import running
from streaming.kafka.sending import RetryingSender
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import FORMAT_VERSION, Engagement, Request, encode
from tests.kafka.services import joiner, said, started, trainer
from tests.serving.server import Server

TOGETHER = 50
ITEMS = 5000


def make_pipeline(bootstrap: str, every: str) -> Pipeline:
    actions: dict[str, Any] = {"click": {}, "seen": {}}
    return Pipeline.model_validate(
        {
            "name": "freshness",
            "source": {"dir": ".", "impressions": {"file": "x.csv", "time": {"column": "t"}}, "actions": actions},
            "features": {"user": {"column": "user", "scope": "request"}, "item": {"column": "item"}},
            "labels": {"click": {"action": "click", "decided_by": "seen", "window": "2m"}},
            "kafka": {"bootstrap": bootstrap, "partitions": 2},
            "join": {"max_wait": "50ms"},
            "sync": {"sparse_every": every},
            "train": {"step_every": every},
            "serve": {"fresh_within": "5m"},
        }
    )


def traffic(pipeline: Pipeline, per_second: float, stop: threading.Event) -> None:
    """Requests of 50 impressions at fixed times, each with its engagements half a second later."""
    producer = RetryingSender(pipeline.kafka, logging.getLogger("benchmark"), stop.is_set)
    random = np.random.default_rng(1)
    waiting: list[tuple[float, str]] = []
    number, due = 0, time.time()
    while not stop.is_set():
        now = time.time()
        if now < due:
            stop.wait(min(due - now, 0.02))
        while due <= now:
            name, at = f"t{number}", int(now * 1000)
            request = Request(
                version=FORMAT_VERSION,
                request_id=name,
                served_at=at,
                impression_ids=[f"{name}.{place}" for place in range(TOGETHER)],
                shared={"user": random.integers(0, 1000, 1).tobytes()},
                features={"item": random.integers(0, ITEMS, TOGETHER).tobytes()},
            )
            producer.send(pipeline.kafka.topic(IMPRESSIONS), encode(request), key=name.encode())
            waiting.append((now + 0.5, name))
            number, due = number + 1, due + TOGETHER / per_second
        while waiting and waiting[0][0] <= now:
            _, name = waiting.pop(0)
            for place in range(TOGETHER):
                action = "click" if random.random() < 0.1 else "seen"
                done = Engagement(
                    version=FORMAT_VERSION, request_id=name, impression_id=f"{name}.{place}", action=action,
                    happened_at=int(now * 1000),
                )  # fmt: skip
                producer.send(pipeline.kafka.topic(ENGAGEMENTS), encode(done), key=name.encode())
    producer.wait()


def infer(server: Server, items: list[int]) -> list[float]:
    inputs = [
        {"name": "user", "datatype": "INT64", "shape": [len(items)], "data": [0] * len(items)},
        {"name": "item", "datatype": "INT64", "shape": [len(items)], "data": items},
    ]
    status, answer = server.ask(
        "POST", "/v2/models/freshness/infer", {"inputs": inputs, "outputs": [{"name": "click"}]}
    )
    assert status == 200, answer
    scores: list[float] = answer["outputs"][0]["data"]
    return scores


def probe(server: Server, seconds: float, every_seconds: float) -> list[float]:
    """Seconds from click to changed score, one for each probe that came through."""
    client = Client(server.url)
    random = np.random.default_rng(2)
    pending: dict[int, tuple[float, float]] = {}
    found: list[float] = []
    begun, item, due = time.time(), 10_000_000, time.time()
    while time.time() < begun + seconds or (pending and time.time() < begun + seconds + 2 * every_seconds + 10):
        if time.time() >= due and time.time() < begun + seconds:
            item, due = item + 1, due + every_seconds * random.uniform(0.05, 0.15)
            answer = client.rank({"user": 0}, [item], {"item": np.array([item])})
            score = answer.scores["click"][0]
            assert score is not None
            client.engage(answer.request_id, answer.impression_ids[0], "click")
            pending[item] = (time.time(), score)
        if pending:
            items = list(pending)
            new = infer(server, [*items, 9_999_999])  # the last never gets a row: what an unknown item scores now
            now = time.time()
            for each, score in zip(items, new, strict=False):
                if abs(score - new[-1]) > 1e-7:
                    found.append(now - pending.pop(each)[0])
        time.sleep(0.005)
    client.close()
    if pending:
        print(f"{len(pending)} probes never came through")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", default="1s")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--impressions", type=float, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running(Path(name) / "kafka") as cluster:
        folder = Path(name)
        pipeline = make_pipeline(cluster.bootstrap, options.every)
        server = Server(pipeline, folder / "deltas", folder / "server")
        config = folder / "server" / "pipeline.yaml"
        services = (joiner(config, folder, "join"), trainer(config, folder), server.process)
        stop = threading.Event()
        sending = threading.Thread(target=traffic, args=(pipeline, options.impressions, stop))
        every_seconds = parse_duration(options.every) / 1000
        with started(*services):
            server.wait(seconds=120 + 2 * every_seconds)  # joiners tell that nothing happens, so there is a version
            sending.start()
            try:
                time.sleep(5)
                found = probe(server, options.seconds, every_seconds)
            finally:
                stop.set()
                sending.join()
            status = server.ask("GET", "/v1/status")[1]
            assert found, said(services, "nothing changed")
        p50, p99 = (float(np.quantile(found, share)) for share in (0.5, 0.99))
        own = status["decided_to_servable_seconds"]
        print(f"every {options.every}, {len(found)} probes: p50 {p50:.2f} s, p99 {p99:.2f} s from outside")
        print(f"the replica's decided to servable: p50 {own['p50']:.2f} s, p99 {own['p99']:.2f} s")
        print(
            f"ratio: p50 {own['p50'] / p50:.2f}, p99 {own['p99'] / p99:.2f}; stages (p50): {status['stage_p50_seconds']}"
        )


if __name__ == "__main__":
    main()
