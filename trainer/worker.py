"""The training worker: examples in, row and weight updates out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from safetensors.torch import save

from paramserver.table import Rows, Table
from streaming.examples import ExampleFormat, cut_per_step
from streaming.labels import Label
from streaming.log import EXAMPLES, Log
from trainer.models import Loss, RankingModel, dump_weights
from trainer.rows import RowPlan
from trainer.settings import TrainSettings

_RECORDS_AT_ONCE = 64
_EXPIRY_BUDGET = 8192


class FlatWeights:
    """The trainable weights of a model as one vector, of which they become views, gradients too.

    The optimizer then makes one update of a few kilobytes instead of one a layer, which is most of its time at steps this small.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        weights = list(model.parameters())
        self.vector = torch.nn.Parameter(torch.cat([weight.detach().reshape(-1) for weight in weights]))
        self.vector.grad = torch.zeros_like(self.vector)
        at = 0
        for weight in weights:
            part = slice(at, at + weight.numel())
            weight.data = self.vector.data[part].view_as(weight)
            weight.grad = self.vector.grad[part].view_as(weight)
            at = part.stop

    def zero_gradients(self) -> None:
        """Forget the gradients of the last step."""
        assert self.vector.grad is not None
        self.vector.grad.zero_()


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
    ) -> None:
        self.model = model.train()
        self.tables = tables
        self._plan = plan
        self._loss = Loss(labels)
        self._format = example_format
        self._settings = settings
        self.weights = FlatWeights(model)
        self._optimizer = torch.optim.Adam([self.weights.vector], lr=settings.dense_learning_rate, fused=True)
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
        ids = self._plan.ids(columns)
        rows = self._plan.fetch(
            ids, self.model.row_dim, lambda table, keys, out: self.tables[table].lookup_or_insert(keys, now_ms, out)
        ).requires_grad_()
        outputs = self.model(self._plan.stack(rows, columns, count), self._plan.dense(columns, count))
        self.weights.zero_gradients()
        self._loss(outputs, targets, weights).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        assert rows.grad is not None
        gradients = rows.grad.numpy()
        for part in ids:
            self.tables[part.table].apply(part.ids, gradients[part.start : part.stop], now_ms)
        self.examples += count
        self.steps += 1

    def expire(self, now_ms: int) -> int:
        """Forget a bounded number of rows whose time is over; how many."""
        return sum(table.expire(now_ms, _EXPIRY_BUDGET) for table in self.tables.values())

    def seal(self) -> dict[str, Rows]:
        """The rows changed and the ids expired since the last seal, by table."""
        return {name: table.seal() for name, table in self.tables.items()}

    def dense_weights(self) -> bytes:
        """What replicas serve with, as safetensors."""
        return dump_weights(self.model)

    def state(self) -> bytes:
        """Dense weights and optimizer, as safetensors: what recovery needs besides the rows."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, slots in self._optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()})
        data: bytes = save(tensors)
        return data


class TrainWorker:
    """A trainer at work on a log: reads one partition of `examples`, and knows what its rows contain."""

    def __init__(self, log: Log, trainer: Trainer, example_format: ExampleFormat, partition: int = 0) -> None:
        self._log = log
        self._trainer = trainer
        self._format = example_format
        self._partition = partition
        self._decided: list[npt.NDArray[np.int64]] = []
        self.offset = 0
        self.watermark = 0

    def step(self) -> bool:
        """Read and train once. Whether there was more to read."""
        records = self._log.read(EXAMPLES, self._partition, self.offset, _RECORDS_AT_ONCE)
        for record in records:
            batch, watermark = self._format.decode(record.value)
            if batch.num_rows:
                self._trainer.train(batch)
                self._decided.append(batch.column("decided_at").to_numpy())
            self.watermark = max(self.watermark, watermark)
            self.offset = record.offset + 1
        return len(records) == _RECORDS_AT_ONCE

    def take_decided(self) -> npt.NDArray[np.int64]:
        """When the labels of the examples trained since the last call were decided (ms)."""
        decided, self._decided = self._decided, []
        return np.concatenate(decided) if decided else np.empty(0, np.int64)
