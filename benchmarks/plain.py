"""What does the platform cost where little happens? A replay, beside a plain script of the same model.

    MINUTELY_DATA=FOLDER python -m benchmarks.plain [--config configs/kuairand.yaml ...] [--rounds 3] [--out FILE]

The script has the log in arrays and every label from the start. Minute by minute of event time it scores what was served with the
weights of the last publication, and trains on what was decided: the same model, tables, steps and order of examples, so the same
AUC; no log, joiner, versions or replica. Both in turn, each in a process of its own, all on one core. Printed: medians of their CPU
seconds, reading the log included, and the median ratio of a pair.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch

from minutely.built_in import BUILT_IN
from minutely.config import Pipeline, load_pipeline
from minutely.logs.own_logs import load_events
from minutely.parts import make_trainer
from minutely.replays.results import metrics_of
from streaming.features.columns import Ids, Ragged, ScoringColumns, slice_columns
from streaming.source.logged_events import LoggedEvents
from trainer.dense_cadence import DenseCadence
from trainer.losses import Loss
from trainer.models import RankingModel
from trainer.worker import Trainer

ROOT = Path(__file__).resolve().parent.parent
MINUTELY = str(Path(sys.executable).with_name("minutely"))
WARM_UP = 0.5
"""As `minutely replay` has it."""


def decide(pipeline: Pipeline, events: LoggedEvents) -> tuple[Ids, npt.NDArray[np.float32]]:
    """When the last label of each impression was decided (ms), int64 [n], and its labels, float32 [n, labels]."""
    served_at = events.served_at[events.request_of_row]
    decided_at, targets = served_at.copy(), np.empty((len(served_at), len(pipeline.labels)), np.float32)
    for at, label in enumerate(pipeline.labels.values()):
        positive, closes = events.positive(label), served_at + label.window
        first = _first(events, positive)
        decided = np.minimum(closes, _first(events, positive | events.of_action(label.decided_by)))
        targets[:, at] = np.where(first <= decided, events.truth(label), 0)
        decided_at = np.maximum(decided_at, decided)
    return decided_at, targets


def _first(events: LoggedEvents, wanted: npt.NDArray[np.bool_]) -> Ids:
    first = np.full(events.impressions, np.iinfo(np.int64).max)
    np.minimum.at(first, events.engagements.row[wanted], events.engagements.happened_at[wanted])
    return first


class Script:
    """The tables and weights that are trained, and the weights that score."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.trainer: Trainer = make_trainer(pipeline)
        self.serving: RankingModel = copy.deepcopy(self.trainer.model).eval()
        self._loss = Loss(pipeline.labels)
        self._cadence = DenseCadence(self.trainer, pipeline.sync.dense_every)
        self._half_life = pipeline.train.norm_half_life

    def score(self, columns: ScoringColumns, count: int) -> npt.NDArray[np.float32]:
        """Predictions float32 [count, labels]. The rows are as at the last publication: nothing was trained since."""
        plan, tables = self.trainer.plan, self.trainer.tables
        with torch.inference_mode():
            rows = plan.fetch(plan.ids(columns), self.serving.row_dim, tables.lookup)
            outputs = self.serving(plan.stack(rows, columns, count), plan.dense(columns, count))
            scores: npt.NDArray[np.float32] = self._loss.predict(outputs).numpy()
            return scores

    def train(self, columns: ScoringColumns, targets: npt.NDArray[np.float32], now_ms: int) -> None:
        """One step."""
        plan, tables, model = self.trainer.plan, self.trainer.tables, self.trainer.model
        dense = plan.dense(columns, len(targets))
        if model.norm is not None:
            model.norm.learn(dense, now_ms, self._half_life)
        ids = plan.ids(columns)
        rows = plan.fetch(ids, model.row_dim, lambda ids, out: tables.lookup_or_insert(ids, now_ms, out))
        outputs = model(plan.stack(rows.requires_grad_(), columns, len(targets)), dense)
        self._loss(outputs, torch.from_numpy(targets), torch.ones(len(targets))).backward()  # type: ignore[no-untyped-call]
        self.trainer.weights.step()
        assert rows.grad is not None
        tables.apply(ids, rows.grad, now_ms)

    def publish(self, now_ms: int) -> None:
        """Score with the weights as they are where they are due, and forget old rows."""
        if self._cadence.is_due(now_ms):
            self.serving = copy.deepcopy(self.trainer.model).eval()
            self._cadence.sent(now_ms)
        self.trainer.expire(now_ms)


