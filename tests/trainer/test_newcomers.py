"""Learned default rows: on which impressions they are trained, and on nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paramserver.settings import TablesSettings
from streaming.features.columns import Column, Ragged
from streaming.features.kinds import Feature, SparseFeature
from streaming.records.examples import ExampleColumns, ExampleFormat
from streaming.records.labels import Label
from trainer import newcomers
from trainer.losses import Loss
from trainer.models import make_model
from trainer.newcomers import DefaultRows, Newcomers
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import Trainer

KEEP_MS = 1000
FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="u", scope="request"),
    "item": SparseFeature(column="i"),
    "seen": SparseFeature(column="s", split=",", pool="mean", table="item"),
}
LABELS = {"like": Label(action="like", window="1m")}
FORMAT = ExampleFormat(FEATURES, LABELS)


@given(st.lists(st.tuples(st.lists(st.integers(-5, 5), max_size=4), st.integers(0, 400)), max_size=20), st.data())
def test_who_was_new_when_it_was_served(admitted: list[tuple[list[int], int]], data: st.DataObject) -> None:
    found, since, now = Newcomers(KEEP_MS), dict[int, int](), 0
    for ids, later in admitted:
        now += later
        found.admit(np.array(ids, np.int64), now)
        since.update(dict.fromkeys(ids, now))
        again = Newcomers(KEEP_MS)
        again.load_state(found.state())
        found = again
    asked = data.draw(st.lists(st.tuples(st.integers(-6, 6), st.integers(now - KEEP_MS, now + 10)), max_size=10))
    wanted = [served_at < since.get(i, -KEEP_MS) for i, served_at in asked]
    ids, times = (np.array([pair[at] for pair in asked], np.int64) for at in (0, 1))
    assert found.were_new(ids, times).tolist() == wanted


def test_newcomers_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "_MOST_IDS", 10)
    found = Newcomers(KEEP_MS)
    for now in range(5):
        found.admit(np.arange(4) + 4 * now, now)
    assert found.state().shape == (2, 10)
    assert found.were_new(np.arange(20), np.full(20, -1)).tolist() == [False] * 10 + [True] * 10
    found.admit(np.array([99]), 5 + KEEP_MS)
    assert found.state().tolist() == [[99], [5 + KEEP_MS]], "what is older than any example is forgotten"


def make(default_row: str) -> Trainer:
    model, plan = make_model(ModelSettings(dim=2, hidden=[3]), FEATURES, LABELS, seed=1)
    item = {"admit_after": 2, "default_row": default_row, "optimizer": "sgd", "learning_rate": 1}
    settings = TablesSettings.model_validate({"only": {"item": item}})
    tables = {name: settings.make(name, model.row_dim, 1) for name in plan.tables}
    default_rows = DefaultRows({"item": tables["item"]}, 60_000) if default_row == "learned" else None
    return Trainer(model, plan, tables, LABELS, FORMAT, TrainSettings(), None, default_rows)


def examples(
    items: list[int], seen: list[list[int]], labels: list[int], served_at: list[int], now: int
) -> pa.RecordBatch:
    count = len(items)
    offsets = np.concatenate(([0], np.cumsum([len(each) for each in seen])))
    columns: dict[str, Column] = {
        "user": np.ones(count, np.int64),
        "item": np.array(items),
        "seen": Ragged(offsets.astype(np.int32), np.array([i for each in seen for i in each], np.int64)),
    }
    decided = np.full(count, now)
    rest = ExampleColumns(
        [f"{now}/{at}" for at in range(count)],
        np.array(labels, np.float32)[:, None],
        np.array(served_at),
        np.array(served_at),
        decided,
    )
    return FORMAT.build(columns, rest)


def test_a_default_row_learns_from_what_was_served_with_it_as_it_was_served() -> None:
    trainer = make("learned")
    trainer.train(examples([7, 7], [[7], []], [1, 1], [0, 10], 30_000))
    trainer.train(examples([8], [[7]], [1], [29_000], 40_000))
    assert trainer.tables["item"].contains(np.array([7, 8])).tolist() == [True, False]

    # 7 has its row since 30 s: the first example is of a time before it, the second is not; 8 and 9 have none.
    step = examples([7, 7, 8], [[], [7], [9, 7]], [0, 1, 0], [100, 35_000, 36_000], 50_000)
    item, user = trainer.tables["item"], trainer.tables["user"]
    model, before = copy.deepcopy(trainer.model), torch.from_numpy(item.default_row()[0])
    default = before.clone().requires_grad_()
    user_row, row_7 = (torch.from_numpy(np.asarray(t.lookup(np.array([i])))[0]) for t, i in ((user, 1), (item, 7)))
    none = torch.zeros_like(row_7)
    rows = torch.stack(
        [
            torch.stack([user_row, user_row]),
            torch.stack([default, default]),
            torch.stack([none, (default + row_7) / 2]),
        ]
    )
    loss = Loss(LABELS)(model(rows, torch.empty(2, 0)), torch.zeros(2, 1), torch.ones(2))
    (gradient,) = torch.autograd.grad(loss, [default])
    trainer.train(step)
    np.testing.assert_allclose(item.default_row()[0], (before - gradient).numpy(), rtol=1e-4, atol=1e-6)


def test_a_restart_knows_who_was_new() -> None:
    trainer, other = make("learned"), make("learned")
    trainer.train(examples([7, 7], [[], []], [1, 1], [0, 10], 30_000))
    other.load_state("state", trainer.state())
    for name, table in other.tables.items():
        table.restore(trainer.tables[name].export())
    late = examples([7], [[]], [0], [20_000], 40_000)
    for each in (trainer, other):
        each.train(late)
    assert other.state() == trainer.state()
    assert [table.default_row()[0].tobytes() for table in other.tables.values()] == [
        table.default_row()[0].tobytes() for table in trainer.tables.values()
    ]


def test_without_learned_default_rows_nothing_trains_them() -> None:
    trainer = make("fixed")
    trainer.train(examples([7, 8], [[9], []], [1, 1], [0, 10], 30_000))
    assert not trainer.tables["item"].default_row()[0].any()
