"""Under load, with deltas, dense versions, a rollback in the middle, 2,000 connections that are held open, slow headers and raw
requests that are none, every answer is right: that of an offline scorer for the versions that it names; health is answered
throughout. 15 s, or as many as $MINUTELY_SOAK_SECONDS says: 1200 is the long one."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console

from minutely.services.versions import release, roll_back
from paramserver.delta_log import Cut, DeltaLog
from paramserver.table import Table
from paramserver.tables import BatchIds
from serving.answers import RankResponse
from serving.client import Client, RefusedError
from stack.ports import free_ports
from streaming.features.columns import Columns, Ragged
from tests.commands import missing
from tests.kafka.services import started
from tests.serving.crowd import Crowd, RawRequests, send_raw
from tests.serving.publishing import Publisher, draw, make_pipeline
from tests.serving.server import Server
from trainer.losses import Loss
from trainer.models import load_weights, make_model

SECONDS = float(os.environ.get("MINUTELY_SOAK_SECONDS", "15"))
PROBES, COUNT = 4, 12
KEEP = 20
HELD, HELD_SECONDS = 2_000, 6.0
GROWTH = 1.05


class _Rows:
    """A table's rows as they were, in plain arrays: a thousand native tables do not fit into an address space."""

    def __init__(self, table: Table) -> None:
        rows = table.export()
        order = np.argsort(rows.ids)
        self._ids, self._rows = rows.ids[order], rows.embeddings[order]

    def lookup(self, ids: npt.NDArray[np.int64], out: npt.NDArray[np.float32]) -> None:
        """Rows of ids [n] into ``out`` [n, dim]; zeros for those without."""
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        out[:] = np.where((self._ids[at] == ids)[:, None], self._rows[at], 0)


class Offline:
    """Scores by any versions of rows and of weights, from what was published: nothing of the replica's."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._model, self._plan = make_model(
            publisher.pipeline.model, publisher.pipeline.features, publisher.pipeline.labels, 1
        )
        self._model.eval()
        self._rows: dict[int, dict[str, _Rows]] = {}
        self._weights: dict[int, bytes] = {}
        self._dense = 0

    def note(self, version: int, *, dense: bool) -> None:
        """Keep what is published as ``version``."""
        self._rows[version] = {name: _Rows(table) for name, table in self._publisher.tables.items()}
        if dense:
            self._weights[version] = self._publisher.trainer.dense_weights()
        for old in [at for at in self._rows if at < version - 200]:
            del self._rows[old]

    def went_back(self, version: int, to: int) -> None:
        """``version`` holds what an older one held."""
        self._rows[version] = self._rows[to]

    def scores(self, columns: Columns, by_table: dict[str, int], dense: int) -> npt.NDArray[np.float32]:
        """Predictions with the rows of each table as of the version named for it."""
        if self._dense != dense:
            load_weights(self._model, "weights", self._weights[dense])
            self._dense = dense

        def lookup(batch: BatchIds, out: npt.NDArray[np.float32]) -> None:
            for part in batch.parts():
                self._rows[by_table[part.table]][part.table].lookup(part.ids, out[part.start : part.stop])

        with torch.no_grad():
            rows = self._plan.fetch(self._plan.ids(columns), self._model.row_dim, lookup)
            outputs = self._model(self._plan.stack(rows, columns, COUNT), self._plan.dense(columns, COUNT))
            found: npt.NDArray[np.float32] = Loss(self._publisher.pipeline.labels).predict(outputs).numpy()
            return found

    def is_right(self, columns: Columns, answer: RankResponse) -> bool:
        """Whether each candidate's scores come of rows of the versions named, and each row of one of them."""
        found = np.empty((COUNT, 2), np.float32)
        for at, label in enumerate(("click", "spent")):
            found[[int(each) for each in answer.ids], at] = answer.scores[label]
        versions = range(answer.sparse_version, answer.sparse_version_until + 1)
        right = np.zeros(COUNT, np.bool_)
        for each in itertools.product(versions, repeat=3):  # no candidate has two rows of one table
            by_table = dict(zip(("user", "item", "user_item"), each, strict=True)) | {"tags": versions[0]}
            wanted = self.scores(columns, by_table, answer.dense_version)
            right |= np.isclose(found, wanted, rtol=1e-6, atol=1e-6).all(1)
        return bool(right.all())