def play(pipeline: Pipeline) -> dict[str, Any]:
    """Metrics of what was scored after the warm-up, and how many minutes had anything in them."""
    torch.set_num_threads(1)
    events = load_events(pipeline, time.time_ns() // 1_000_000)
    decided_at, targets = decide(pipeline, events)
    rank = pc.rank(events.request_ids).to_numpy()
    order = np.lexsort((rank[events.request_of_row], decided_at))  # as joiners emit: by decision, request and place
    decided_at, targets = decided_at[order], targets[order]
    examples = {
        name: column.take(order) if isinstance(column, Ragged) else column[order]
        for name, column in events.features.items()
    }
    script, scores = Script(pipeline), np.zeros((events.impressions, len(pipeline.labels)), np.float32)
    step = pipeline.train.step_every
    minutes = np.unique(np.concatenate((events.served_at, decided_at)) // step)
    served = events.starts[np.searchsorted(events.served_at, (minutes + 1) * step)].tolist()
    decided = np.searchsorted(decided_at, (minutes + 1) * step).tolist()
    scored, trained = 0, 0
    for minute, serve_to, train_to in zip(minutes.tolist(), served, decided, strict=True):
        if serve_to > scored:
            columns = slice_columns(events.features, scored, serve_to)
            scores[scored:serve_to] = script.score(columns, serve_to - scored)
            scored = serve_to
        if train_to > trained:
            columns = slice_columns(examples, trained, train_to)
            script.trainer.first_at = script.trainer.first_at or int(decided_at[0])
            script.train(columns, targets[trained:train_to], int(decided_at[train_to - 1]))
            trained = train_to
        script.publish((minute + 1) * step)
    begin = int(np.ceil(WARM_UP * events.impressions))
    return {"minutes": len(minutes), "metrics": metrics_of(pipeline, events, scores[begin:], begin)}


def run(*command: str) -> tuple[float, str]:
    """CPU seconds of a process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def compare(config: Path, rounds: int) -> dict[str, Any]:
    """Both in turn, ``rounds`` times."""
    plain_seconds: list[float] = []
    replay_seconds: list[float] = []
    for _ in range(rounds):
        seconds, printed = run(sys.executable, "-m", "benchmarks.plain", "--child", "--config", str(config))
        plain = json.loads(printed)
        plain_seconds.append(seconds)
        with TemporaryDirectory() as name:
            seconds, _ = run(MINUTELY, "replay", str(config), "--out", f"{name}/run", "--warmup", str(WARM_UP))
            found = json.loads(Path(name, "run", "summary.json").read_text())
        replay_seconds.append(seconds)
    return {
        "config": config.stem,
        "minutes": plain["minutes"],
        "plain_seconds": median(plain_seconds),
        "replay_seconds": median(replay_seconds),
        "ratio": median(replay / plain for replay, plain in zip(replay_seconds, plain_seconds, strict=True)),
        "auc": {
            label: {"plain": of["auc"], "replay": found["metrics"][label]["auc"]}
            for label, of in plain["metrics"].items()
            if "auc" in of
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    both = list(BUILT_IN.values())
    parser.add_argument("--config", type=Path, nargs="+", default=both)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "plain.json")
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(play(load_pipeline(options.config[0]))))
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{'config':>10} {'minutes':>8} {'plain s':>8} {'replay s':>9} {'ratio':>6}  AUC of plain and replay")
    report = []
    for config in options.config:
        found = compare(config.resolve(), options.rounds)
        report.append(found)
        aucs = ", ".join(f"{label} {of['plain']:.4f} {of['replay']:.4f}" for label, of in found["auc"].items())
        print(
            f"{found['config']:>10} {found['minutes']:8,} {found['plain_seconds']:8.1f} {found['replay_seconds']:9.1f} "
            f"{found['ratio']:6.2f}  {aucs}",
            flush=True,
        )
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
