"""Whatever is in a file of dense weights or of a trainer's state, with a checksum that is right: it is refused by tensor."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save

from paramserver.table import Adagrad, Table
from streaming.examples import ExampleFormat
from streaming.features import DenseFeature, Feature, SparseFeature
from streaming.labels import Label
from tests.paramserver.hostile import mutated
from trainer.models import UNREADABLE, load_weights, make_model
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import Trainer

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1,2").split(",")]
FEATURES: dict[str, Feature] = {
    "item": SparseFeature(column="i"),
    "price": DenseFeature(kind="dense", column="p"),
    "age": DenseFeature(kind="dense", column="a"),
}
LABELS = {"like": Label(action="like", window="1m")}


def make() -> Trainer:
    model, plan = make_model(ModelSettings(dim=2, hidden=[3]), FEATURES, LABELS, seed=1)
    tables = {
        "item": Table(model.row_dim, optimizer=Adagrad(learning_rate=0.1, initial_accumulator=0.1), seed=1, name="item")
    }
    trainer = Trainer(model, plan, tables, LABELS, ExampleFormat(FEATURES, LABELS), TrainSettings())
    assert model.norm is not None
    model.norm.learn(torch.arange(20.0).view(10, 2), 5, 1000)
    return trainer


def readers() -> dict[str, tuple[bytes, Callable[[bytes], None]]]:
    trainer = make()
    return {
        "weights": (trainer.dense_weights(), lambda data: load_weights(make().model, data)),
        "state": (trainer.state(), lambda data: make().load_state(data)),
    }


@pytest.mark.parametrize("kind", ["weights", "state"])
def test_tensors_that_nobody_can_use_are_named(kind: str) -> None:
    good, read = readers()[kind]
    read(good)
    tensors = load(good)
    for name, tensor in tensors.items():
        wrong = [tensor.new_zeros((*tensor.shape, 2)), torch.zeros(1 << 12)]
        if tensor.is_floating_point() and tensor.numel():
            wrong += [torch.full_like(tensor, value) for value in (float("nan"), float("inf"))]
            wrong.append(torch.full_like(tensor, 1.0, dtype=torch.float16))
        for other in wrong:
            if name == "norm.at":
                continue
            with pytest.raises(UNREADABLE, match=name):
                read(save({**tensors, name: other}))
    some = next(iter(tensors))
    for changed in ({**tensors, "more": tensors[some]}, {name: tensors[name] for name in tensors if name != some}):
        with pytest.raises(UNREADABLE):
            read(save(changed))


@pytest.mark.parametrize("seed", SEEDS)
def test_bytes_that_were_changed_at_random_are_refused_or_are_finite(seed: int) -> None:
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    for good, read in readers().values():
        for _ in range(120):
            data = mutated(rng, good)
            try:
                read(data)
            except UNREADABLE:
                outcomes["refused"] += 1
            else:
                assert all(tensor.isfinite().all() for tensor in load(data).values())
                outcomes["taken"] += 1
    assert outcomes["refused"] and outcomes["taken"]
