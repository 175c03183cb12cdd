"""The dense part of the models. Rows come in as tensors and leave as gradients; there is one output per label.

Every model maps ``rows`` float32 [fields, n, row_dim] and ``dense`` float32 [n, dense_width] to float32 [n, labels]: logits of
classes, plain numbers for values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from streaming.features import Feature
from streaming.labels import Label
from trainer.norm import RunningNorm
from trainer.rows import RowPlan
from trainer.settings import ModelSettings


class Layers(nn.ModuleList):
    """Linear layers with ReLU between them; as an ``nn.Sequential`` they take twice the time on small batches."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__(nn.Linear(before, after) for before, after in pairwise(widths))

    def run(self, values: Tensor) -> Tensor:
        """[n, first width] to [n, last width]."""
        last = len(self) - 1
        for at, layer in enumerate(self):
            assert isinstance(layer, nn.Linear)
            values = functional.linear(values, layer.weight, layer.bias)
            if at < last:
                values = values.relu_()
        return values


class RankingModel(nn.Module, ABC):
    """What all models share. ``row_dim`` is the number of values that the model wants in a row."""

    row_dim: int

    def __init__(self, dense_width: int) -> None:
        super().__init__()
        self.norm = RunningNorm(dense_width) if dense_width else None

    def columns(self, fields: list[str], dense: list[str]) -> dict[str, list[str]]:
        """What the last dimension of each weight stands for whose size depends on the features, named ``fields`` and ``dense``."""
        names = {"norm.count": dense, "norm.mean": dense, "norm.squares": dense} if dense else {}
        return {**names, **self._columns(fields, dense)}

    @abstractmethod
    def _columns(self, fields: list[str], dense: list[str]) -> dict[str, list[str]]: ...

    def normed(self, dense: Tensor) -> Tensor:
        """Dense features on one scale."""
        return self.norm(dense) if self.norm is not None else dense


class DeepFM(RankingModel):
    """Factorization machine and deep network over the same embeddings (Guo et al., IJCAI 2017).

    A row is an embedding followed by the id's first-order weight for each label. With several labels the pairwise interactions,
    summed per dimension as in the paper's equation, are weighted per label; the weights start at 1, the plain machine.
    """

    def __init__(self, settings: ModelSettings, fields: int, dense_width: int, labels: int) -> None:
        super().__init__(dense_width)
        self.dim = settings.dim
        self.row_dim = settings.dim + labels
        self.interactions = nn.Parameter(torch.ones(settings.dim, labels))
        self.linear = nn.Linear(dense_width, labels, bias=False) if dense_width else None
        self.deep = Layers([fields * settings.dim + dense_width, *settings.hidden, labels])

    def _columns(self, fields: list[str], dense: list[str]) -> dict[str, list[str]]:
        embeddings = [f"{field}/{at}" for field in fields for at in range(self.dim)]
        return {"deep.0.weight": embeddings + dense, **({"linear.weight": dense} if dense else {})}

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        """[fields, n, row_dim] and [n, dense_width] to [n, labels]."""
        dense = self.normed(dense)
        totals = rows.sum(0)
        embeddings = rows.narrow(2, 0, self.dim)
        total = totals.narrow(1, 0, self.dim)
        first_order = totals.narrow(1, self.dim, self.row_dim - self.dim)
        # Pairs are half of (sum)^2 - sum of squares; sign and half go into alpha, since every operation counts here.
        negated = torch.addcmul((embeddings * embeddings).sum(0), total, total, value=-1)
        out: Tensor = torch.addmm(first_order, negated, self.interactions, alpha=-0.5)
        flat = embeddings.transpose(0, 1).reshape(rows.shape[1], -1)
        if self.linear is None:
            return out + self.deep.run(flat)
        linear: Tensor = self.linear(dense)
        return out + self.deep.run(torch.cat((flat, dense), 1)) + linear


