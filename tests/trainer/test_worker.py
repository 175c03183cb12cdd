"""The trainer's dense optimizer, its steps, and what it reads from a log."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load
from torch import nn

from basis.problems import GuardedError, UnreadableError
from paramserver.settings import TablesSettings
from streaming.embedded_log import EmbeddedLog
from streaming.features.kinds import DenseFeature, Feature, SparseFeature
from streaming.kafka.settings import MAX_OUTPUT_BYTES
from streaming.log import EXAMPLES
from streaming.records.events import MAX_RECORD_BYTES, encode
from streaming.records.examples import ExampleColumns, ExampleFormat, ExamplesRecord
from streaming.records.identity import example_id
from streaming.records.labels import Label
from streaming.records.unreadable_records import IN_A_ROW
from trainer.flat_adam import FlatAdam
from trainer.guards import check_finite
from trainer.models import dump_weights, load_weights, make_model
from trainer.prequential import Prequential
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import Trainer, TrainWorker

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
    load_weights(model, "weights", dump_weights(other))
    expected = torch.cat([weight.detach().reshape(-1) for weight in other.parameters()])
    assert torch.equal(flat.vector.detach(), expected)


def test_only_weights_that_are_no_numbers_are_refused() -> None:
    model, _ = make_model(ModelSettings(dim=2, hidden=[3]), FEATURES, LABELS, seed=1)
    flat = FlatAdam(model, 0.01)
    flat.vector[0] = 1e30  # whose square is none that 32 bits hold
    check_finite(flat.vector, model)
    flat.vector[0] = torch.nan
    with pytest.raises(GuardedError, match="no finite numbers: interactions"):
        check_finite(flat.vector, model)


def make(
    step_every: str = "60s",
    max_rows: int = 8192,
    labels: dict[str, Label] = LABELS,
    features: dict[str, Feature] = FEATURES,
    prequential: Prequential | None = None,
) -> tuple[Trainer, ExampleFormat]:
    example_format = ExampleFormat(features, labels)
    model, plan = make_model(ModelSettings(dim=2, hidden=[3]), features, labels, seed=1)
    tables = {name: TablesSettings(expire_after="1h").make(name, model.row_dim, 1) for name in plan.tables}
    settings = TrainSettings(step_every=step_every, max_rows=max_rows)
    return Trainer(model, plan, tables, labels, example_format, settings, prequential), example_format


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


def test_examples_are_trained_in_one_order_however_the_joiner_cut_them(tmp_path: Path) -> None:
    """By decision, request and place: that of one record, whatever records and transactions they came in."""
    trainer, example_format = make()
    trained: list[str] = []

    def noted(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        trained.extend(batch.column("example_id").to_pylist())
        return np.empty(0, np.int64)

    trainer.train = noted  # type: ignore[method-assign]
    log = EmbeddedLog(tmp_path / "log", durable=False)
    worker = TrainWorker(log, trainer, example_format)
    decisions = [("x.", 500, "8"), ("x%", 1000, "1"), ("x.", 1000, "9"), ("x/1", 1000, "73"), ("a", 2000, "5")]
    in_order = [example_id(request, place) for request, _, places in decisions for place in places]
    for seed in range(30):
        random.Random(seed).shuffle(decisions)
        for request, at, places in decisions:
            batch = examples(example_format, [at] * len(places))
            ids = pa.array([example_id(request, place) for place in places])
            batch = batch.set_column(0, batch.schema.field(0), ids)
            records = [batch] if seed % 2 else [batch.slice(row, 1) for row in range(len(places))]
            log.append(EXAMPLES, 0, [example_format.encode(record, 1) for record in records])
        worker.step()
        assert trained == in_order
        trained.clear()
    log.close()


def test_its_state_is_whole() -> None:
    trainer, example_format = make()
    trainer.train(examples(example_format, [0, 0]))
    tensors = load(trainer.state())
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensors[f"model.{name}"], tensor)
    assert any(name.startswith("optimizer.") for name in tensors)


SPENT = {"spent": Label(action="buy", window="1m", loss="squared")}


def spending(example_format: ExampleFormat, values: list[float], decided_at: int, first: int = 0) -> pa.RecordBatch:
    at, times = np.arange(first, first + len(values)), np.full(len(values), decided_at)
    rest = ExampleColumns([f"e{n}" for n in at], np.array(values, np.float32)[:, None], times, times, times)
    return example_format.build({"user": at % 3, "item": at}, rest)


def same_rows(one: Trainer, other: Trainer) -> bool:
    return all(
        table.export().embeddings.tobytes() == other.tables[name].export().embeddings.tobytes()
        for name, table in one.tables.items()
    )


@pytest.mark.parametrize("bad", [[3], [0], [1, 4, 7], [8, 9]])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38, -1e19])
def test_only_the_examples_that_spoil_a_step_are_left_out(bad: list[int], value: float) -> None:
    trainer, example_format = make(labels=SPENT)
    values = [float(at) for at in range(10)]
    left_out = trainer.train(spending(example_format, [value if at in bad else values[at] for at in range(10)], 1000))
    assert left_out.tolist() == bad
    assert (trainer.examples, trainer.left_out) == (10 - len(bad), len(bad))
    clean, _ = make(labels=SPENT)
    batch = spending(example_format, values, 1000)
    clean.train(batch.take(pa.array([at for at in range(10) if at not in bad])))
    assert trainer.dense_weights() == clean.dense_weights(), "as if they had not been there"
    trainer.check()
    trainer.train(spending(example_format, values, 61_000))
    assert trainer.examples == 20 - len(bad), "the next step goes on"


def test_what_spoils_the_gradient_by_the_row_it_reads_is_found_by_halving() -> None:
    trainer, example_format = make()
    row = np.full((1, trainer.model.row_dim), 3e19, np.float32)
    trainer.train(examples(example_format, [0] * 6))
    trainer.tables["item"].upsert(np.array([4]), row)
    assert trainer.train(examples(example_format, [61_000] * 6)).tolist() == [4]
    trainer.check()


def test_a_step_of_nothing_else_changes_nothing() -> None:
    trainer, example_format = make(labels=SPENT)
    before = trainer.dense_weights()
    assert trainer.train(spending(example_format, [float("inf")] * 3, 1000)).tolist() == [0, 1, 2]
    assert trainer.dense_weights() == before
    assert trainer.examples == 0


def test_a_model_that_can_use_nothing_is_not_published() -> None:
    trainer, example_format = make(labels=SPENT)
    trainer.train(spending(example_format, [float("inf")] * 150 + [1.0] * 50, 1000))
    with pytest.raises(GuardedError, match="150 of 200 examples"):
        trainer.check()


def test_what_is_left_out_is_named_by_offset_and_row(tmp_path: Path) -> None:
    trainer, example_format = make(labels=SPENT)
    log = EmbeddedLog(tmp_path / "log", durable=False)
    worker = TrainWorker(log, trainer, example_format)
    inf = float("inf")
    batches = [
        spending(example_format, [1.0, inf, 2.0], 61_000),
        example_format.empty(),
        spending(example_format, [3.0, 4.0, inf], 1000, first=10),  # a backlog: decided before what stands before it
    ]
    log.append(EXAMPLES, 0, [example_format.encode(batch, 1) for batch in batches])
    worker.step()
    letters = worker.take_refused()
    assert [(letter.topic, letter.partition, letter.offset, letter.reason) for letter in letters] == [
        (EXAMPLES, 0, 2, "not_finite"),
        (EXAMPLES, 0, 0, "not_finite"),
    ]
    assert [letter.detail.split(":")[0] for letter in letters] == ["row 2, example e12", "row 1, example e1"]
    assert example_format.decode(letters[0].payload)[0].column("example_id").to_pylist() == ["e12"]
    assert worker.take_refused() == []
    log.close()


def unsound(example_format: ExampleFormat) -> list[tuple[bytes, str, str]]:
    """Records that nobody can read or should use, with reason and detail."""
    batch = spending(example_format, [1.0], 1000)
    other = ExampleFormat(FEATURES, {name: label.model_copy(update={"window": 1}) for name, label in SPENT.items()})

    def with_column(name: str, value: object) -> bytes:
        column = pa.array([value], batch.schema.field(name).type)
        return example_format.encode(
            batch.set_column(batch.schema.get_field_index(name), batch.schema.field(name), column), 1
        )

    return [
        (b"\xc1", "malformed", "MessagePack data is malformed"),
        (b"", "malformed", "truncated"),
        (encode(ExamplesRecord(version=7, watermark=1, batch=b"")), "version", "record version 7; allowed: 3"),
        (encode(ExamplesRecord(version=3, watermark=1, batch=b"\xff" * 40)), "malformed", "no sound Arrow stream"),
        (other.encode(other.empty(), 1), "schema", "made under schema"),
        (with_column("decided_at", 1 << 62), "malformed", "column decided_at: 4611686018427387904 to"),
        (with_column("served_at", -1), "malformed", "column served_at: -1 to -1; allowed: 0 to"),
        (with_column("sampling_rate", float("nan")), "malformed", "column sampling_rate: nan to nan; allowed: 0 to 1"),
        (with_column("weight", None), "malformed", "column weight: a value is missing"),
        (msgspec.msgpack.encode({"version": 3, "watermark": 1 << 63, "batch": b""}), "malformed", "watermark"),
    ]


def test_what_cannot_be_read_is_a_dead_letter_and_training_goes_on(tmp_path: Path) -> None:
    trainer, example_format = make(labels=SPENT)
    log = EmbeddedLog(tmp_path / "log", durable=False)
    worker = TrainWorker(log, trainer, example_format, partition=3)
    good = [
        example_format.encode(spending(example_format, [1.0, 2.0], at * 1000, first=2 * at), at) for at in range(11)
    ]
    bad = unsound(example_format)
    log.append(
        EXAMPLES,
        3,
        [record for pair in zip(good, [*(payload for payload, _, _ in bad), good[-1]], strict=True) for record in pair],
    )
    worker.step()
    assert (trainer.examples, worker.offset, worker.watermark) == (2 * 12, 22, 10)
    letters = worker.take_refused()
    assert [(letter.topic, letter.partition, letter.offset, letter.payload) for letter in letters] == [
        (EXAMPLES, 3, 2 * at + 1, payload) for at, (payload, _, _) in enumerate(bad)
    ]
    for letter, (_, reason, detail) in zip(letters, bad, strict=True):
        assert letter.reason == reason
        assert letter.detail.startswith("not trained on: ") and detail in letter.detail
    assert worker.take_refused() == []
    log.close()


def test_a_letter_fits_into_a_record_whatever_it_is_about(tmp_path: Path) -> None:
    trainer, example_format = make()
    log = EmbeddedLog(tmp_path / "log", durable=False)
    worker = TrainWorker(log, trainer, example_format)
    log.append(EXAMPLES, 0, [b"\xc1" * MAX_OUTPUT_BYTES])
    worker.step()
    (letter,) = worker.take_refused()
    assert (len(letter.payload), letter.cut_from) == (MAX_RECORD_BYTES, MAX_OUTPUT_BYTES)
    assert len(encode(letter)) < MAX_OUTPUT_BYTES
    log.close()


def test_where_nothing_can_be_read_it_is_the_reader_that_is_wrong(tmp_path: Path) -> None:
    trainer, example_format = make()
    log = EmbeddedLog(tmp_path / "log", durable=False)
    worker = TrainWorker(log, trainer, example_format)
    good = example_format.encode(example_format.empty(), 1)
    log.append(EXAMPLES, 0, [b"\xc1"] * IN_A_ROW + [good] + [b"\xc1"] * IN_A_ROW)
    while worker.step():
        pass
    assert len(worker.take_refused()) == 2 * IN_A_ROW
    log.append(EXAMPLES, 0, [b"\xc1"])
    with pytest.raises(UnreadableError, match=rf"examples/0, offset {2 * IN_A_ROW + 1}: .*config of the joiners"):
        worker.step()
    log.close()


def test_one_price_far_outside_mutes_nothing() -> None:
    """Clicks depend on a price of 0 to 10, and one row has a million: what comes later is ordered as before."""
    priced: dict[str, Feature] = {**FEATURES, "price": DenseFeature(kind="dense", column="p")}
    newest = Prequential(LABELS, 4000)
    trainer, example_format = make(features=priced, prequential=newest)
    rng, at = np.random.default_rng(1), np.arange(100)
    for step in range(120):
        price = rng.uniform(0, 10, 100).astype(np.float32)
        likes = (rng.random(100) < 1 / (1 + np.exp(7.5 - 1.5 * price))).astype(np.float32)
        price[7] = 1e6 if step == 40 else price[7]
        times = np.full(100, step * 60_000)
        rest = ExampleColumns([f"{step}.{n}" for n in at], likes[:, None], times, times, times)
        trainer.train(example_format.build({"user": at % 3, "item": at % 5, "price": price}, rest))
    auc = newest.metrics()["like"]["auc"]
    assert auc is not None and auc > 0.95
