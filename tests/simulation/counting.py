"""The smallest model that can be trained, over a table whose rows count how often each example was trained on."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from paramserver.files import Files
from paramserver.table import SGD, Table
from serving.replica import Replica
from streaming.records.examples import ExampleFormat
from tests.simulation.traffic import FEATURES, LABELS, features
from trainer.models import RankingModel
from trainer.rows import RowPlan
from trainer.settings import TrainSettings
from trainer.worker import Trainer

EXPIRE_SECONDS, STEP_SECONDS = 300, 120
SETTINGS = TrainSettings(step_every=f"{STEP_SECONDS}s")
_PLAN = RowPlan({name: FEATURES[name] for name in ("user", "example")})


@cache
def format_of(size: int) -> ExampleFormat:
    """The examples of a config, by the size of its feature ``extra``."""
    return ExampleFormat(features(size), LABELS)


class Sum(RankingModel):
    """The sum of an impression's embeddings, and a weight for each label."""

    def __init__(self) -> None:
        super().__init__(0)
        self.row_dim = 1
        self.bias = torch.nn.Parameter(torch.zeros(len(LABELS)))

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        return rows[0] + rows[1] + self.bias

    def _columns(self, fields: list[str], dense: list[str]) -> dict[str, list[str]]:
        return {}


def make_trainer(example_format: ExampleFormat) -> Trainer:
    """``example`` keeps its rows, ``user`` forgets them after `EXPIRE_SECONDS`."""
    tables = {
        "user": Table(1, optimizer=SGD(learning_rate=0.1), expire_after_seconds=EXPIRE_SECONDS, candidates=64),
        "example": Table(1, optimizer=SGD(learning_rate=0.1), candidates=64),
    }
    return Trainer(Sum(), _PLAN, tables, LABELS, example_format, SETTINGS)


def make_replica(files: Files) -> Replica:
    tables = {name: Table(1, row_format="float32") for name in ("user", "example")}
    return Replica(files, Sum(), _PLAN, tables, LABELS)
