"""The ``tables`` and ``sync`` sections of the configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from basis.settings import PositiveDurationMs, Section
from paramserver.table import Adagrad, Normal, Table, Zeros

Positive = Annotated[float, Field(gt=0)]


class TableSettings(Section):
    """How the rows of a table are made, updated and forgotten."""

    learning_rate: Positive = 0.05
    """Of the row-wise Adagrad."""
    initial_accumulator: Annotated[float, Field(ge=0)] = 0.1
    initial_scale: Annotated[float, Field(ge=0)] = 0.01
    """Standard deviation of a new row."""
    expire_after: PositiveDurationMs | None = None
    """Rows that no example touched for this long are forgotten; without it, none is."""


class TablesSettings(TableSettings):
    """The ``tables`` section: settings of all tables, and by name what some do otherwise."""

    only: dict[str, TableSettings] = {}

    def of(self, name: str) -> TableSettings:
        """The settings of one table."""
        own = self.only.get(name)
        changed = {key: getattr(own, key) for key in own.model_fields_set} if own else {}
        return self.model_copy(update=changed)

    def make_replica(self, name: str, dim: int, seed: int) -> Table:
        """A replica's table: embeddings only, and no list of what changed, since a replica seals nothing."""
        return Table(dim, seed=seed, name=name, row_format="float32")

    def make(self, name: str, dim: int, seed: int) -> Table:
        """A new table of rows of ``dim`` values."""
        own = self.of(name)
        return Table(
            dim,
            optimizer=Adagrad(learning_rate=own.learning_rate, initial_accumulator=own.initial_accumulator),
            initializer=Normal(0.0, own.initial_scale) if own.initial_scale else Zeros(),
            seed=seed,
            name=name,
            expire_after_seconds=None if own.expire_after is None else -(-own.expire_after // 1000),
        )


class SyncSettings(Section):
    """The ``sync`` section: how often what was learned reaches the replicas."""

    sparse_every: PositiveDurationMs = 60_000
    dense_every: PositiveDurationMs = 86_400_000
    keep_deltas: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Deltas kept before they are folded into a new base."""
