"""The training worker: examples in, row and weight updates out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch.optim.adam import adam

from paramserver.table import Rows, Table
from streaming.columns import Columns
from streaming.examples import ExampleFormat, cut_per_step
from streaming.labels import Label
from streaming.log import EXAMPLES, LogReader
from trainer.guards import Guard, check_finite
from trainer.models import Loss, RankingModel, dump_weights
from trainer.newcomers import DefaultRows, Unseen
from trainer.prequential import Prequential
from trainer.rows import RowPlan
from trainer.settings import TrainSettings

_RECORDS_AT_ONCE = 64
_EXPIRY_BUDGET = 8192


class FlatAdam:
    """Adam (Kingma and Ba, ICLR 2015) over a model's weights laid out as one vector, of which they become views.

    One update of a few kilobytes instead of one a layer, by torch's functional fused form: at steps of a few examples the wrappers
    of ``torch.optim.Adam`` take longer than its arithmetic.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float) -> None:
        weights = list(model.parameters())
        self._learning_rate = learning_rate
        self.vector = torch.cat([weight.detach().reshape(-1) for weight in weights])
        self._gradient = torch.zeros_like(self.vector)
        self._mean = torch.zeros_like(self.vector)
        self._variance = torch.zeros_like(self.vector)
        self._steps = torch.zeros(())
        at = 0
        for weight in weights:
            part = slice(at, at + weight.numel())
            weight.data = self.vector[part].view_as(weight)
            weight.grad = self._gradient[part].view_as(weight)
            at = part.stop

    def step(self) -> None:
        """Update the weights by the gradients that came together since the last step."""
        adam(
            [self.vector],
            [self._gradient],
            [self._mean],
            [self._variance],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        self._gradient.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """What a restart needs besides the weights."""
        return {"mean": self._mean, "variance": self._variance, "steps": self._steps}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave; the weights are the model's to load."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


class _Step(NamedTuple):
    """What a step is about: the rows of its ids, float32 [ids, row_dim], and its examples' columns, targets, weights and rates."""

    rows: torch.Tensor
    columns: Columns
    targets: torch.Tensor
    weights: torch.Tensor
    rates: torch.Tensor | None


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
        self.tables = tables
        self.plan = plan
        self._loss = Loss(labels)
        self._guard = Guard(settings.guards, labels)
        self._format = example_format
        self._settings = settings
        self.weights = FlatAdam(model, settings.dense_learning_rate)
        self.examples = 0
        self.steps = 0

    def train(self, batch: pa.RecordBatch) -> None:
        """Train on a batch ordered by decision, one step per step of event time."""
        for step in cut_per_step(batch, self._settings.step_every, self._settings.max_rows):
            self._step(step)

    def _step(self, batch: pa.RecordBatch) -> None:
        count = batch.num_rows
        columns = self._format.columns(batch)
        now_ms = int(batch.column("decided_at")[count - 1].as_py())
        targets = torch.from_numpy(self._format.label_values(batch))
        weights = torch.tensor(batch.column("weight").to_numpy())
        rates = batch.column("sampling_rate").to_numpy()
        sampled = torch.tensor(rates) if (rates < 1).any() else None
        ids = self.plan.ids(columns)
        had_row = self._default_rows.with_rows(ids) if self._default_rows is not None else {}
        rows = self.plan.fetch(
            ids, self.model.row_dim, lambda table, keys, out: self.tables[table].lookup_or_insert(keys, now_ms, out)
        ).requires_grad_()
        outputs = self.model(self.plan.stack(rows, columns, count), self.plan.dense(columns, count))
        if self.prequential is not None:
            self.prequential.add(outputs.detach(), targets, sampled)
        loss = self._loss(outputs, targets, weights, sampled)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self._guard.is_on:
            self._guard.add(loss.detach(), outputs.detach())
        if self._default_rows is not None:
            served_at = batch.column("served_at").to_numpy()
            unseen = self._default_rows.find(ids, had_row, self.plan.examples(columns, count), served_at, now_ms)
            if unseen is not None:
                self._train_default_rows(_Step(rows.detach(), columns, targets, weights, sampled), unseen)
        self.weights.step()
        assert rows.grad is not None
        gradients = rows.grad.numpy()
        for part in ids:
            self.tables[part.table].apply(part.ids, gradients[part.start : part.stop], now_ms)
        self.examples += count
        self.steps += 1

    def _train_default_rows(self, step: _Step, unseen: Unseen) -> None:
        """Train what ids without a row read as on the examples that were served with it; nothing else learns from this."""
        assert self._default_rows is not None
        values = self._default_rows.values(unseen).requires_grad_()
        rows = step.rows.index_copy(0, torch.from_numpy(unseen.places), values)
        count, at = len(step.targets), torch.from_numpy(np.unique(unseen.examples))
        self.model.eval()
        outputs = self.model(
            self.plan.stack(rows, step.columns, count).index_select(1, at), self.plan.dense(step.columns, count)[at]
        )
        self.model.train()
        loss = self._loss(outputs, step.targets[at], step.weights[at], None if step.rates is None else step.rates[at])
        (gradients,) = torch.autograd.grad(loss, [values])
        self._default_rows.apply(unseen, gradients)

    def expire(self, now_ms: int) -> int:
        """Forget a bounded number of rows whose time is over; how many."""
        return sum(table.expire(now_ms, _EXPIRY_BUDGET) for table in self.tables.values())

    def check(self) -> None:
        """Raise `GuardedError` where these weights are not fit to be published; rows are looked at when they are."""
        self._guard.check()
        check_finite(self.weights.vector, self.model)

    def seal(self) -> dict[str, Rows]:
        """The rows changed and the ids expired since the last seal, by table."""
        return {name: table.seal() for name, table in self.tables.items()}

    def dense_weights(self) -> bytes:
        """What replicas serve with, as safetensors."""
        return dump_weights(self.model)

    def state(self) -> bytes:
        """Dense weights and optimizer, as safetensors: what recovery needs besides the rows."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimizer.{name}": tensor for name, tensor in self.weights.state().items()}
        if self._default_rows is not None:
            tensors |= {f"newcomers.{name}": tensor for name, tensor in self._default_rows.state().items()}
        data: bytes = save(tensors)
        return data

    def load_state(self, data: bytes) -> None:
        """Go on from what `state` gave; ``RuntimeError`` or ``KeyError`` where it is another model's."""
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "newcomers": {}}
        for name, tensor in load(data).items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.weights.load_state(parts["optimizer"])
        if self._default_rows is not None:
            self._default_rows.load_state(parts["newcomers"])


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
        self.offset = 0
        self.watermark = 0

    def step(self) -> bool:
        """Read and train once. Whether there was more to read."""
        records = self._log.read(EXAMPLES, self.partition, self.offset, _RECORDS_AT_ONCE)
        batches = []
        for record in records:
            batch, watermark = self._format.decode(record.value)
            if batch.num_rows:
                batches.append(batch)
            self.watermark = max(self.watermark, watermark)
            self.offset = record.offset + 1
        if batches:  # as one, since the joiner's records may part what belongs to one step
            batch = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
            decided = batch.column("decided_at").to_numpy()
            if (decided[1:] < decided[:-1]).any():  # the joiner worked off a backlog in several batches
                order = np.argsort(decided, kind="stable")
                batch, decided = batch.take(pa.array(order)), decided[order]
            self._trainer.train(batch)
            self._decided.append(decided)
            self._happened.append(batch.column("happened_at").to_numpy())
        return len(records) == _RECORDS_AT_ONCE

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