def _rss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        missing("/proc")
        raise
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_every_answer_is_right(tmp_path: Path) -> None:
    pipeline = make_pipeline(
        sync={"sparse_every": "250ms", "dense_every": "3s"},
        train={"step_every": "250ms"},
        serve={"stale_is_unready": True, "fresh_within": "5s", "header_timeout": "3s", "latency_budget": "5s"},
    )
    publisher = Publisher(pipeline, tmp_path / "deltas", keep_deltas=KEEP)
    offline = Offline(publisher)
    server = Server(pipeline, tmp_path / "deltas", tmp_path / "server", health_port=free_ports(1)[0])
    drawn = np.random.default_rng(1)
    probes = []
    for _ in range(PROBES):
        columns: dict[str, Any] = draw(drawn, COUNT)
        columns["tags"] = Ragged(np.zeros(COUNT + 1, np.int64), np.empty(0, np.int64))
        probes.append(columns)
    answers: list[tuple[int, RankResponse]] = []
    refused: list[int] = []
    raw_statuses: Counter[int] = Counter()
    wrong: list[Any] = []
    waits: list[float] = []
    judged: list[tuple[int, RankResponse]] = []
    stop = threading.Event()
    lock = threading.Lock()

    def publish() -> int:
        publisher.train(time.time_ns() // 1_000_000, 300)
        version = publisher.log.version + 1
        dense = version % 5 == 1
        with lock:
            offline.note(version, dense=dense)
        publisher.publish(time.time_ns() // 1_000_000, dense=dense)
        return version

    def ask(first: int) -> None:
        client = Client(server.url)
        ids = list(range(COUNT))
        names = ("item", "price", "picture")
        for at in itertools.count(first):
            if stop.is_set():
                break
            columns = probes[at % PROBES]
            features = {name: columns[name] for name in names} | {"tags": [[]] * COUNT}
            try:
                answers.append((at % PROBES, client.rank({"user": int(columns["user"][0])}, ids, features)))
            except RefusedError as error:
                refused.append(error.status)
        client.close()

    def fuzz(seed: int) -> None:
        body = {name: probes[0][name].tolist() for name in ("item", "price", "picture")} | {"tags": [[]] * COUNT}
        rank = {"features": {"user": 1}, "candidates": {"ids": list(range(COUNT)), "features": body}}
        engaged = {"engagements": [{"request_id": "r", "impression_id": "i", "action": "click"}]}
        bodies = [
            ("/v1/rank", "application/json", json.dumps(rank).encode()),
            ("/v1/rank", "application/msgpack", msgspec.msgpack.encode(rank)),
            ("/v1/engagements", "application/json", json.dumps(engaged).encode()),
            ("/v2/models/test/infer", "application/json", b"{}"),
        ]
        requests = RawRequests(bodies, seed=seed)
        while not stop.wait(0.005):
            sent = requests.next()
            statuses = send_raw(server.port, sent)
            with lock:
                raw_statuses.update(statuses)
            if any(status >= 500 for status in statuses):
                wrong.append(("raw request", sent, statuses))

    def watch() -> None:
        while not stop.wait(0.1):
            begun = time.monotonic()
            for path in ("/v2/health/live", "/v2/health/ready"):
                status, said = server.ask("GET", path, health=True)
                if status != 200:
                    wrong.append((path, status, said))
            waits.append(time.monotonic() - begun)

    def look(fresh: list[tuple[int, RankResponse]]) -> int:
        some = fresh[:: max(1, len(fresh) // 10)]
        some += [each for each in fresh if each[1].sparse_version != each[1].sparse_version_until]
        for probe, answer in some:
            assert offline.is_right(probes[probe], answer), answer
        judged[:] = some[-1:] or judged
        return len(some)

    def watched(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except Exception as error:  # else nobody would hear of it
                wrong.append(error)

        return threading.Thread(target=run)

    def roll_back_and_on() -> int:
        """Go back, stay there until that is old, and go on from the newest; how many answers were looked at."""
        went_to = publisher.log.version - 3
        roll_back(Console(file=StringIO()), str(tmp_path / "deltas"), went_to, training=False)
        publisher.log = DeltaLog.resume(publisher.files, publisher.pipeline.form(), KEEP)
        held = publisher.log.version
        offline.went_back(held, went_to)
        begun, looked, said = time.monotonic(), 0, ""
        while time.monotonic() < begun + HELD_SECONDS or "stale" not in said:
            assert time.monotonic() < begun + 60, said
            time.sleep(0.1)
            looked += look(answers[:])
            said = server.ask("GET", "/v2/health/ready", health=True)[1]["state"]
        assert said == f"held at version {held} by rollback: stale"
        publisher.trainer.seal()  # what was learned goes out with all the rest
        offline.note(held + 1, dense=True)
        now_ms = time.time_ns() // 1_000_000
        cut = Cut(now_ms, now_ms, {}, publisher.trainer.dense_weights())
        publisher.log.take_over({name: table.export() for name, table in publisher.tables.items()}, cut)
        release(Console(file=StringIO()), str(tmp_path / "deltas"))
        while server.ask("GET", "/v1/status", health=True)[1]["sparse_version"] == held:
            assert time.monotonic() < begun + 90, "it was let go"
            time.sleep(0.05)
        return looked

    publish()
    crowd = Crowd(server.port, HELD)
    with started(server.process):
        server.wait("/v2/health/live")
        unready = 0
        while server.ask("GET", "/v2/health/ready")[0] != 200:  # the first version may have become stale meanwhile
            unready += 1
            publish()
            time.sleep(0.2)
        works = [partial(ask, 0), partial(ask, 1), partial(fuzz, 1), partial(fuzz, 2), watch, partial(crowd.run, stop)]
        threads = [watched(work) for work in works]
        for thread in threads:
            thread.start()
        begun, asked, checked, early, went_back = time.monotonic(), 0, 0, 0, False
        try:
            while time.monotonic() - begun < SECONDS or not went_back:
                assert not wrong, wrong
                publish()
                time.sleep(0.2)
                fresh, answers[:] = answers[:], []
                asked += len(fresh)
                checked += look(fresh)
                if not went_back and time.monotonic() - begun > SECONDS / 2:
                    early, went_back = _rss(server.process.pid), True
                    checked += roll_back_and_on()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        last = publisher.log.version
        late = _rss(server.process.pid)
        metrics = server.ask("GET", "/metrics", health=True)[1]
        assert server.process.end() == 0
    print(
        f"{asked} answers, {checked} checked, {len(refused)} refused, {last} versions, {early} to {late} KiB; "
        f"{crowd.most_held} connections held of {crowd.opened} opened; raw requests {dict(raw_statuses)}; "
        f"health {len(waits)} times, at most {max(waits):.2f} s"
    )
    assert not wrong, wrong
    assert checked > 5 * SECONDS
    ((probe, answer),) = judged
    answer.sparse_version = answer.sparse_version_until = answer.sparse_version - 3
    assert not offline.is_right(probes[probe], answer), "the scorer would take anything"
    assert not refused, refused
    assert last > SECONDS / 4, "versions were published"
    assert late < GROWTH * early, f"from {early} to {late} KiB"
    assert crowd.most_held > HELD * 0.9, "they were there"
    assert raw_statuses[200] and raw_statuses[400] and raw_statuses[422], raw_statuses
    failed = re.findall(r'requests_total{route="(.+)",status="(5..)"} (.+)', metrics)
    assert failed == ([("/v2/health/ready", "503", f"{unready:.1f}")] if unready else []), failed
    assert "Traceback" not in server.process.output, server.process.output
    assert server.process.output.count("\n") < 30, "who connects cannot fill a log"
