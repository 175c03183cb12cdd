"""The dense part of the models. Rows come in as tensors and leave as gradients.

Every model maps ``rows`` float32 [fields, n, row_dim] and ``dense`` float32 [n, dense_width] to float32 [n, outputs]: one of a
class, its log odds, and as many of a value as its loss takes (`trainer.losses`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from streaming.features.kinds import Feature
from streaming.records.labels import Label
from trainer.losses import outputs_of
from trainer.norm import NEVER_NEGATIVE, RunningNorm
from trainer.rows import RowPlan
from trainer.settings import ModelSettings
from trainer.tensors import Form, decode_tensors


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
        names = {f"norm.{name}": dense for name, _ in self.norm.named_buffers()} if self.norm is not None else {}
        return {**names, **self._columns(fields, dense)}

    @abstractmethod
    def _columns(self, fields: list[str], dense: list[str]) -> dict[str, list[str]]: ...

    def normed(self, dense: Tensor) -> Tensor:
        """Dense features on one scale."""
        return self.norm(dense) if self.norm is not None else dense


class DeepFM(RankingModel):
    """Factorization machine and deep network over the same embeddings (Guo et al., IJCAI 2017).

    A row is an embedding followed by the id's first-order weight for each output. With several of them the pairwise interactions,
    summed per dimension as in the paper's equation, are weighted per output; the weights start at 1, the plain machine.
    """

    def __init__(self, settings: ModelSettings, fields: int, dense_width: int, outputs: int) -> None:
        super().__init__(dense_width)
        self.dim = settings.dim
        self.row_dim = settings.dim + outputs
        self.interactions = nn.Parameter(torch.ones(settings.dim, outputs))
        self.linear = nn.Linear(dense_width, outputs, bias=False) if dense_width else None
        self.deep = Layers([fields * settings.dim + dense_width, *settings.hidden, outputs])

    def _columns(self, fields: list[str], dense: list[str]) -> dict[str, list[str]]:
        embeddings = [f"{field}/{at}" for field in fields for at in range(self.dim)]
        return {"deep.0.weight": embeddings + dense, **({"linear.weight": dense} if dense else {})}

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        """[fields, n, row_dim] and [n, dense_width] to [n, outputs]."""
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

    def __init__(self, settings: ModelSettings, fields: int, dense_width: int, outputs: int) -> None:
        super().__init__(dense_width)
        self.row_dim = settings.dim
        self.tower = Layers([dense_width, settings.hidden[0], settings.dim]) if dense_width else None
        vectors = fields + bool(dense_width)
        self.register_buffer("pairs", torch.triu_indices(vectors, vectors, offset=1), persistent=False)
        self.over = Layers([vectors * settings.dim + self.pairs.shape[1], *settings.hidden, outputs])

    def _columns(self, fields: list[str], dense: list[str]) -> dict[str, list[str]]:
        vectors = [*fields, "/dense"] if dense else fields
        pairs = ["*".join(sorted((vectors[a], vectors[b]))) for a, b in self.pairs.T.tolist()]
        embeddings = [f"{vector}/{at}" for vector in vectors for at in range(self.row_dim)]
        return {"over.0.weight": pairs + embeddings, **({"tower.0.weight": dense} if dense else {})}

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        """[fields, n, row_dim] and [n, dense_width] to [n, outputs]."""
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
        model = _KINDS[settings.kind](settings, plan.fields, plan.dense_width, outputs_of(labels))
    return model, plan


def dump_weights(model: RankingModel) -> bytes:
    """The weights as safetensors."""
    data: bytes = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    return data


def weight_forms(model: RankingModel) -> dict[str, Form]:
    """What the tensors of a model's weights may be, by name."""
    never_negative = {f"norm.{name}" for name in NEVER_NEGATIVE}
    return {name: Form.of(tensor, 0 if name in never_negative else None) for name, tensor in model.state_dict().items()}


def load_weights(model: RankingModel, file: str, data: bytes) -> None:
    """Put weights from `dump_weights` into the model, in place; `BadFile`, and it stays as it was, where they do not fit it."""
    model.load_state_dict(decode_tensors(file, data, weight_forms(model)))
