"""How much of the bare scoring function is left over HTTP, how long answers take, and what a delta does to them.

    python -m benchmarks.serve [--rows 1000000] [--seconds 15] [--candidates 100] [--delta 100000] [--dense]

DeepFM of 20 features, dim 16, hidden 256 and 128, one thread. The load comes from another process, as msgpack with packed columns
and as JSON. Saturation: as many connections as keep it busy. Below it: open loop, requests at random times, latency from the time
at which a request was due. Bare: `Replica.score` on the same number of candidates in this process, alone. ``--dense`` compares ways
to run the dense part alone (ONNX Runtime where it is installed; torch.compile takes a minute).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from minutely.config import Pipeline
from minutely.services.serve import make_replica_service
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from paramserver.table import Rows
from streaming.clock import WallClock
from streaming.features.columns import Column
from tests.serving.server import Server
from trainer.losses import Loss
from trainer.models import dump_weights, make_model

FEATURES, DIM, HIDDEN = 20, 16, [256, 128]
DELTAS = 36


def make_pipeline(every: str = "60s") -> Pipeline:
    features = {f"f{at}": {"column": f"f{at}", "table": "rows"} for at in range(FEATURES)}
    source = {"dir": ".", "impressions": {"file": "x.csv", "time": {"column": "t"}}, "actions": {"click": {}}}
    return Pipeline.model_validate(
        {
            "name": "bench",
            "source": source,
            "features": features,
            "labels": {"click": {"action": "click", "window": "1m"}},
            "model": {"kind": "deepfm", "dim": DIM, "hidden": HIDDEN},
            "sync": {"sparse_every": every},
            "train": {"step_every": every},
            "serve": {"log": False, "latency_budget": "1s"},
        }
    )


class Versions:
    """Publishes versions of random rows."""

    def __init__(self, pipeline: Pipeline, folder: Path) -> None:
        self._model, _ = make_model(pipeline.model, pipeline.features, pipeline.labels, 1)
        self._log = DeltaLog(LocalFiles(folder, durable=False), pipeline.form(), keep_deltas=1000)
        self._random = np.random.default_rng(1)
        self._folder = folder
        self._released = 0

    def release(self, served: Path) -> None:
        """Let a replica see the next version that it has not seen yet, by links."""
        self._released += 1
        stem = f"{self._released:012d}"
        for path in self._folder.iterdir():
            if not path.name.startswith("manifest-") and not (served / path.name).exists():
                (served / path.name).hardlink_to(path)
        (served / f"manifest-{stem}.json").hardlink_to(self._folder / f"manifest-{stem}.json")

    def publish(self, ids: Any) -> None:
        dim, now = self._model.row_dim, time.time_ns() // 1_000_000
        rows = Rows(
            ids=ids,
            embeddings=self._random.normal(0, 0.05, (len(ids), dim)).astype(np.float32),
            state=np.zeros((len(ids), 1), np.float32),
            last_seen_seconds=np.zeros(len(ids), np.uint32),
            counts=np.zeros(len(ids), np.uint32),
            expired=np.empty(0, np.int64),
            default_embedding=np.zeros(dim, np.float32),
            default_state=np.zeros(1, np.float32),
        )
        dense = None if self._log.version else dump_weights(self._model)
        self._log.publish({"rows": rows}, Cut(now, now, {}, dense))


def load(
    server: Server, options: argparse.Namespace, *, packed: bool, rate: float = 0.0, seconds: float = 0.0
) -> dict[str, Any]:
    """One stretch of load from a process of its own; ``rate`` 0 is as fast as it goes."""
    arguments = ["--port", str(server.port), "--rate", str(rate), "--seconds", str(seconds or options.seconds)]
    arguments += ["--rows", str(options.rows), "--candidates", str(options.candidates)]
    command = [sys.executable, "-m", "benchmarks.parts.load", *arguments, *(["--packed"] if packed else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bare(pipeline: Pipeline, folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Calls a second of `Replica.score`, and of the same model on `EmbeddingBag`, in turns."""
    torch.set_num_threads(1)
    service = make_replica_service(pipeline, LocalFiles(folder, durable=False), WallClock(), "bare")
    service.replica.pull()
    random = np.random.default_rng(4)
    count = options.candidates
    batches: list[dict[str, Column]] = [
        {f"f{at}": random.integers(0, options.rows, count) for at in range(FEATURES)} for _ in range(64)
    ]
    model, _ = make_model(pipeline.model, pipeline.features, pipeline.labels, 1)
    model.eval()
    bag = nn.EmbeddingBag(options.rows, model.row_dim, mode="sum")

    def on_bag(batch: dict[str, Column]) -> None:
        with torch.inference_mode():
            ids = torch.from_numpy(np.concatenate([np.asarray(batch[name]) for name in batch]))
            rows = bag(ids, torch.arange(len(ids))).view(FEATURES, count, -1)
            Loss(pipeline.labels).predict(model(rows, torch.empty(count, 0))).numpy()

    def on_table(batch: dict[str, Column]) -> None:
        service.replica.score(batch, count)

    rates: dict[Any, list[float]] = {on_table: [], on_bag: []}
    for _ in range(6):
        for side, found in rates.items():
            started, calls = time.perf_counter(), 0
            while time.perf_counter() - started < 1:
                side(batches[calls % len(batches)])
                calls += 1
            found.append(calls / (time.perf_counter() - started))
    return median(rates[on_table][1:]), median(rates[on_bag][1:])


