"""A replica's scores are those of the trainer's model at the same version; dense weights follow their own cadence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from minutely.config import Pipeline
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from serving.replica import Replica
from streaming.features.columns import Ragged
from streaming.records.examples import ExampleColumns, ExampleFormat
from trainer.losses import Loss
from trainer.models import make_model
from trainer.worker import Trainer

DAY = 86_400_000
PIPELINE = Pipeline.model_validate(
    {
        "name": "test",
        "source": {"dir": ".", "impressions": {"file": "x.csv", "time": {"column": "t"}}, "actions": {"click": {}}},
        "features": {
            "user": {"column": "user"},
            "tags": {"column": "tags", "pool": "mean"},
            "price": {"kind": "dense", "column": "price"},
            "picture": {"kind": "vector", "column": "picture", "size": 3},
        },
        "labels": {
            "click": {"action": "click", "window": "1m"},
            "spent": {"action": "click", "window": "1m", "loss": "zero_inflated_log_normal"},
        },
    }
)


def _columns(random: np.random.Generator, count: int) -> dict[str, object]:
    lengths = random.integers(0, 4, count)
    return {
        "user": random.integers(0, 50, count),
        "tags": Ragged(np.concatenate(([0], np.cumsum(lengths))), random.integers(0, 9, int(lengths.sum()))),
        "price": random.normal(5, 2, count).astype(np.float32),
        "picture": random.normal(size=(count, 3)).astype(np.float32),
    }


@pytest.mark.parametrize("kind", ["deepfm", "dlrm"])
def test_scores_and_cadences(kind: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    pipeline = PIPELINE.model_copy(update={"model": PIPELINE.model.model_copy(update={"kind": kind})})
    examples = ExampleFormat(pipeline.features, pipeline.labels)
    model, plan = make_model(pipeline.model, pipeline.features, pipeline.labels, seed=1)
    tables = {name: pipeline.tables.make(name, model.row_dim, 1) for name in plan.tables}
    trainer = Trainer(model, plan, tables, pipeline.labels, examples, pipeline.train)
    files = LocalFiles(tmp_path, durable=True)
    log = DeltaLog(files, "f", keep_deltas=4)

    replica_model, _ = make_model(pipeline.model, pipeline.features, pipeline.labels, seed=2)
    copies = {name: pipeline.tables.make_replica(name, model.row_dim, 1) for name in plan.tables}
    replica = Replica(files, replica_model, plan, copies, pipeline.labels)

    def train(at: int) -> None:
        count = 64
        stamps = np.full(count, at)
        labels = random.integers(0, 2, (count, 2)).astype(np.float32)
        rest = ExampleColumns([f"{at}.{n}" for n in range(count)], labels, stamps, stamps, stamps)
        trainer.train(examples.build(_columns(random, count), rest))

    def publish(at: int, dense: bool) -> None:
        log.publish(trainer.seal(), Cut(at, at, {}, trainer.dense_weights() if dense else None))

    def difference() -> float:
        columns = _columns(np.random.default_rng(9), 300)
        model.eval()
        with torch.no_grad():
            rows = plan.fetch(plan.ids(columns), model.row_dim, trainer.tables.lookup)
            outputs = model(plan.stack(rows, columns, 300), plan.dense(columns, 300))
            wanted = Loss(pipeline.labels).predict(outputs).numpy()
        model.train()
        return float(np.abs(replica.score(columns, 300) - wanted).max())

    train(60_000)
    publish(60_000, dense=True)
    replica.pull()
    assert (replica.sparse_version, replica.dense_version) == (1, 1)
    assert difference() < 1e-6

    for minute in range(2, 8):  # rows every minute, dense weights with every third version
        train(minute * 60_000)
        publish(minute * 60_000, dense=minute % 3 == 0)
        replica.pull()
        assert (replica.sparse_version, replica.dense_version) == (minute, max(1, minute // 3 * 3))
    assert difference() > 1e-6
    assert all(
        copies[name].export().embeddings.tobytes() == tables[name].export().embeddings.tobytes() for name in tables
    )

    train(DAY)
    publish(DAY, dense=True)
    replica.pull()
    assert (replica.sparse_version, replica.dense_version) == (8, 8)
    assert difference() < 1e-6
