"""The trainer's dense optimizer, its steps, and what it reads from a log."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load
from torch import nn

from paramserver.settings import TablesSettings
from streaming.examples import ExampleColumns, ExampleFormat
from streaming.features import Feature, SparseFeature
from streaming.labels import Label
from streaming.log import EXAMPLES, EmbeddedLog
from trainer.models import dump_weights, load_weights, make_model
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import FlatAdam, Trainer, TrainWorker

FEATURES: dict[str, Feature] = {"user": SparseFeature(column="u"), "item": SparseFeature(column="i")}
LABELS = {"like": Label(action="like", window="1m")}


def test_flat_weights_are_the_model_s_and_move_as_adam_moves_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False))
    plain = copy.deepcopy(model)
    flat = FlatAdam(model, 0.01)
    adam = torch.optim.Adam(plain.parameters(), lr=0.01)
    storage = flat.vector.untyped_storage().data_ptr()
    assert flat.vector.shape == (3 * 4 + 4 + 4 * 2,)
    for _ in range(20):
        values, targets = torch.randn(5, 3), torch.randn(5, 2)
        for one in (model, plain):
            ((one(values) - targets) ** 2).sum().backward()
        flat.step()
        adam.step()
        adam.zero_grad()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert ours.untyped_storage().data_ptr() == storage, "weights stay views of the vector"
        assert ours.grad is not None
        assert not ours.grad.any(), "a step begins without the gradients of the last"
    assert torch.equal(torch.cat([weight.detach().reshape(-1) for weight in model.parameters()]), flat.vector.detach())


def test_loading_weights_keeps_the_views() -> None:
    settings = ModelSettings(dim=2, hidden=[3])
    model, _ = make_model(settings, FEATURES, LABELS, seed=1)
    other, _ = make_model(settings, FEATURES, LABELS, seed=2)
    flat = FlatAdam(model, 0.01)
    load_weights(model, dump_weights(other))
    expected = torch.cat([weight.detach().reshape(-1) for weight in other.parameters()])
    assert torch.equal(flat.vector.detach(), expected)


def make(step_every: str = "60s", max_rows: int = 8192) -> tuple[Trainer, ExampleFormat]:
    example_format = ExampleFormat(FEATURES, LABELS)
    model, plan = make_model(ModelSettings(dim=2, hidden=[3]), FEATURES, LABELS, seed=1)
    tables = {name: TablesSettings(expire_after="1h").make(name, model.row_dim, 1) for name in plan.tables}
    settings = TrainSettings(step_every=step_every, max_rows=max_rows)
    return Trainer(model, plan, tables, LABELS, example_format, settings), example_format


def examples(example_format: ExampleFormat, decided_at: list[int], first: int = 0) -> pa.RecordBatch:
    at = np.arange(first, first + len(decided_at))
    times = np.array(decided_at, np.int64)
    rest = ExampleColumns([str(n) for n in at], (at % 2).astype(np.float32)[:, None], times, times, times)
    return example_format.build({"user": at % 3, "item": at}, rest)


def test_one_step_a_minute_of_event_time_whatever_the_batches() -> None:
    decided = [0, 59_999, 60_000, 60_001, 180_000]
    whole, example_format = make()
    whole.train(examples(example_format, decided))
    assert (whole.steps, whole.examples) == (3, 5)
    parts, _ = make()
    for start, stop in ((0, 2), (2, 4), (4, 5)):
        parts.train(examples(example_format, decided[start:stop], start))
    assert parts.steps == 3
    assert parts.dense_weights() == whole.dense_weights()
    for name, table in whole.tables.items():
        assert table.export().embeddings.tobytes() == parts.tables[name].export().embeddings.tobytes()


def test_a_large_minute_takes_several_steps() -> None:
    trainer, example_format = make(max_rows=4)
    trainer.train(examples(example_format, [5] * 10))
    assert (trainer.steps, trainer.examples) == (3, 10)


def test_rows_nobody_touched_go_and_come_back_as_new() -> None:
    trainer, example_format = make()
    trainer.train(examples(example_format, [0, 0]))
    trainer.train(examples(example_format, [1_800_000], first=2))
    assert trainer.expire(3_500_000) == 0
    assert trainer.expire(3_600_000) == 4
    assert trainer.tables["item"].export().ids.tolist() == [2]
    sealed = trainer.seal()
    assert sealed["item"].expired.tolist() == [0, 1]
    assert sealed["user"].expired.tolist() == [0, 1]


def test_a_worker_knows_what_its_rows_contain(tmp_path: Path) -> None:
    trainer, example_format = make()
    log = EmbeddedLog(tmp_path / "log", durable=False)
    worker = TrainWorker(log, trainer, example_format)
    assert not worker.step()
    log.append(
        EXAMPLES,
        0,
        [
            example_format.encode(examples(example_format, [1000, 2000]), 3000),
            example_format.encode(example_format.empty(), 9000),
            example_format.encode(examples(example_format, [70_000], first=2), 80_000),
        ],
    )
    assert not worker.step()
    assert (worker.offset, worker.watermark, trainer.examples) == (3, 80_000, 3)
    assert worker.take_decided().tolist() == [1000, 2000, 70_000]
    assert worker.take_decided().tolist() == []
    log.append(EXAMPLES, 0, [example_format.encode(example_format.empty(), 10)] * 200)
    assert worker.step()
    while worker.step():
        pass
    assert (worker.offset, worker.watermark) == (203, 80_000), "a watermark never goes back"
    log.close()


def test_its_state_is_whole() -> None:
    trainer, example_format = make()
    trainer.train(examples(example_format, [0, 0]))
    tensors = load(trainer.state())
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], tensor)
    assert any(name.startswith("optimizer.") for name in tensors)