def dense(options: argparse.Namespace) -> None:
    """Ways to run the dense part alone, in turns; the largest difference of an output from eager's."""
    torch.set_num_threads(1)
    pipeline = make_pipeline()
    model, _ = make_model(pipeline.model, pipeline.features, pipeline.labels, 1)
    model.eval()
    rows = torch.randn(FEATURES, options.candidates, model.row_dim) * 0.1
    none = torch.empty(options.candidates, 0)
    sides: dict[str, Any] = {"eager": lambda: model(rows, none)}
    compiled = torch.compile(model, dynamic=True)
    sides["compiled"] = lambda: compiled(rows, none)
    try:
        import onnxruntime

        path = f"{tempfile.mkdtemp()}/model.onnx"
        axes = {"rows": {1: torch.export.Dim("n", min=2, max=10_000)}}

        class Rows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, rows: torch.Tensor) -> Any:
                return self.model(rows, rows.new_empty((rows.shape[1], 0)))

        torch.onnx.export(Rows().eval(), (rows,), path, dynamic_shapes=axes, dynamo=True, external_data=False)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0].name
        sides["onnxruntime"] = lambda: torch.from_numpy(session.run(None, {given: rows.numpy()})[0])
    except ImportError as error:
        print(f"onnxruntime: {error}")
    with torch.inference_mode():
        wanted = model(rows, none)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            side()
        for _ in range(300):
            for name, side in sides.items():
                started = time.perf_counter()
                side()
                times[name].append(time.perf_counter() - started)
        for name, side in sides.items():
            apart = float((side() - wanted).abs().max())
            print(
                f"{name}: {median(times[name]) * 1e6:.0f} us for {options.candidates} candidates, {apart:.1g} from eager"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--delta", type=int, default=100_000)
    parser.add_argument("--dense", action="store_true")
    options = parser.parse_args()
    if options.dense:
        dense(options)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipeline = make_pipeline("1s")
        versions = Versions(pipeline, folder / "made")
        served = folder / "deltas"
        served.mkdir()
        versions.publish(np.arange(options.rows))
        versions.publish(np.arange(1000))
        for _ in range(2):
            versions.release(served)
        on_table, on_bag = bare(pipeline, folder / "deltas", options)
        each = options.candidates
        print(
            f"bare: {on_table:.0f} calls/s, {on_table * each:,.0f} candidates/s; {on_table / on_bag:.2f} of EmbeddingBag",
            flush=True,
        )
        server = Server(pipeline, folder / "deltas", folder / "server").start()
        try:
            print(f"ready after {server.wait():.1f} s from {options.rows:,} rows", flush=True)
            for packed in (True, False):
                measure(server, options, on_table, packed=packed)
            under_deltas(server, options, versions, served)
            server.process.kill()
            started = time.perf_counter()
            server.start().wait()
            print(f"kill -9: ready again after {time.perf_counter() - started:.1f} s", flush=True)
        finally:
            server.process.end(signal.SIGKILL)


def measure(server: Server, options: argparse.Namespace, on_table: float, *, packed: bool) -> None:
    form = "msgpack" if packed else "JSON"
    load(server, options, packed=packed, seconds=2)
    most = load(server, options, packed=packed)
    print(
        f"{form}: {most['per_second']:.0f} requests/s at saturation, {most['per_second'] / on_table:.2f} of bare",
        flush=True,
    )
    for share in (0.5, 0.8):
        found = load(server, options, packed=packed, rate=share * most["per_second"])
        print(
            f"{form}: at {share:.0%}: p50 {found['p50_ms']:.1f} ms, p99 {found['p99_ms']:.1f} ms {found['statuses']}",
            flush=True,
        )


def under_deltas(server: Server, options: argparse.Namespace, versions: Versions, served: Path) -> None:
    """p99 at half of saturation while deltas come, over that without, in turns. They were made before, so only applying counts."""
    random = np.random.default_rng(5)
    for _ in range(DELTAS):
        versions.publish(random.choice(options.rows, options.delta, replace=False))
    most = load(server, options, packed=True, seconds=4)["per_second"]
    ratios = []
    for turn in range(3):
        idle = load(server, options, packed=True, rate=0.5 * most, seconds=5)
        stop = threading.Event()
        releasing = threading.Thread(target=_release, args=(versions, served, range(turn, DELTAS, 3), stop))
        releasing.start()
        busy = load(server, options, packed=True, rate=0.5 * most, seconds=5)
        stop.set()
        releasing.join()
        ratios.append(busy["p99_ms"] / idle["p99_ms"])
        print(
            f"deltas of {options.delta:,} rows: p99 {busy['p99_ms']:.1f} ms, without {idle['p99_ms']:.1f} ms",
            flush=True,
        )
    status = server.ask("GET", "/v1/status")[1]
    print(f"p99 with deltas: {median(ratios):.2f} of that without; version {status['sparse_version']}", flush=True)


def _release(versions: Versions, served: Path, turns: range, stop: threading.Event) -> None:
    for _ in turns:
        versions.release(served)
        if stop.wait(0.4):
            return


if __name__ == "__main__":
    main()
