"""Weights of examples: what a loss is multiplied by, and nothing that the model sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from paramserver.settings import TablesSettings
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, WeightFeature
from streaming.records.examples import ExampleColumns, ExampleFormat
from streaming.records.labels import Label
from trainer.models import make_model
from trainer.prequential import Prequential
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import Trainer

PLAIN: dict[str, Feature] = {"item": SparseFeature(column="i"), "price": DenseFeature(kind="dense", column="p")}
WEIGHTED: dict[str, Feature] = {**PLAIN, "w": WeightFeature(kind="dense", column="w")}
LABELS = {"like": Label(action="like", window="1m"), "spent": Label(action="buy", window="1m", loss="squared")}


class World:
    """A trainer that learns examples given as item, price, like, spent and weight."""

    def __init__(self, features: dict[str, Feature]) -> None:
        self.format = ExampleFormat(features, LABELS)
        model, plan = make_model(ModelSettings(dim=4, hidden=[8]), features, LABELS, seed=1)
        tables = {name: TablesSettings().make(name, model.row_dim, 1) for name in plan.tables}
        self.prequential = Prequential(LABELS)
        self.trainer = Trainer(model, plan, tables, LABELS, self.format, TrainSettings(), self.prequential)

    def batch(self, rows: list[tuple[float, ...]]) -> pa.RecordBatch:
        items, prices, likes, spent, weights = (np.array(column) for column in zip(*rows, strict=True))
        times = np.full(len(rows), 1000)
        labels = np.stack([likes, spent], axis=1).astype(np.float32)
        columns: dict[str, Any] = {"item": items.astype(np.int64), "price": prices.astype(np.float32)}
        columns["w"] = weights.astype(np.float32)
        rest = ExampleColumns([f"r/{at}" for at in range(len(rows))], labels, times, times, times)
        return self.format.build(columns, rest)

    def learn(self, rows: list[tuple[float, ...]]) -> list[int]:
        return self.trainer.train(self.batch(rows)).tolist()

    def learned(self) -> dict[str, Any]:
        rows = self.trainer.tables["item"].export()
        dense = {name: weight.detach().numpy().copy() for name, weight in self.trainer.model.named_parameters()}
        return {**dense, **dict(zip(rows.ids.tolist(), rows.embeddings, strict=True))}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[key], other[key], rtol=1e-4, atol=1e-6) for key in one)


A, B, C = (1, 0.5, 1, 2.0), (2, 0.5, 0, 0.0), (1, 0.5, 0, 0.0)


def test_an_example_of_weight_three_is_three_examples() -> None:
    """All labels of it. The price is one for all, so that its scale is the same."""
    once, thrice, alone = World(WEIGHTED), World(PLAIN), World(PLAIN)
    for _ in range(5):
        once.learn([(*A, 3), (*B, 1), (*C, 1)])
        thrice.learn([(*A, 0), (*A, 0), (*A, 0), (*B, 0), (*C, 0)])
        alone.learn([(*A, 0), (*B, 0), (*C, 0)])
    assert same(once.learned(), thrice.learned())
    assert not same(once.learned(), alone.learned())


def test_an_example_of_weight_zero_teaches_nothing() -> None:
    """Its ids have rows all the same, as they began."""
    with_it, without = World(WEIGHTED), World(WEIGHTED)
    with_it.learn([(*A, 1), (*B, 0), (*C, 1)])
    without.learn([(*A, 1), (*C, 1)])
    found, wanted = with_it.learned(), without.learned()
    assert found.pop(2) is not None
    assert same(found, wanted)


def test_a_weight_is_no_input() -> None:
    weighted, plain = World(WEIGHTED), World(PLAIN)
    assert weighted.trainer.plan.dense_names == plain.trainer.plan.dense_names == ["price/0"]
    for world in (weighted, plain):
        world.learn([(*A, 1), (*B, 1), (*C, 1)])
    assert weighted.trainer.dense_weights() == plain.trainer.dense_weights(), "and weights of 1 change nothing"


def test_prequential_metrics_do_not_know_weights() -> None:
    rows = [A, B, C, (2, 0.1, 1, 0.5), (3, 0.2, 0, 0.0)]
    worlds = [World(WEIGHTED), World(WEIGHTED)]
    for world, weights in zip(worlds, ([1, 1, 1, 1, 1], [9, 0, 2, 0.5, 7]), strict=True):
        world.learn([(*row, weight) for row, weight in zip(rows, weights, strict=True)])
    assert worlds[0].prequential.metrics() == worlds[1].prequential.metrics()


def test_weights_and_sampling_rates_multiply() -> None:
    """Of several labels, a kept negative stands for 1 / rate: on top of its weight."""
    sampled, plain = World(WEIGHTED), World(WEIGHTED)
    batch = sampled.batch([(*A, 1), (*B, 3)])
    rate = batch.schema.get_field_index("sampling_rate")
    batch = batch.set_column(rate, batch.schema.field(rate), pa.array(np.full(2, 0.5, np.float32)))
    sampled.trainer.train(batch)
    plain.learn([(*A, 1), (*B, 6)])
    assert same(sampled.learned(), plain.learned())


@pytest.mark.parametrize("weight", [-1.0, -1e-30, 1e38])
def test_a_weight_that_no_step_can_use_costs_its_example(weight: float) -> None:
    """Records that were made before the feature was the weight may hold it."""
    world, without = World(WEIGHTED), World(WEIGHTED)
    assert world.learn([(*A, 1), (*B, weight), (*C, 1)]) == [1]
    without.learn([(*A, 1), (*C, 1)])
    found = world.learned()
    found.pop(2)
    assert same(found, without.learned())
    assert torch.isfinite(world.trainer.weights.vector).all()
