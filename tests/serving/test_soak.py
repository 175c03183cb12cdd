"""Under load, with deltas, dense versions and clients that misbehave, every answer is right: that of an offline scorer for the
versions that it names. 15 s, or as many as $MINUTELY_SOAK_SECONDS says."""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from paramserver.table import Table
from serving.answers import RankAnswer
from serving.client import Client, RefusedError
from streaming.columns import Columns, Ragged
from tests.commands import missing
from tests.kafka.services import started
from tests.serving.publishing import Publisher, draw, make_pipeline
from tests.serving.server import Server
from trainer.losses import predictions
from trainer.models import load_weights, make_model

SECONDS = float(os.environ.get("MINUTELY_SOAK_SECONDS", "15"))
PROBES, COUNT = 4, 12
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

    def scores(self, columns: Columns, by_table: dict[str, int], dense: int) -> npt.NDArray[np.float32]:
        """Predictions with the rows of each table as of the version named for it."""
        if self._dense != dense:
            load_weights(self._model, self._weights[dense])
            self._dense = dense
        with torch.no_grad():
            rows = self._plan.fetch(
                self._plan.ids(columns), self._model.row_dim,
                lambda table, ids, out: self._rows[by_table[table]][table].lookup(ids, out),
            )  # fmt: skip
            outputs = self._model(self._plan.stack(rows, columns, COUNT), self._plan.dense(columns, COUNT))
            found: npt.NDArray[np.float32] = predictions(self._publisher.pipeline.labels, outputs).numpy()
            return found

    def is_right(self, columns: Columns, answer: RankAnswer) -> bool:
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


def _misbehave(port: int, stop: threading.Event) -> None:
    """Cut connections, garbage, huge bodies, wrong types."""
    chosen = random.Random(1)
    head = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/%s\r\nContent-Length: %d\r\n\r\n"
    while not stop.wait(0.005):
        body = chosen.choice(
            [
                b"{",
                b"\xff" * 100,
                b"[[[[",
                b'{"candidates": 7}',
                chosen.randbytes(300),
                b'{"candidates": {"ids": ["a"]}}',
            ]
        )
        sent = head % (chosen.choice([b"json", b"msgpack"]), chosen.choice([len(body), len(body) + 50, 1 << 40])) + body
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(chosen.choice([sent, body, sent[: len(sent) // 2]]))
                if chosen.random() < 0.3:
                    connection.settimeout(0.2)
                    answer = connection.recv(200)
                    assert not answer or answer.split()[1][:1] == b"4", answer
        except OSError:
            continue


def test_every_answer_is_right(tmp_path: Path) -> None:
    pipeline = make_pipeline(sync={"sparse_every": "250ms", "dense_every": "3s"}, train={"step_every": "250ms"})
    publisher = Publisher(pipeline, tmp_path / "deltas", keep_deltas=20)
    offline = Offline(publisher)
    server = Server(pipeline, tmp_path / "deltas", tmp_path / "server")
    drawn = np.random.default_rng(1)
    probes = []
    for _ in range(PROBES):
        columns: dict[str, Any] = draw(drawn, COUNT)
        columns["tags"] = Ragged(np.zeros(COUNT + 1, np.int64), np.empty(0, np.int64))
        probes.append(columns)
    answers: list[tuple[int, RankAnswer]] = []
    refused: list[int] = []
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

    publish()
    with started(server.process):
        server.wait()
        threads = [threading.Thread(target=ask, args=(at,)) for at in range(2)]
        threads.append(threading.Thread(target=_misbehave, args=(server.port, stop)))
        for thread in threads:
            thread.start()
        begun, asked, checked, early = time.monotonic(), 0, 0, 0
        try:
            while time.monotonic() - begun < SECONDS:
                publish()
                time.sleep(0.2)
                fresh, answers[:] = answers[:], []
                asked += len(fresh)
                for probe, answer in fresh[:: max(1, len(fresh) // 10)] + [
                    each for each in fresh if each[1].sparse_version != each[1].sparse_version_until
                ]:
                    assert offline.is_right(probes[probe], answer), answer
                    checked += 1
                    judged = (probe, answer)
                if not early and time.monotonic() - begun > SECONDS / 2:
                    early = _rss(server.process.pid)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        last = publisher.log.version
        late = _rss(server.process.pid)
        metrics = server.ask("GET", "/metrics")[1]
        assert server.process.end() == 0
    print(f"{asked} answers, {checked} checked, {len(refused)} refused, {last} versions, {early} to {late} KiB")
    assert checked > 5 * SECONDS
    probe, answer = judged
    answer.sparse_version = answer.sparse_version_until = answer.sparse_version - 3
    assert not offline.is_right(probes[probe], answer), "the scorer would take anything"
    assert set(refused) <= {503}, refused
    assert last > SECONDS, "versions were published"
    assert late < GROWTH * early, f"from {early} to {late} KiB"
    assert 'status="5' not in metrics.replace('status="503"', ""), metrics
    assert "Traceback" not in server.process.output, server.process.output
