"""What share of a training step goes to rows? DeepFM (Guo et al., IJCAI 2017) on rows of the table, and on torch's EmbeddingBag.

    python -m benchmarks.step [--rows 10000000] [--batches 2048,8192] [--rounds 5]

20 sparse features share one table; dim 16; the same dense model, ids and labels on both sides, in turns, one thread.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parts.fbgemm import FbgemmTable, fbgemm_table
from paramserver.table import Adagrad, Table

FEATURES, DIM, HIDDEN = 20, 16, (256, 128)


class DeepFM(nn.Module):
    """Embeddings float32 [batch, FEATURES, DIM] to logits [batch]: the pairwise products of a factorization machine and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [FEATURES * DIM, *HIDDEN]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.deep = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, embeddings: Tensor) -> Tensor:
        total = embeddings.sum(1)
        pairs = 0.5 * (total * total - (embeddings * embeddings).sum(1)).sum(1)
        deep: Tensor = self.deep(embeddings.flatten(1))
        return pairs + deep.squeeze(1)


class OnTable:
    """A step whose rows are in the table; `row_seconds` sums up the time in it."""

    def __init__(self, rows: int) -> None:
        self.table = Table(DIM, optimizer=Adagrad(initial_accumulator=0.1))
        ids = np.arange(rows)
        out = np.empty((1 << 16, DIM), np.float32)
        for at in range(0, rows, len(out)):
            self.table.lookup_or_insert(ids[at : at + len(out)], 0, out[: len(ids[at : at + len(out)])])
        self.model = DeepFM()
        self.optimizer = torch.optim.Adagrad(self.model.parameters(), 0.01)
        self.row_seconds = 0.0

    def step(self, ids: Tensor, labels: Tensor) -> None:
        start = time.perf_counter()
        rows = torch.empty(len(ids), DIM)
        self.table.lookup_or_insert(ids, 1000, rows)
        self.row_seconds += time.perf_counter() - start
        leaf = rows.view(-1, FEATURES, DIM).requires_grad_()
        self.optimizer.zero_grad()
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(self.model(leaf), labels))
        self.optimizer.step()
        start = time.perf_counter()
        assert leaf.grad is not None
        self.table.apply(ids, leaf.grad.view(-1, DIM), 1000)
        self.row_seconds += time.perf_counter() - start


class OnBag:
    """The same step on torch.nn.EmbeddingBag with sparse gradients and torch.optim.Adagrad: row numbers, no hashing."""

    def __init__(self, rows: int) -> None:
        self.bag = nn.EmbeddingBag(rows, DIM, mode="sum", sparse=True)
        self.model = DeepFM()
        self.optimizers = [torch.optim.Adagrad(part.parameters(), 0.01) for part in (self.bag, self.model)]

    def step(self, ids: Tensor, labels: Tensor) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        rows = self.bag(ids, torch.arange(len(ids))).view(-1, FEATURES, DIM)
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(self.model(rows), labels))
        for optimizer in self.optimizers:
            optimizer.step()


class OnFbgemm:
    """The same step on fbgemm's table with row-wise Adagrad: row numbers, no hashing."""

    def __init__(self, table: FbgemmTable) -> None:
        self.table = table
        self.model = DeepFM()
        self.optimizer = torch.optim.Adagrad(self.model.parameters(), 0.01)

    def step(self, ids: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        rows = self.table.lookup(ids).view(-1, FEATURES, DIM)
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(self.model(rows), labels))
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--batches", default="2048,8192")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    on_table = OnTable(options.rows)
    fbgemm = fbgemm_table(options.rows, DIM)
    others = {"EmbeddingBag + Adagrad": OnBag(options.rows)} | ({"fbgemm": OnFbgemm(fbgemm)} if fbgemm else {})
    for batch in map(int, options.batches.split(",")):
        inputs = [(torch.randint(0, options.rows, (batch * FEATURES,)), torch.rand(batch).round()) for _ in range(4)]
        for side in (on_table, *others.values()):
            side.step(*inputs[0])
        shares, rates = [], []
        ratios: dict[str, list[float]] = {name: [] for name in others}
        for _ in range(options.rounds):
            on_table.row_seconds = 0.0
            table_seconds = _seconds(on_table, inputs)
            shares.append(on_table.row_seconds / table_seconds)
            rates.append(len(inputs) * batch / table_seconds)
            for name, other in others.items():
                ratios[name].append(_seconds(other, inputs) / table_seconds)
        times = ", ".join(f"{median(found):.2f} times {name}" for name, found in ratios.items())
        print(
            f"batch {batch}: rows take {median(shares):.2f} of a step; {median(rates):,.0f} examples/s; {times}",
            flush=True,
        )


def _seconds(side: OnTable | OnBag | OnFbgemm, inputs: list[tuple[Tensor, Tensor]]) -> float:
    start = time.perf_counter()
    for ids, labels in inputs:
        side.step(ids, labels)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
