"""The training worker: examples in, row and weight updates out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import save

from basis.problems import BadFile, GuardedError
from paramserver.table import Rows, Table
from paramserver.tables import BatchIds, Tables
from streaming.features.columns import Columns
from streaming.log import EXAMPLES, LogReader, Record
from streaming.records.events import BadRecord, DeadLetter
from streaming.records.examples import ExampleFormat
from streaming.records.labels import Label
from streaming.records.training_order import cut_per_step, training_order
from streaming.records.unreadable_records import UnreadableRecords
from trainer.flat_adam import FlatAdam
from trainer.guards import Guard, check_finite
from trainer.losses import Loss
from trainer.models import RankingModel, dump_weights
from trainer.newcomers import DefaultRows, Unseen
from trainer.prequential import Prequential
from trainer.rows import Lookup, RowPlan
from trainer.settings import TrainSettings
from trainer.state import read_state

_log = logging.getLogger(__name__)
_RECORDS_AT_ONCE = 64
_EXPIRY_BUDGET = 8192
_MAX_GRADIENT = 1e15
"""A larger one tells of a wrong value: optimizers keep its square in 32 bits, and would hardly move for long after it."""
_FEW_LEFT_OUT = 100
NOT_FINITE = "not_finite"
"""The reason of the dead letters of examples that were not trained on."""
_PAYLOADS_AT_ONCE = 1000


class _Step(NamedTuple):
    """A step's inputs and what came of them: ``rows`` float32 [ids, row_dim] of its ``ids``, ``outputs`` and ``targets``
    [n, labels], ``weights`` and sampling ``rates`` [n] (None: all 1)."""

    ids: BatchIds
    columns: Columns
    rows: torch.Tensor
    outputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    rates: torch.Tensor | None
    loss: torch.Tensor


class _Counts(NamedTuple):
    examples: int
    left_out: int


class Trainer:
    """Updates the rows that examples touch in ``tables``, and the dense weights of ``model``. Single-threaded."""

    def __init__(
        self,
        model: RankingModel,
        plan: RowPlan,
        tables: Mapping[str, Table],
        labels: Mapping[str, Label],
        example_format: ExampleFormat,
        settings: TrainSettings,
        prequential: Prequential | None = None,
        default_rows: DefaultRows | None = None,
    ) -> None:
        self.model = model.train()
        self.prequential = prequential
        self._default_rows = default_rows
        self.tables = Tables({name: tables[name] for name in plan.tables})
        self.plan = plan
        self._loss = Loss(labels)
        self._guard = Guard(settings.guards, labels)
        self._format = example_format
        self._settings = settings
        self.weights = FlatAdam(model, settings.dense_learning_rate)
        self.examples = 0
        self.left_out = 0
        """Examples that were not trained on, since no step could use their loss or gradient."""
        self.steps = 0
        self._checked = _Counts(0, 0)
        self.first_at: int | None = None
        """Event time (ms) of the first example that this model learned from; of a model with new features, from then on."""

    def train(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Train on a batch ordered by decision, one step per step of event time.

        Which of its examples were left out, ascending: those that make their step's loss or gradient no number that a step can use.
        """
        left_out, start = [], 0
        for step in cut_per_step(batch, self._settings.step_every, self._settings.max_rows):
            left_out.append(self._step(step) + start)
            start += step.num_rows
        return np.concatenate([np.empty(0, np.int64), *left_out])

    def _step(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        now_ms = int(batch.column("decided_at")[batch.num_rows - 1].as_py())
        if self.model.norm is not None:
            dense = self.plan.dense(self._format.columns(batch), batch.num_rows)
            self.model.norm.learn(dense, now_ms, self._settings.norm_half_life)
        had_row = self._had_row(batch)
        step = self._forward(batch, lambda ids, out: self.tables.lookup_or_insert(ids, now_ms, out))
        causes = np.empty(0, np.int64)
        if not self._backward(step):
            causes = self._causes(batch, step)
            self.left_out += len(causes)
            of_causes = np.isin(self.plan.examples(step.columns, batch.num_rows), causes)
            parts = step.ids.parts()
            had_row = {p.table: had_row[p.table][~of_causes[p.start : p.stop]] for p in parts if p.table in had_row}
            batch = batch.take(pa.array(np.setdiff1d(np.arange(batch.num_rows), causes)))
            if not batch.num_rows:
                self.weights.forget_gradient()
                return causes
            step = self._forward(batch, self.tables.lookup)
            self._backward(step)
        if self.prequential is not None:
            self.prequential.add(step.outputs.detach(), step.targets, step.rates)
            served, revisions = self._format.served(batch), batch.column("revision").to_numpy()
            self.prequential.add_served(served, revisions, step.targets, step.rates)
        if self._guard.is_on:
            self._guard.add(step.loss.detach(), step.outputs.detach())
        if self._default_rows is not None:
            examples, served_at = self.plan.examples(step.columns, batch.num_rows), batch.column("served_at").to_numpy()
            unseen = self._default_rows.find(step.ids, had_row, examples, served_at, now_ms)
            if unseen is not None:
                self._train_default_rows(step, unseen)
        self.weights.step()
        assert step.rows.grad is not None
        self.tables.apply(step.ids, step.rows.grad, now_ms)
        if self.first_at is None:
            self.first_at = int(batch.column("decided_at")[0].as_py())
        self.examples += batch.num_rows
        self.steps += 1
        return causes

    def _had_row(self, batch: pa.RecordBatch) -> dict[str, npt.NDArray[np.bool_]]:
        if self._default_rows is None:
            return {}
        return self._default_rows.with_rows(self.plan.ids(self._format.columns(batch)))

    def _forward(self, batch: pa.RecordBatch, lookup: Lookup) -> _Step:
        """What the model says of a batch, and the loss of that."""
        columns, count = self._format.columns(batch), batch.num_rows
        targets = torch.from_numpy(self._format.label_values(batch))
        weights = torch.from_numpy(batch.column("weight").to_numpy(zero_copy_only=False, writable=True))
        if (of_config := self.plan.weights(columns)) is not None:
            weights = weights * of_config
        sampling = batch.column("sampling_rate").to_numpy()
        rates = torch.tensor(sampling) if (sampling < 1).any() else None
        ids = self.plan.ids(columns)
        rows = self.plan.fetch(ids, self.model.row_dim, lookup).requires_grad_()
        outputs = self.model(self.plan.stack(rows, columns, count), self.plan.dense(columns, count))
        loss = self._loss(outputs, targets, weights, rates)
        return _Step(ids, columns, rows, outputs, targets, weights, rates, loss)

    def _backward(self, step: _Step) -> bool:
        """Take the gradients of a step again. Whether optimizers can use them: they are squared and added up there."""
        self.weights.forget_gradient()
        step.loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert step.rows.grad is not None
        of_rows = step.rows.grad.view(-1)
        squared = self.weights.squared_gradient() + torch.dot(of_rows, of_rows)
        return math.isfinite(step.loss.item()) and squared.item() < _MAX_GRADIENT**2

    def _causes(self, batch: pa.RecordBatch, step: _Step) -> npt.NDArray[np.int64]:
        """The examples of an unusable step without which it is usable: by what their own loss says, else by halving.

        None where the weights themselves are no numbers: then every example would be one, and `check` refuses to publish them.
        """
        if not self.weights.vector.isfinite().all():
            return np.empty(0, np.int64)
        outputs = step.outputs.detach().requires_grad_()
        (own,) = torch.autograd.grad(self._loss(outputs, step.targets, step.weights, step.rates), [outputs])
        fine = (outputs.isfinite() & (own.abs() < _MAX_GRADIENT)).all(1).numpy()
        suspects = [np.flatnonzero(fine)]
        causes = [np.flatnonzero(~fine)]
        while suspects:
            part = suspects.pop()
            if not len(part) or self._backward(self._forward(batch.take(pa.array(part)), self.tables.lookup)):
                continue
            if len(part) == 1:
                causes.append(part)
            else:
                suspects += np.array_split(part, 2)
        return np.sort(np.concatenate(causes))

    def _train_default_rows(self, step: _Step, unseen: Unseen) -> None:
        """Train what ids without a row read as on the examples that were served with it; nothing else learns from this."""
        assert self._default_rows is not None
        values = self._default_rows.values(unseen).requires_grad_()
        rows = step.rows.detach().index_copy(0, torch.from_numpy(unseen.places), values)
        count, at = len(step.targets), torch.from_numpy(np.unique(unseen.examples))
        outputs = self.model(
            self.plan.stack(rows, step.columns, count).index_select(1, at), self.plan.dense(step.columns, count)[at]
        )
        loss = self._loss(outputs, step.targets[at], step.weights[at], None if step.rates is None else step.rates[at])
        (gradients,) = torch.autograd.grad(loss, [values])
        self._default_rows.apply(unseen, gradients)

    def expire(self, now_ms: int) -> int:
        """Forget a bounded number of rows whose time is over; how many."""
        return self.tables.expire(now_ms, _EXPIRY_BUDGET)

    def check(self) -> None:
        """Raise `GuardedError` where these weights are not fit to be published; rows are looked at when they are."""
        examples, left_out = self.examples - self._checked.examples, self.left_out - self._checked.left_out
        self._checked = _Counts(self.examples, self.left_out)
        if left_out > max(examples, _FEW_LEFT_OUT):
            raise GuardedError(
                f"{left_out} of {left_out + examples} examples have a loss or gradient that is no number; "
                "allowed: less than half, since then it is the model's fault"
            )
        self._guard.check()
        check_finite(self.weights.vector, self.model)

    def seal(self) -> dict[str, Rows]:
        """The rows changed and the ids expired since the last seal, by table."""
        return self.tables.seal()

    def dense_weights(self) -> bytes:
        """What replicas serve with, as safetensors."""
        return dump_weights(self.model)

    def state(self) -> bytes:
        """Dense weights, optimizer and `first_at`, as safetensors: what recovery needs besides the rows."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.weights.state().items()}
        if self.first_at is not None:
            tensors["since.first_at"] = torch.tensor(self.first_at)
        if self._default_rows is not None:
            tensors |= {f"newcomers.{name}": tensor for name, tensor in self._default_rows.state().items()}
        if self.model.norm is not None:
            tensors |= {f"norm.{name}": tensor for name, tensor in self.model.norm.learning().items()}
        data: bytes = save(tensors)
        return data

    def load_state(self, file: str, data: bytes) -> None:
        """Go on from what `state` gave; `BadFile`, and this trainer may be half another, where it is none of this trainer's."""
        names = ("model", "optimizer", "newcomers", "norm", "since")
        parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
        for name, tensor in read_state(file, data, self.model, self.tables).items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.weights.load_state(parts["optimizer"])
        first_at = parts["since"].get("first_at")  # not there before anything was learned
        self.first_at = None if first_at is None else int(first_at)
        try:
            if self._default_rows is not None:
                self._default_rows.load_state(parts["newcomers"])
            if self.model.norm is not None:
                self.model.norm.go_on(parts["norm"])
        except ValueError as error:
            raise BadFile(f"{file}: {error}") from None


class Times(NamedTuple):
    """Event times of n examples, int64 [n] in ms: of the newest event in each, and of the decision of its last label."""

    happened: npt.NDArray[np.int64]
    decided: npt.NDArray[np.int64]


class TrainWorker:
    """A trainer at work on a log: reads one partition of `examples`, and knows what its rows contain."""

    def __init__(self, log: LogReader, trainer: Trainer, example_format: ExampleFormat, partition: int = 0) -> None:
        self._log = log
        self._trainer = trainer
        self._format = example_format
        self.partition = partition
        self._decided: list[npt.NDArray[np.int64]] = []
        self._happened: list[npt.NDArray[np.int64]] = []
        self._unreadable = UnreadableRecords("not trained on", partition)
        self._left_out: list[DeadLetter] = []
        self._passed_over: list[range] = []
        self.offset = 0
        self.watermark = 0

    def step(self, at_most: int = _RECORDS_AT_ONCE) -> bool:
        """Read ``at_most`` records and train on them as one. Whether there may be more to read.

        What comes of them does not depend on how the joiner has cut what it sent into records and transactions.
        `UnreadableError` where no record can be read any more; nothing of this step is trained on then.
        """
        records = self._log.read(EXAMPLES, self.partition, self.offset, at_most)
        batches, offsets = [], []
        for record in records:
            batch = self._batch_in(record)
            if batch is not None and batch.num_rows:
                batches.append(batch)
                offsets.append(record.offset)
            self.offset = record.offset + 1
        if batches:  # as one, since the joiner's records may part what belongs to one step
            batch, order = batches[0], None
            if len(batches) > 1:
                batch = pa.concat_batches(batches)
                order = training_order(batch, np.cumsum([each.num_rows for each in batches[:-1]], dtype=np.int64))
            if order is not None:
                batch = batch.take(pa.array(order))
            decided = batch.column("decided_at").to_numpy()
            left_out = self._trainer.train(batch)
            if len(left_out):
                places = left_out if order is None else order[left_out]
                self._leave_out(batch.take(pa.array(left_out)), places, offsets, [each.num_rows for each in batches])
            self._decided.append(decided)
            self._happened.append(batch.column("happened_at").to_numpy())
        return len(records) == at_most

    def _batch_in(self, record: Record) -> pa.RecordBatch | None:
        """The examples in a record; None where it is passed over, or cannot be read and is a dead letter."""
        if any(record.offset in part for part in self._passed_over):
            return None
        try:
            batch, watermark = self._format.decode(record.value)
        except BadRecord as bad:
            self._unreadable.add(record, bad)
            return None
        self._unreadable.was_read()
        self.watermark = max(self.watermark, watermark)
        return batch

    def pass_over(self, offsets: range) -> None:
        """Never read the records at these offsets. What the rows contain already stays in them."""
        place = f"{EXAMPLES}/{self.partition}, offsets {offsets[0]} to {offsets[-1]}"
        if offsets[-1] < self.offset:
            _log.warning("%s: already trained on, in the version that ends at offset %d", place, self.offset)
        else:
            _log.warning("%s: passed over", place)
        self._passed_over.append(offsets)

    def _leave_out(
        self, left_out: pa.RecordBatch, places: npt.NDArray[np.int64], offsets: list[int], sizes: list[int]
    ) -> None:
        """Make dead letters of examples whose ``places`` are in the records at ``offsets``, taken as one."""
        ends = np.cumsum(sizes)
        for at, place in enumerate(places.tolist()):
            record = int(np.searchsorted(ends, place, side="right"))
            row = place - int(ends[record]) + sizes[record]
            example = left_out.slice(at, 1)
            self._left_out.append(
                DeadLetter(
                    topic=EXAMPLES,
                    partition=self.partition,
                    offset=offsets[record],
                    reason=NOT_FINITE,
                    detail=f"row {row}, example {example.column('example_id')[0].as_py()}: its loss or gradient is no number "
                    "that a step of training can use",
                    payload=self._format.encode(example, self.watermark) if at < _PAYLOADS_AT_ONCE else b"",
                )
            )

    def take_refused(self) -> list[DeadLetter]:
        """Dead letters since the last call: of records that could not be read, and of examples that were left out, each named by
        offset and row of its record."""
        taken, self._left_out = self._unreadable.take() + self._left_out, []
        return taken

    def take_decided(self) -> npt.NDArray[np.int64]:
        """When the labels of the examples trained since the last call were decided (ms)."""
        return self.take_times().decided

    def take_times(self) -> Times:
        """Event times of the examples trained since the last call (ms)."""
        return Times(_take(self._happened), _take(self._decided))


def _take(parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    taken = np.concatenate(parts) if parts else np.empty(0, np.int64)
    parts.clear()
    return taken
