"""Models against their formulas, written out; and one contract for every kind."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from basis.problems import BadFile
from paramserver.table import Adagrad, Normal, Table
from streaming.features.columns import Ragged
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.records.examples import ExampleColumns, ExampleFormat
from streaming.records.labels import Label
from trainer.losses import Loss
from trainer.models import DLRM, DeepFM, dump_weights, load_weights, make_model
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import Trainer

KINDS = ["deepfm", "dlrm"]
SPARSE: dict[str, Feature] = {"user": SparseFeature(column="u"), "item": SparseFeature(column="i")}
MIXED: dict[str, Feature] = {
    **SPARSE,
    "tags": SparseFeature(column="t", pool="mean", table="item"),
    "price": DenseFeature(kind="dense", column="p"),
    "vector": VectorFeature(kind="vector", column="v", size=2),
}
LIKE = Label(action="like", window="1m")
TIME = Label(action="play", window="1m", loss="squared", transform="log", scale=1000, weight=0.5)


def perceptron(layers: Any, values: Tensor) -> Tensor:
    for at, layer in enumerate(layers):
        values = values @ layer.weight.T + layer.bias
        if at < len(layers) - 1:
            values = values.clamp(min=0)
    return values


@pytest.mark.parametrize("dense_width", [0, 2])
@pytest.mark.parametrize("labels", [1, 3])
def test_deepfm_is_its_formula(dense_width: int, labels: int) -> None:
    torch.manual_seed(3)
    fields, count, dim = 4, 5, 3
    model = DeepFM(ModelSettings(dim=dim, hidden=[7, 5]), fields, dense_width, labels).double().eval()
    torch.nn.init.normal_(model.interactions)
    rows = torch.randn(fields, count, model.row_dim, dtype=torch.float64)
    dense = torch.randn(count, dense_width, dtype=torch.float64)
    normed = model.normed(dense).double()
    model.normed = lambda _: normed  # type: ignore[method-assign]
    out = model(rows, dense)
    assert model.row_dim == dim + labels
    assert out.shape == (count, labels)
    for one in range(count):
        embeddings = rows[:, one, :dim]
        deep = perceptron(model.deep, torch.cat((embeddings.reshape(-1), normed[one])))
        for label in range(labels):
            first_order = sum(rows[field, one, dim + label] for field in range(fields))
            pairs = sum(
                (embeddings[left] * embeddings[right] * model.interactions[:, label]).sum()
                for left, right in combinations(range(fields), 2)
            )
            linear = (model.linear.weight[label] * normed[one]).sum() if model.linear is not None else 0
            torch.testing.assert_close(out[one, label], first_order + pairs + deep[label] + linear)


def test_deepfm_begins_as_the_plain_machine() -> None:
    model = DeepFM(ModelSettings(dim=3, hidden=[4]), 2, 0, 2)
    assert (model.interactions == 1).all()


@pytest.mark.parametrize("dense_width", [0, 2])
def test_dlrm_is_its_formula(dense_width: int) -> None:
    torch.manual_seed(4)
    fields, count, dim, labels = 3, 4, 5, 2
    model = DLRM(ModelSettings(dim=dim, hidden=[6, 4]), fields, dense_width, labels).double().eval()
    rows = torch.randn(fields, count, dim, dtype=torch.float64)
    dense = torch.randn(count, dense_width, dtype=torch.float64)
    normed = model.normed(dense).double()
    model.normed = lambda _: normed  # type: ignore[method-assign]
    out = model(rows, dense)
    assert (model.row_dim, out.shape) == (dim, (count, labels))
    for one in range(count):
        vectors = [rows[field, one] for field in range(fields)]
        if model.tower is not None:
            vectors.append(perceptron(model.tower, normed[one]))
        dots = torch.stack([left @ right for left, right in combinations(vectors, 2)])
        expected = perceptron(model.over, torch.cat((dots, *vectors)))
        torch.testing.assert_close(out[one], expected)


@given(st.integers(1, 6), st.integers(0, 2**32))
def test_loss_is_a_weighted_sum_over_examples_and_labels(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = {"like": LIKE, "time": TIME, "share": Label(action="share", window="1m", weight=2)}
    outputs = torch.randn(count, 3, generator=generator)
    clicks = torch.randint(0, 2, (count, 3), generator=generator).float()
    targets = torch.stack((clicks[:, 0], torch.rand(count, generator=generator) * 5000, clicks[:, 2]), 1)
    weights = torch.rand(count, generator=generator) * 3
    expected = 0.0
    for out, target, weight in zip(outputs.double(), targets.double(), weights.double(), strict=True):
        like, share = torch.sigmoid(out[0]), torch.sigmoid(out[2])
        expected -= weight * (target[0] * like.log() + (1 - target[0]) * (1 - like).log())
        expected -= 2 * weight * (target[2] * share.log() + (1 - target[2]) * (1 - share).log())
        expected += 0.5 * weight * 0.5 * (out[1] - torch.log1p(target[1] / 1000)) ** 2
    torch.testing.assert_close(
        Loss(labels)(outputs, targets, weights).double(), torch.as_tensor(expected), rtol=1e-5, atol=1e-5
    )


@given(st.floats(0.05, 0.95), st.sampled_from([0.5, 0.1, 0.01]))
def test_the_loss_of_sampled_negatives_is_least_at_the_stream_s_probability(chance: float, rate: float) -> None:
    """One label: of n impressions of this chance, n * chance positives and n * (1 - chance) * rate negatives arrive."""
    outputs = torch.tensor([[np.log(chance / (1 - chance))]] * 2, dtype=torch.float64, requires_grad=True)
    arriving = torch.tensor([chance, (1 - chance) * rate], dtype=torch.float64)
    rates = torch.full((2,), rate, dtype=torch.float64)
    Loss({"like": LIKE})(outputs, torch.tensor([[1.0], [0.0]], dtype=torch.float64), arriving, rates).backward()
    assert outputs.grad is not None
    assert abs(outputs.grad.sum().item()) < 1e-9


@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.1]))
def test_with_several_labels_sampling_changes_no_gradient_in_the_mean(seed: int, rate: float) -> None:
    """However the labels hang together: what arrives, times what each stands for, is the stream."""
    generator = torch.Generator().manual_seed(seed)
    labels = {"like": LIKE, "time": TIME, "share": Label(action="share", window="1m", weight=2)}
    targets = torch.tensor([[like, time, share] for like in (0, 1) for time in (0, 900) for share in (0, 1)]).double()
    share = torch.rand(8, generator=generator, dtype=torch.float64)
    outputs = torch.randn(1, 3, generator=generator, dtype=torch.float64).expand(8, 3)
    kept = torch.where(targets.any(1), 1.0, torch.tensor(rate, dtype=torch.float64))
    whole = Loss(labels)(outputs, targets, share)
    sampled = Loss(labels)(outputs, targets, share * kept, torch.full((8,), rate, dtype=torch.float64))
    torch.testing.assert_close(sampled, whole, rtol=1e-9, atol=1e-12)


def test_loss_of_values_alone() -> None:
    loss = Loss({"time": Label(action="play", window="1m", loss="squared", scale=10)})
    found = loss(torch.tensor([[1.0], [2.0]]), torch.tensor([[30.0], [20.0]]), torch.tensor([1.0, 5.0]))
    assert found.item() == 0.5 * (1 - 3) ** 2


def test_predictions_are_in_the_unit_of_their_label() -> None:
    labels = {"like": LIKE, "time": TIME, "plain": Label(action="x", window="1m", loss="squared", scale=60)}
    values = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2500.0, 90.0]])
    outputs = torch.stack((values[:, 0], (values[:, 1] / 1000).log1p(), values[:, 2] / 60), 1)
    found = Loss(labels).predict(outputs)
    torch.testing.assert_close(found[:, 1:], values[:, 1:])
    torch.testing.assert_close(found[:, 0], torch.tensor([0.5, 0.7310586]))
    assert torch.isfinite(Loss(labels).predict(torch.full((1, 3), 1e6))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [SPARSE, MIXED], ids=["sparse", "mixed"])
def test_weights_go_into_a_file_and_back(kind: str, features: dict[str, Feature]) -> None:
    settings = ModelSettings(kind=kind, dim=4, hidden=[5])
    model, plan = make_model(settings, features, {"like": LIKE}, seed=1)
    again, _ = make_model(settings, features, {"like": LIKE}, seed=1)
    other, _ = make_model(settings, features, {"like": LIKE}, seed=2)
    assert dump_weights(model) == dump_weights(again), "equal seeds, equal weights"
    assert dump_weights(model) != dump_weights(other)
    dense = torch.randn(6, plan.dense_width)
    rows = torch.randn(plan.fields, 6, model.row_dim)
    model.train()(rows, dense)
    load_weights(other, "weights", dump_weights(model))
    assert dump_weights(other) == dump_weights(model)
    assert torch.equal(other.eval()(rows, dense), model.eval()(rows, dense)), (
        "what a replica serves is what was trained"
    )
    wider, _ = make_model(ModelSettings(kind=kind, dim=4, hidden=[6]), features, {"like": LIKE}, seed=1)
    with pytest.raises(BadFile, match=r"^weights: .*(allowed:|not there)"):
        load_weights(wider, "weights", dump_weights(model))


# Every kind of model learns, through the trainer and its tables.


def batch_of(example_format: ExampleFormat, rng: np.random.Generator, count: int, at: int) -> Any:
    """Users like the items of their own half; watch time grows with the price."""
    users, items = rng.integers(0, 20, count), rng.integers(0, 20, count)
    price = rng.random(count).astype(np.float32)
    lengths = rng.integers(0, 3, count)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
    columns = {
        "user": users,
        "item": items,
        "tags": Ragged(offsets, rng.integers(0, 20, offsets[-1])),
        "price": price,
        "vector": rng.normal(size=(count, 2)).astype(np.float32),
    }
    likes = (users % 2 == items % 2).astype(np.float32)
    times = np.full(count, at, np.int64)
    labels = np.stack((likes, price * 3000), 1).astype(np.float32)
    kept = {name: columns[name] for name in example_format.features}
    return example_format.build(kept, ExampleColumns([str(n) for n in range(count)], labels, times, times, times))


def make_trainer(kind: str, features: dict[str, Feature]) -> tuple[Trainer, ExampleFormat]:
    labels = {"like": LIKE, "time": TIME}
    example_format = ExampleFormat(features, labels)
    model, plan = make_model(ModelSettings(kind=kind, dim=4, hidden=[16]), features, labels, seed=1)
    tables = {
        name: Table(
            model.row_dim,
            optimizer=Adagrad(learning_rate=0.1, initial_accumulator=0.1),
            initializer=Normal(0, 0.1),
            seed=1,
            name=name,
        )
        for name in plan.tables
    }
    trainer = Trainer(model, plan, tables, labels, example_format, TrainSettings(dense_learning_rate=0.01))
    return trainer, example_format


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", [SPARSE, MIXED], ids=["sparse", "mixed"])
def test_every_kind_of_model_keeps_the_contract(kind: str, features: dict[str, Feature]) -> None:
    trainer, example_format = make_trainer(kind, features)
    rng = np.random.default_rng(0)
    losses = []
    for step in range(80):
        batch = batch_of(example_format, rng, 64, 60_000 * step)
        columns = example_format.columns(batch)
        ids = trainer.plan.ids(columns)
        rows = trainer.plan.fetch(ids, trainer.model.row_dim, trainer.tables.lookup).requires_grad_()
        outputs = trainer.model.eval()(trainer.plan.stack(rows, columns, 64), trainer.plan.dense(columns, 64))
        assert outputs.shape == (64, 2)
        assert outputs.dtype == torch.float32
        targets = torch.from_numpy(example_format.label_values(batch))
        loss = Loss({"like": LIKE, "time": TIME})(outputs, targets, torch.ones(64))
        (gradient,) = torch.autograd.grad(loss, rows)
        if step == 1:
            assert (gradient != 0).any(1).all(), "every row that an example touches is moved by it"
        losses.append(loss.item() / 64)
        trainer.model.train()
        trainer.train(batch)
    assert (trainer.examples, trainer.steps) == (64 * 80, 80)
    assert np.mean(losses[-5:]) < 0.5 * losses[0], losses[::10]
    sealed = trainer.seal()
    assert set(sealed) == {"user", "item"}
    assert sealed["user"].ids.tolist() == list(range(20)), "only rows of ids that came"


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_of_weight_nothing_moves_nothing(kind: str) -> None:
    trainer, example_format = make_trainer(kind, SPARSE)
    batch = batch_of(example_format, np.random.default_rng(0), 8, 0)
    at = batch.schema.names.index("weight")
    trainer.train(batch.set_column(at, "weight", pa.array(np.zeros(8, np.float32))))
    assert {len(table) for table in trainer.tables.values()} != {0}
    before = {name: table.export().embeddings.copy() for name, table in trainer.tables.items()}
    weights = trainer.dense_weights()
    trainer.train(batch.set_column(at, "weight", pa.array(np.zeros(8, np.float32))))
    assert all(np.array_equal(before[name], table.export().embeddings) for name, table in trainer.tables.items())
    assert trainer.dense_weights() == weights
