"""Rows by plan against plain ``torch.nn.EmbeddingBag`` modules: the same embeddings and the same gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from paramserver.tables import BatchIds
from streaming.features.columns import Column, Ragged
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from trainer.rows import RowPlan

IDS, DIM = 10, 3
FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="u"),
    "price": DenseFeature(kind="dense", column="p"),
    "item": SparseFeature(column="i", table="items"),
    "seen": SparseFeature(column="s", pool="mean", table="items"),
    "words": SparseFeature(column="w", pool="sum"),
    "vector": VectorFeature(kind="vector", column="v", size=2),
    "last": SparseFeature(column="l", table="items"),
    "first_word": SparseFeature(column="f", pool="first", table="words"),
}
BY_TABLE = {"user": ["user"], "items": ["item", "seen", "last"], "words": ["words", "first_word"]}
"""Embeddings stand by table, in the order in which features name them."""

one = st.integers(0, IDS - 1)
several = st.lists(one, max_size=4)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, list[Any]]:
    count = draw(st.integers(1, 5))
    values = {}
    for name, feature in FEATURES.items():
        if isinstance(feature, SparseFeature):
            values[name] = draw(st.lists(several if feature.is_list else one, min_size=count, max_size=count))
    return values


def columns_of(values: dict[str, list[Any]]) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for name, given_values in values.items():
        feature = FEATURES[name]
        if isinstance(feature, SparseFeature) and feature.is_list:
            offsets = np.cumsum([0, *map(len, given_values)]).astype(np.int64)
            columns[name] = Ragged(offsets, np.array([item for each in given_values for item in each], np.int64))
        else:
            columns[name] = np.array(given_values, np.int64)
    return columns


def through_plan(values: dict[str, list[Any]], weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Any]:
    """Embeddings by the plan, and a function that sums row gradients by table as the parameter server does."""
    plan = RowPlan(FEATURES)
    columns = columns_of(values)
    count = len(values["user"])
    ids = plan.ids(columns)

    def lookup(batch: BatchIds, out: Any) -> None:
        for part in batch.parts():
            out[part.start : part.stop] = weights[part.table].detach().numpy()[part.ids]

    rows = plan.fetch(ids, DIM, lookup).requires_grad_()

    def gradients() -> dict[str, Tensor]:
        assert rows.grad is not None
        summed = {}
        for part in ids.parts():
            summed[part.table] = torch.zeros(IDS, DIM).index_add_(
                0, torch.from_numpy(part.ids), rows.grad[part.start : part.stop]
            )
        return summed

    return plan.stack(rows, columns, count), weights, gradients


def through_modules(values: dict[str, list[Any]], weights: dict[str, Tensor]) -> Tensor:
    embeddings = []
    for table, names in BY_TABLE.items():
        for name in names:
            feature = FEATURES[name]
            assert isinstance(feature, SparseFeature)
            if not feature.is_list:
                embeddings.append(weights[table][torch.tensor(values[name])])
                continue
            assert feature.pool is not None
            bag = nn.EmbeddingBag(IDS, DIM, mode=feature.pool)
            bag.weight = weights[table]  # type: ignore[assignment]
            flat = torch.tensor([item for each in values[name] for item in each], dtype=torch.int64)
            offsets = torch.tensor([0, *np.cumsum(list(map(len, values[name])))[:-1]])
            embeddings.append(bag(flat, offsets))
    return torch.stack(embeddings)


@given(batches(), st.integers(0, 2**32))
def test_the_same_embeddings_and_gradients_as_modules(values: dict[str, list[Any]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {table: nn.Parameter(torch.randn(IDS, DIM, generator=generator)) for table in ("user", "items", "words")}
    found, _, gradients = through_plan(values, weights)  # type: ignore[arg-type]
    expected = through_modules(values, weights)  # type: ignore[arg-type]
    assert found.shape == (6, len(values["user"]), DIM)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(found.shape, generator=generator)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    for table, gradient in gradients().items():
        torch.testing.assert_close(gradient, weights[table].grad)


def test_a_plan_without_lists_needs_no_pooling() -> None:
    plan = RowPlan(
        {"a": SparseFeature(column="a"), "b": SparseFeature(column="b", table="a"), "c": SparseFeature(column="c")}
    )
    columns = {"a": np.array([1, 2]), "b": np.array([2, 3]), "c": np.array([9, 9])}
    ids = plan.ids(columns)
    assert [(part.table, part.ids.tolist(), part.start, part.stop) for part in ids.parts()] == [
        ("a", [1, 2, 2, 3], 0, 4),
        ("c", [9, 9], 4, 6),
    ]
    calls = []

    def lookup(batch: BatchIds, out: Any) -> None:
        calls.append(batch.tables)
        out[:] = batch.ids[:, None]

    stacked = plan.stack(plan.fetch(ids, 2, lookup), columns, 2)
    assert calls == [["a", "c"]], "one call for all tables"
    assert stacked.tolist() == [[[1, 1], [2, 2]], [[2, 2], [3, 3]], [[9, 9], [9, 9]]]


def test_dense_and_vector_features_stand_side_by_side() -> None:
    plan = RowPlan(FEATURES)
    assert (plan.fields, plan.dense_width, plan.tables) == (6, 3, ["user", "items", "words"])
    columns = {
        "price": np.array([1, 2], np.float32),
        "vector": np.array([[3, 4], [5, 6]], np.float32),
    }
    assert plan.dense(columns, 2).tolist() == [[1, 3, 4], [2, 5, 6]]
    assert RowPlan({"a": SparseFeature(column="a")}).dense({}, 2).shape == (2, 0)


@pytest.mark.parametrize("impressions", [0, 2])
def test_nothing_to_pool(impressions: int) -> None:
    plan = RowPlan({"words": SparseFeature(column="w", pool="mean")})
    columns = {"words": Ragged(np.zeros(impressions + 1, np.int64), np.empty(0, np.int64))}
    rows = plan.fetch(plan.ids(columns), DIM, lambda batch, out: None).requires_grad_()
    stacked = plan.stack(rows, columns, impressions)
    assert stacked.tolist() == torch.zeros(1, impressions, DIM).tolist()
    stacked.sum().backward()  # type: ignore[no-untyped-call]
