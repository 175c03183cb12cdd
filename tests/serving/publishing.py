"""A pipeline with every kind of feature, and a trainer of it that publishes, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minutely.config import Pipeline
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from paramserver.learned import Learned
from paramserver.manifest import Manifest
from streaming.features.columns import Column, Columns, Ragged
from streaming.features.ids import cross
from streaming.records.examples import ExampleColumns, ExampleFormat
from trainer.losses import Loss
from trainer.models import make_model
from trainer.worker import Trainer

DAY = 86_400_000
CONFIG: dict[str, Any] = {
    "name": "test",
    "source": {
        "dir": ".",
        "impressions": {"file": "x.csv", "time": {"column": "t"}},
        "actions": {"click": {}, "buy": {}, "seen": {}},
    },
    "features": {
        "user": {"column": "user", "scope": "request"},
        "item": {"column": "item"},
        "tags": {"column": "tags", "pool": "mean"},
        "user_item": {"cross": ["user", "item"]},
        "price": {"kind": "dense", "column": "price"},
        "picture": {"kind": "vector", "column": "picture", "size": 3},
    },
    "labels": {
        "click": {"action": "click", "window": "1m"},
        "spent": {"action": "buy", "window": "1m", "loss": "squared", "transform": "log"},
    },
    "serve": {"score": {"click": 1.0, "spent": 0.25}, "log": False},
}


def make_pipeline(**sections: Any) -> Pipeline:
    """The pipeline, with other keys in some sections."""
    return Pipeline.model_validate(
        {**CONFIG, **{name: {**CONFIG.get(name, {}), **each} for name, each in sections.items()}}
    )


def draw(random: np.random.Generator, count: int) -> dict[str, Column]:
    """Feature columns of ``count`` candidates of one user; ids recur."""
    lengths = random.integers(0, 4, count)
    user = np.full(count, random.integers(0, 30))
    item = random.integers(0, 50, count)
    return {
        "user": user,
        "item": item,
        "tags": Ragged(np.concatenate(([0], np.cumsum(lengths))), random.integers(0, 9, int(lengths.sum()))),
        "user_item": cross(user, item),
        "price": random.normal(5, 2, count).astype(np.float32),
        "picture": random.normal(size=(count, 3)).astype(np.float32),
    }


def rank_body(columns: Columns, ids: Sequence[str | int], **more: Any) -> dict[str, Any]:
    """The ranking request with these features, as JSON has it."""
    tags = columns["tags"]
    assert isinstance(tags, Ragged)
    bounds = tags.offsets.tolist()
    return {
        "features": {"user": int(columns["user"][0])},
        "candidates": {
            "ids": list(ids),
            "features": {
                "item": columns["item"].tolist(),
                "tags": [tags.values[a:b].tolist() for a, b in pairwise(bounds)],
                "price": columns["price"].tolist(),
                "picture": columns["picture"].tolist(),
            },
        },
        **more,
    }


class Publisher:
    """A trainer whose versions go to a folder. ``scores`` is what its model says of the state that was published last."""

    def __init__(self, pipeline: Pipeline, folder: Path, seed: int = 3, keep_deltas: int = 100) -> None:
        self.pipeline = pipeline
        self.random = np.random.default_rng(seed)
        self.format = ExampleFormat(pipeline.features, pipeline.labels)
        self.model, self.plan = make_model(pipeline.model, pipeline.features, pipeline.labels, seed=seed)
        self.tables = {name: pipeline.tables.make(name, self.model.row_dim, 1) for name in self.plan.tables}
        self.trainer = Trainer(self.model, self.plan, self.tables, pipeline.labels, self.format, pipeline.train)
        self.files = LocalFiles(folder, durable=False)
        self.log = DeltaLog(self.files, pipeline.form(), keep_deltas, precision=pipeline.sync.rows)

    def train(self, at: int, count: int = 64) -> None:
        """Learn from made-up examples decided at ``at`` (ms)."""
        stamps = np.full(count, at)
        labels = self.random.integers(0, 2, (count, 2)).astype(np.float32)
        rest = ExampleColumns([f"{at}.{n}" for n in range(count)], labels, stamps, stamps, stamps)
        self.trainer.train(self.format.build(draw(self.random, count), rest))

    def publish(self, at: int, *, dense: bool = True, learned: Learned | None = None) -> Manifest:
        """Publish what was learned, as of ``at`` (ms)."""
        weights = self.trainer.dense_weights() if dense else None
        return self.log.publish(self.trainer.seal(), Cut(at, at, {}, weights, learned=learned))

    def next(self, at: int, *, dense: bool = True) -> Manifest:
        """Learn and publish."""
        self.train(at)
        return self.publish(at, dense=dense)

    def scores(self, columns: Columns, count: int) -> npt.NDArray[np.float32]:
        """The trainer's own float32 [count, labels]."""
        self.model.eval()
        with torch.no_grad():
            rows = self.plan.fetch(self.plan.ids(columns), self.model.row_dim, self.trainer.tables.lookup)
            outputs = self.model(self.plan.stack(rows, columns, count), self.plan.dense(columns, count))
            found: npt.NDArray[np.float32] = Loss(self.pipeline.labels).predict(outputs).numpy()
        self.model.train()
        return found