class DLRM(RankingModel):
    """Dense tower, pairwise dots, over-arch (Naumov et al., arXiv:1906.00091).

    The over-arch also sees the embeddings themselves, so that a pipeline without dense features loses nothing by it.
    """

    pairs: Tensor

    def __init__(self, settings: ModelSettings, fields: int, dense_width: int, labels: int) -> None:
        super().__init__(dense_width)
        self.row_dim = settings.dim
        self.tower = Layers([dense_width, settings.hidden[0], settings.dim]) if dense_width else None
        vectors = fields + bool(dense_width)
        self.register_buffer("pairs", torch.triu_indices(vectors, vectors, offset=1), persistent=False)
        self.over = Layers([vectors * settings.dim + self.pairs.shape[1], *settings.hidden, labels])

    def _columns(self, fields: list[str], dense: list[str]) -> dict[str, list[str]]:
        vectors = [*fields, "/dense"] if dense else fields
        pairs = ["*".join(sorted((vectors[a], vectors[b]))) for a, b in self.pairs.T.tolist()]
        embeddings = [f"{vector}/{at}" for vector in vectors for at in range(self.row_dim)]
        return {"over.0.weight": pairs + embeddings, **({"tower.0.weight": dense} if dense else {})}

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        """[fields, n, row_dim] and [n, dense_width] to [n, labels]."""
        vectors = rows.transpose(0, 1)
        if self.tower is not None:
            vectors = torch.cat((vectors, self.tower.run(self.normed(dense)).unsqueeze(1)), 1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        out: Tensor = self.over.run(torch.cat((dots, vectors.flatten(1)), 1))
        return out


_KINDS = {"deepfm": DeepFM, "dlrm": DLRM}


def make_model(
    settings: ModelSettings, features: Mapping[str, Feature], labels: Mapping[str, Label], seed: int
) -> tuple[RankingModel, RowPlan]:
    """A model for a pipeline and the plan by which it gets its rows; equal seeds give equal weights."""
    plan = RowPlan(features)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _KINDS[settings.kind](settings, plan.fields, plan.dense_width, len(labels))
    return model, plan


class Loss:
    """The sum over examples and labels, each by its loss and weight. A sum, so that an example moves its rows by as much in
    a small step as in a large one.

    Where negatives were sampled, the model still learns the whole stream, so what it predicts needs no correction later. With one
    class label, sampling adds -log(rate) to every log odds (He et al., ADKDD 2014), so the loss takes the output with that
    added: exact, and no example weighs more than another. With several labels, or values, a label's log odds move by an amount that
    depends on the others, so every kept negative weighs 1 / rate instead: right whatever the labels have to do with each other.
    """

    def __init__(self, labels: Mapping[str, Label]) -> None:
        self._weights = torch.tensor([label.weight for label in labels.values()])
        self._classes = [at for at, label in enumerate(labels.values()) if not label.is_value]
        self._values = {at: label for at, label in enumerate(labels.values()) if label.is_value}

    def __call__(self, outputs: Tensor, targets: Tensor, weights: Tensor, rates: Tensor | None = None) -> Tensor:
        """``outputs`` and ``targets`` [n, labels], ``weights`` and sampling ``rates`` [n] (None: all 1), to one number."""
        if rates is not None:
            if self._classes == [0] and not self._values:
                outputs = outputs - rates.log().unsqueeze(1)
            else:
                weights = weights * left_out(targets, rates)
        weights = weights.unsqueeze(1) * self._weights
        if not self._values:
            return _log_loss(outputs, targets, weights)
        at = self._classes
        total = _log_loss(outputs[:, at], targets[:, at], weights[:, at]) if at else outputs.new_zeros(())
        for value, label in self._values.items():
            error = outputs[:, value] - to_scale(label, targets[:, value])
            total = total + (0.5 * error * error * weights[:, value]).sum()
        return total


def left_out(targets: Tensor, rates: Tensor) -> Tensor:
    """How many examples of the whole stream each one stands for, [n]: a kept negative for 1 / rate of them."""
    return torch.where(targets.any(1), 1.0, 1 / rates)


def _log_loss(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets, weights, reduction="sum")


def to_scale(label: Label, values: Tensor) -> Tensor:
    """A label's values as the model is trained on them."""
    values = values / label.scale
    return values.clamp(min=0).log1p() if label.transform == "log" else values


def predictions(labels: Mapping[str, Label], outputs: Tensor) -> Tensor:
    """Outputs as people read them, [n, labels]: probabilities of classes, values in the label's own unit."""
    columns = []
    for at, label in enumerate(labels.values()):
        out = outputs[:, at]
        if not label.is_value:
            columns.append(out.sigmoid())
        else:
            columns.append((out.clamp(max=30).expm1() if label.transform == "log" else out) * label.scale)
    return torch.stack(columns, dim=1)


def dump_weights(model: RankingModel) -> bytes:
    """The weights as safetensors."""
    data: bytes = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    return data


def load_weights(model: RankingModel, data: bytes) -> None:
    """Put weights from `dump_weights` into the model, in place; ``RuntimeError`` where they are another model's."""
    model.load_state_dict(load(data))
