"""A feature arrives in a running stack: every service is started again with the config that has it, one after the other, in any
order, while products that send it already go on asking and writing. Nothing is lost, refused, or trained twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from minutely.config import Pipeline
from paramserver.files import LocalFiles
from paramserver.history import newest, read_version
from stack.kafka import BrokerUnavailable, running
from stack.ports import free_ports
from streaming.archive.table import Archive
from streaming.features.ids import MISSING
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.records.examples import ExampleFormat
from tests.commands import missing
from tests.kafka.services import Service, archiver, joiner, said, started, trainer, write_config
from tests.kafka.traffic import (
    LiveTraffic,
    check_archive,
    check_examples,
    make_pipeline,
    make_traffic,
    read_dead_letters,
    read_examples,
)
from tests.serving.server import Server

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split(",")]
WINDOW_MS, LATENESS_MS, SHUFFLE_MS = 3_000, 6_000, 1_000
IMPRESSIONS, EVERY_MS, PART_SECONDS = 5, 50.0, 2
RANK_SECONDS, CANDIDATES, FIRST_KEY = 0.5, 4, 10**9
WAIT_SECONDS = 90
NEW: dict[str, Any] = {"genre": {"column": "genre"}, "price": {"kind": "dense", "column": "price"}}
OLD: dict[str, Any] = {"user": {"column": "user", "scope": "request"}, "key": {"column": "key"}}
Keys = npt.NDArray[np.int64]


def genre_of(keys: Keys) -> Keys:
    return keys + 1


def price_of(keys: Keys) -> npt.NDArray[np.float32]:
    return (keys % 10 + 1).astype(np.float32)


def new_columns(keys: Keys) -> dict[str, bytes]:
    return {"genre": genre_of(keys).astype("<i8").tobytes(), "price": price_of(keys).astype("<f4").tobytes()}


class Product(threading.Thread):
    """Writes requests to Kafka, asks a replica every half a second, clicks on one of its answers, and looks whether it is ready.

    It sends the new features from the start. ``labels`` are those of all examples that must come.
    """

    def __init__(self, kafka: KafkaSettings, server: Server, seed: int) -> None:
        super().__init__(daemon=True)
        self._kafka = kafka
        self.server = server
        self._seed = seed
        self._ending = threading.Event()
        self._feeds: list[LiveTraffic] = []
        self.asking = threading.Lock()
        """Who holds it keeps the replica from being asked."""
        self.labels: dict[str, float] = {}
        self.asked = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            begun, count = time.time(), int(PART_SECONDS * 1000 / EVERY_MS)
            while not self._ending.is_set():
                number = len(self._feeds)
                start = int((begun + number * PART_SECONDS) * 1000)
                traffic = make_traffic(
                    self._seed + number, count, IMPRESSIONS, start, EVERY_MS, WINDOW_MS, SHUFFLE_MS,
                    first=number * count, also=new_columns,
                )  # fmt: skip
                self.labels |= traffic.labels
                self._feeds.append(LiveTraffic(self._kafka, traffic))
                self._feeds[-1].start()
                while time.time() < begun + len(self._feeds) * PART_SECONDS:
                    if self.asking.acquire(blocking=False):
                        try:
                            self._rank()
                        finally:
                            self.asking.release()
                    time.sleep(RANK_SECONDS)
        except BaseException as error:
            self.error = error

    def _rank(self) -> None:
        keys = FIRST_KEY + self.asked * CANDIDATES + np.arange(CANDIDATES)
        request_id = f"asked{self.asked}"
        self.asked += 1
        assert self.server.ask("GET", "/v2/health/ready")[0] == 200
        columns = {"key": keys.tolist(), "genre": genre_of(keys).tolist(), "price": price_of(keys).tolist()}
        candidates = {"ids": keys.tolist(), "features": columns}
        body = {"request_id": request_id, "features": {"user": 7}, "candidates": candidates}
        status, answer = self.server.ask("POST", "/v1/rank", body)
        assert status == 200, answer
        clicked = answer["impression_ids"][0]
        click = {"request_id": request_id, "impression_id": clicked, "action": "click"}
        assert self.server.ask("POST", "/v1/engagements", {"engagements": [click]}) == (202, {"accepted": 1})
        self.labels |= {f"{request_id}/{name}": float(name == clicked) for name in answer["impression_ids"]}

    def check(self) -> None:
        assert self.error is None, self.error
        assert all(feed.error is None for feed in self._feeds), [feed.error for feed in self._feeds]

    def end(self) -> None:
        self._ending.set()
        for thread in (self, *self._feeds):
            thread.join(60)
            assert not thread.is_alive()
        self.check()


class Stack:
    """Two joiners, a trainer, an archiver and a replica, as processes; and the product that they serve."""

    def __init__(self, kafka: KafkaSettings, folder: Path, seed: int, features: dict[str, Any]) -> None:
        self.kafka, self.folder = kafka, folder
        pipeline = self.configure(features)
        config = folder / "pipeline.yaml"
        self._metrics = dict(zip("ab", (f"127.0.0.1:{port}" for port in free_ports(2)), strict=True))
        joiners = [joiner(config, folder, name, "--metrics", at) for name, at in self._metrics.items()]
        self.server = self._replica(pipeline, folder)
        services = [*joiners, trainer(config, folder), archiver(config, folder), self.server.process]
        self.services = {service.name: service for service in services}
        for service in services:
            service.forks = True
        self.product = Product(kafka, self.server, seed)

    def configure(self, features: dict[str, Any]) -> Pipeline:
        """What the config file says from now on, to those that are started."""
        pipeline = make_pipeline(
            self.kafka,
            features=features,
            labels={"click": {"action": "click", "window": f"{WINDOW_MS}ms"}},
            join={"lateness": f"{LATENESS_MS}ms"},
            train={"step_every": "1s"},
            sync={"sparse_every": "1s", "keep_deltas": 1000},
            archive={"commit_every": "1s"},
            serve={"log": True},
        )
        write_config(pipeline, self.folder)
        return pipeline

    def _replica(self, pipeline: Pipeline, place: Path) -> Server:
        self.deltas = place / "deltas"
        self.deltas.mkdir(exist_ok=True)  # a replica that starts first makes none
        server = Server(pipeline, self.deltas, self.folder)
        server.process.forks = True
        return server

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """All run, and everything that the product sent until the end is joined, trained, archived and served at the end."""
        with started(*self.services.values()):
            self.server.wait()
            self.product.start()
            for name in self.services:
                self.wait(name)
            yield
            time.sleep(2 * RANK_SECONDS + PART_SECONDS)
            self._finish()

    def wait(self, name: str) -> None:
        """Until a service did something since it was started."""
        self.product.check()
        service = self.services[name]
        if name in self._metrics:
            self.until(f"{name} joins", lambda: self._joined(self._metrics[name]) > 0)
        elif service is self.server.process:
            self.server.wait()
        else:
            service.waits_for({"trainer": "examples since the start", "archive": "commit "}[name])

    def _joined(self, address: str) -> float:
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return 0
        return sum(float(line.split()[-1]) for line in lines if line.startswith("minutely_join_examples_total{"))

    def until(self, what: str, done: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not done():
            self.product.check()
            for service in self.services.values():
                assert service.runs, said(list(self.services.values()), f"{service.name} ended")
            assert time.monotonic() < end, said(list(self.services.values()), f"not in {WAIT_SECONDS} s: {what}")
            time.sleep(0.2)

    def restart(self, name: str, number: int = signal.SIGTERM) -> None:
        """Stop one by a signal and start it, with what its config file says now; until it is at work again."""
        service = self.services[name]
        # While a replica is away, a balancer asks others of its kind.
        with self.product.asking if service is self.server.process else nullcontext():
            if service is self.server.process and number == signal.SIGKILL:
                time.sleep(1)  # what a killed replica has not sent to Kafka yet is lost
            self.stop(service, number)
            service.start()
            self.wait(name)
        print(f"{time.strftime('%X')} {name} has the new config", flush=True)

    def move(self, pipeline: Pipeline, place: Path) -> None:
        """Train and serve from another place: a second trainer begins with the archive, replicas go over to it, the first ends."""
        place.mkdir()
        config, first = self.folder / "pipeline.yaml", self.services["trainer"]
        second = trainer(config, place, "--from", "archive", "--archive", str(self.folder / "archive"))
        second.forks = True
        second.start()
        self.services["trainer"] = second
        second.waits_for("version 2:")
        with self.product.asking:
            self.stop(self.server.process)
            self.product.server = self.server = self._replica(pipeline, place)
            self.services["replica"] = self.server.start().process
            self.server.wait()
        self.stop(first)
        print(f"{time.strftime('%X')} trains and serves elsewhere", flush=True)

    def stop(self, service: Service, number: int = signal.SIGTERM) -> None:
        status = service.end(number)
        assert status == (0 if number == signal.SIGTERM else -number), said([service], f"ended with {status}")

    def rows(self) -> dict[str, Any]:
        """The rows of the newest version, by table."""
        files = LocalFiles(self.deltas, durable=False)
        return {name: each.rows for name, each in read_version(files, newest(files)).items()}

    def _finish(self) -> None:
        """End in order, when everything is trained and the replica has the last version."""
        self.product.end()
        count = len(self.product.labels)
        self.until(f"{count} are trained", lambda: self.rows()["key"].counts.sum() >= count)
        for service in self.services.values():
            if service is not self.server.process:
                self.stop(service)
        last = newest(LocalFiles(self.deltas, durable=False)).version
        end = time.monotonic() + 20
        while (status := self.server.ask("GET", "/v1/status")[1])["sparse_version"] < last:
            assert time.monotonic() < end, said([self.server.process], f"{status} of version {last}")
            time.sleep(0.1)
        assert status["rows"] == sum(len(each.ids) for each in self.rows().values())
        self.stop(self.server.process)

    def check(self, features: dict[str, Any]) -> list[list[pa.RecordBatch]]:
        """Every example is once in `examples`, in the archive and in the model, and nothing was refused. What `examples` and
        the archive hold, by a config with these features."""
        labels = self.product.labels
        pipeline = self.configure(features)
        example_format = ExampleFormat(pipeline.features, pipeline.labels)
        letters = read_dead_letters(self.kafka)
        assert not letters, f"{len(letters)} dead letters, as {letters[0]}"
        emitted = read_examples(self.kafka, example_format)
        check_examples(emitted, labels)
        archive = Archive(str(self.folder / "archive"), example_format)
        check_archive(archive, labels)
        trained = self.rows()["key"]
        assert len(trained.ids) == len(labels) and (trained.counts == 1).all(), "trained once each"
        return [emitted.batches, list(archive.batches(0, 2**62))]


@contextmanager
def stack_of(features: dict[str, Any], folder: Path, seed: int) -> Iterator[Stack]:
    try:
        with running(folder / "cluster") as cluster:
            kafka = KafkaSettings(bootstrap=cluster.bootstrap, prefix=f"n{uuid.uuid4().hex[:8]}.", partitions=4)
            ensure_topics(kafka)
            yield Stack(kafka, folder, seed, features)
    except BrokerUnavailable as error:
        missing(str(error))


def check_new_values(batches: list[pa.RecordBatch], since_ms: int, *, arrived: bool) -> npt.NDArray[np.int64]:
    """The new features are right or missing everywhere; right for what was served since then where they ``arrived``, and else
    missing. The new ids since then."""
    served, keys, genres, prices = (
        np.concatenate([batch.column(name).to_numpy() for batch in batches])
        for name in ("served_at", "feature.key", "feature.genre", "feature.price")
    )
    right = (genres == genre_of(keys)) & (prices == price_of(keys))
    absent = (genres == MISSING) & (prices == 0)
    assert (right | absent).all(), f"{(~(right | absent)).sum()} have another value"
    assert right.any() and absent.any(), "nothing was served under one of the configs"
    late = served >= since_ms
    assert (late & (keys >= FIRST_KEY)).any() and (late & (keys < FIRST_KEY)).any(), "nothing was served afterwards"
    wrong = late & (absent if arrived else right)
    assert not wrong.any(), f"{wrong.sum()} of {late.sum()} that were served afterwards"
    ids: npt.NDArray[np.int64] = genres[late]
    return ids


@pytest.mark.parametrize("seed", SEEDS)
def test_a_feature_arrives_by_a_rolling_restart(seed: int, tmp_path: Path) -> None:
    """The order is the seed's. Services end as they are told by odd seeds, and are killed by even ones."""
    number = signal.SIGTERM if seed % 2 else signal.SIGKILL
    with stack_of(OLD, tmp_path, seed) as stack:
        order = random.Random(f"order {seed}").sample(sorted(stack.services), len(stack.services))
        with stack.at_work():
            stack.configure(OLD | NEW)
            for name in order:
                stack.restart(name, number)
            since_ms = time.time_ns() // 1_000_000
        rows = stack.rows()
        for batches in stack.check(OLD | NEW):
            ids = check_new_values(batches, since_ms, arrived=True)
            assert np.isin(ids, rows["genre"].ids).all(), "what was learned of the new feature is served"


def test_a_feature_goes_by_a_rolling_restart_and_a_trainer_elsewhere(tmp_path: Path) -> None:
    with stack_of(OLD | NEW, tmp_path, 1) as stack:
        with stack.at_work():
            pipeline = stack.configure(OLD)
            stack.restart("a")
            stack.move(pipeline, tmp_path / "next")
            stack.restart("archive")
            stack.restart("b")
            since_ms = time.time_ns() // 1_000_000
        assert stack.rows().keys() == OLD.keys()
        for batches in stack.check(OLD | NEW):
            check_new_values(batches, since_ms, arrived=False)
