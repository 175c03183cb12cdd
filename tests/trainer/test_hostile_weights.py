"""Whatever is in a file of dense weights or of a trainer's state, with a checksum that is right: it is refused by tensor."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save

from basis.problems import BadFile
from paramserver.table import Adagrad, Table
from streaming.features.kinds import DenseFeature, Feature, SparseFeature
from streaming.records.examples import ExampleFormat
from streaming.records.labels import Label
from trainer.growth import grow_state
from trainer.models import load_weights, make_model
from trainer.newcomers import DefaultRows
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import Trainer

FEATURES: dict[str, Feature] = {
    "item": SparseFeature(column="i"),
    "price": DenseFeature(kind="dense", column="p"),
    "age": DenseFeature(kind="dense", column="a"),
}
LABELS = {"like": Label(action="like", window="1m")}


MODEL = ModelSettings(dim=2, hidden=[3])
FORM = json.dumps(
    {
        "features": {name: feature.model_dump(mode="json") for name, feature in FEATURES.items()},
        "labels": {name: label.model_dump(mode="json") for name, label in LABELS.items()},
        "model": MODEL.model_dump(mode="json"),
    }
)


def make(**more: Feature) -> Trainer:
    features = FEATURES | more
    model, plan = make_model(MODEL, features, LABELS, seed=1)
    tables = {
        name: Table(model.row_dim, optimizer=Adagrad(learning_rate=0.1, initial_accumulator=0.1), seed=1, name=name)
        for name in plan.tables
    }
    newcomers = DefaultRows({"item": tables["item"]}, 1000)
    return Trainer(
        model, plan, tables, LABELS, ExampleFormat(features, LABELS), TrainSettings(), default_rows=newcomers
    )


def trained() -> Trainer:
    trainer = make()
    assert trainer.model.norm is not None and trainer._default_rows is not None
    trainer.model.norm.learn(torch.arange(20.0).view(10, 2), 5, 1000)
    trainer._default_rows.load_state({"item": torch.tensor([[3, 7], [1, 2]])})
    trainer.first_at = 5
    return trainer


def grow(data: bytes) -> None:
    trainer = make(hour=SparseFeature(column="h"))
    trainer.load_state("it", grow_state("it", data, FORM, trainer.model, trainer.plan))


def readers() -> dict[str, tuple[bytes, Callable[[bytes], None]]]:
    """What is read, and how."""
    trainer = trained()
    return {
        "weights": (trainer.dense_weights(), lambda data: load_weights(make().model, "it", data)),
        "state": (trainer.state(), lambda data: make().load_state("it", data)),
        "state of fewer features": (trainer.state(), grow),
    }


def wrong_ones(name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Tensors that nobody can use in its place."""
    wrong = [tensor.new_zeros((*tensor.shape, 2)), torch.zeros(1 << 12)]
    wrong += [tensor.to(dtype) for dtype in (torch.int8, torch.bool, torch.float16, torch.float8_e4m3fn)]
    wrong.append(tensor.to(torch.float64 if tensor.dtype != torch.float64 else torch.float32))
    if tensor.is_floating_point():
        wrong += [torch.full_like(tensor, value) for value in (float("nan"), float("inf"))]
    if name.endswith(("norm.count", "norm.squares", "norm.apart", "variance", "steps", "seen")):
        wrong.append(torch.full_like(tensor, -1))
    if name.endswith(("at", "seen")):
        wrong.append(torch.full_like(tensor, 1 << 60))
    if name.startswith("newcomers."):
        wrong.append(tensor.flip(1))
    if name == "norm.first":
        wrong.append(tensor[:1])
    return wrong


@pytest.mark.parametrize("kind", ["weights", "state", "state of fewer features"])
def test_tensors_that_nobody_can_use_are_named(kind: str) -> None:
    good, read = readers()[kind]
    read(good)
    tensors = load(good)
    for name, tensor in tensors.items():
        for other in wrong_ones(name, tensor):
            with pytest.raises(BadFile, match=f"^it: {name}"):
                read(save({**tensors, name: other}))
    some = min(tensors)  # a weight; only what training adds may be left out
    for changed, named in (
        ({**tensors, "more": tensors[some].clone()}, "more"),
        ({**tensors, "optimizer.more": tensors[some].clone()}, "optimizer.more"),
        ({name: tensors[name] for name in tensors if name != some}, some),
        ({name: tensors[name] for name in tensors if name != "norm.at"}, "norm.at" if "norm.at" in tensors else ""),
    ):
        if named:
            with pytest.raises(BadFile, match=f"^it: {named}"):
                read(save(changed))
