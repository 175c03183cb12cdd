"""The ``tables`` and ``sync`` sections of the configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from basis.settings import PositiveDurationMs, Section
from paramserver.precision import Precision
from paramserver.table import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    Constant,
    Initializer,
    Momentum,
    Normal,
    Optimizer,
    Table,
    Uniform,
    Zeros,
)

_LEAST, _MOST = 1e-30, 1e30  # tables calculate in 32 bits
Positive = Annotated[float, Field(gt=0, le=_MOST)]
NotNegative = Annotated[float, Field(ge=0, le=_MOST)]
Number = Annotated[float, Field(ge=-_MOST, le=_MOST)]
Epsilon = Annotated[float, Field(ge=_LEAST, le=_MOST)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class SgdSettings(Section):
    """Gradient descent."""

    kind: Literal["sgd"]

    def make(self, learning_rate: float, clip: float | None) -> Optimizer:
        """The optimizer."""
        return SGD(learning_rate=learning_rate, clip=clip)


class AdagradSettings(Section):
    """Adagrad with one accumulator a row, or as ``adagrad`` one an element."""

    kind: Literal["row_adagrad", "adagrad"] = "row_adagrad"
    initial_accumulator: NotNegative = 0.1
    eps: Epsilon = 1e-10

    def make(self, learning_rate: float, clip: float | None) -> Optimizer:
        """The optimizer."""
        return Adagrad(
            learning_rate=learning_rate,
            clip=clip,
            initial_accumulator=self.initial_accumulator,
            eps=self.eps,
            per_element=self.kind == "adagrad",
        )


class AdamSettings(Section):
    """Adam, a row stepping when it has a gradient."""

    kind: Literal["adam"]
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Epsilon = 1e-8

    def make(self, learning_rate: float, clip: float | None) -> Optimizer:
        """The optimizer."""
        return Adam(learning_rate=learning_rate, clip=clip, beta1=self.beta1, beta2=self.beta2, eps=self.eps)


class FtrlSettings(Section):
    """FTRL-Proximal."""

    kind: Literal["ftrl"]
    beta: Positive = 1.0
    l1: NotNegative = 0.0
    l2: NotNegative = 0.0

    def make(self, learning_rate: float, clip: float | None) -> Optimizer:
        """The optimizer."""
        return FTRL(learning_rate=learning_rate, clip=clip, beta=self.beta, l1=self.l1, l2=self.l2)


class MomentumSettings(Section):
    """Gradient descent with momentum."""

    kind: Literal["momentum"]
    momentum: Decay = 0.9

    def make(self, learning_rate: float, clip: float | None) -> Optimizer:
        """The optimizer."""
        return Momentum(learning_rate=learning_rate, clip=clip, momentum=self.momentum)


class ZerosSettings(Section):
    """New rows are zeros."""

    kind: Literal["zeros"]

    def make(self) -> Initializer:
        """The initializer."""
        return Zeros()


class ConstantSettings(Section):
    """New rows hold one value."""

    kind: Literal["constant"]
    value: Number

    def make(self) -> Initializer:
        """The initializer."""
        return Constant(self.value)


class UniformSettings(Section):
    """New rows are uniform in [low, high)."""

    kind: Literal["uniform"]
    low: Number
    high: Number

    @model_validator(mode="after")
    def _ordered(self) -> UniformSettings:
        if self.high <= self.low:
            raise ValueError(f"low is {self.low}, high is {self.high}; allowed: high above low")
        return self

    def make(self) -> Initializer:
        """The initializer."""
        return Uniform(self.low, self.high)


class NormalSettings(Section):
    """New rows are normal."""

    kind: Literal["normal"] = "normal"
    mean: Number = 0.0
    deviation: Positive = 0.01
    """Standard deviation."""

    def make(self) -> Initializer:
        """The initializer."""
        return Normal(self.mean, self.deviation)


def _as_section(value: Any) -> Any:
    """``adam`` is short for ``{kind: adam}``."""
    return {"kind": value} if isinstance(value, str) else value


def _kind(default: str) -> Discriminator:
    return Discriminator(
        lambda value: str(value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", default))
    )


OptimizerSettings: TypeAlias = Annotated[
    Annotated[AdagradSettings, Tag("row_adagrad")]
    | Annotated[AdagradSettings, Tag("adagrad")]
    | Annotated[SgdSettings, Tag("sgd")]
    | Annotated[MomentumSettings, Tag("momentum")]
    | Annotated[AdamSettings, Tag("adam")]
    | Annotated[FtrlSettings, Tag("ftrl")],
    _kind("row_adagrad"),
    BeforeValidator(_as_section),
]
InitializerSettings: TypeAlias = Annotated[
    Annotated[NormalSettings, Tag("normal")]
    | Annotated[UniformSettings, Tag("uniform")]
    | Annotated[ConstantSettings, Tag("constant")]
    | Annotated[ZerosSettings, Tag("zeros")],
    _kind("normal"),
    BeforeValidator(_as_section),
]
DefaultRow: TypeAlias = Literal["fixed", "learned"]


class TableSettings(Section):
    """How the rows of a table are made, updated and forgotten."""

    optimizer: OptimizerSettings = AdagradSettings()
    learning_rate: Positive = 0.05
    """Of the optimizer."""
    clip: Positive | None = None
    """The largest L2 norm of a row's gradient in one step; a larger one is scaled down to it."""
    initializer: InitializerSettings = NormalSettings()
    expire_after: PositiveDurationMs | None = None
    """Rows that no example touched for this long are forgotten; without it, none is."""
    admit_after: Annotated[int, Field(ge=1, le=65_535)] = 1
    """An id gets a row at this many of its examples."""
    candidates: Annotated[int, Field(ge=1, le=1 << 30)] = 1 << 20
    """How many ids may be counted on their way to a row; when it is full those seen longest ago go."""
    max_rows: Annotated[int, Field(ge=1, lt=1 << 31)] | None = None
    """Rows the table holds at most; past it those go that no example touched for longest."""
    default_row: DefaultRow = "fixed"
    """What an id without a row reads as: zeros, or a row that is trained on the impressions of ids that had none when served."""


class TablesSettings(TableSettings):
    """The ``tables`` section: settings of all tables, and by name what some do otherwise."""

    only: dict[str, TableSettings] = {}

    def of(self, name: str) -> TableSettings:
        """The settings of one table."""
        own = self.only.get(name)
        changed = {key: getattr(own, key) for key in own.model_fields_set} if own else {}
        return self.model_copy(update=changed)

    def with_default_row(self, default_row: DefaultRow) -> TablesSettings:
        """The same with this default row in every table."""
        change = {"default_row": default_row}
        only = {name: own.model_copy(update=change) for name, own in self.only.items()}
        return self.model_copy(update={**change, "only": only})

    def make_replica(self, name: str, dim: int, seed: int, rows: Precision = "float32", secret: int = 0) -> Table:
        """A replica's table: embeddings only, and no list of what changed, since a replica seals nothing."""
        return Table(dim, seed=seed, name=name, row_format=rows, secret=secret)

    def make(self, name: str, dim: int, seed: int, secret: int = 0) -> Table:
        """A new table of rows of ``dim`` values."""
        own = self.of(name)
        return Table(
            dim,
            optimizer=own.optimizer.make(own.learning_rate, own.clip),
            initializer=own.initializer.make(),
            seed=seed,
            name=name,
            expire_after_seconds=None if own.expire_after is None else -(-own.expire_after // 1000),
            admit_after=own.admit_after,
            candidates=own.candidates,
            max_rows=own.max_rows,
            secret=secret,
        )


class SyncSettings(Section):
    """The ``sync`` section: how often what was learned reaches the replicas."""

    sparse_every: PositiveDurationMs = 60_000
    dense_every: PositiveDurationMs = 86_400_000
    """Of a settled model; a young one's dense weights go out at growing intervals up to this."""
    dense_change: Annotated[float, Field(gt=0, le=1)] | None = None
    """Dense weights also go out when they moved by this share of their norm since the last ones."""
    rows: Precision = "float32"
    """How exactly replicas get and keep embeddings; recovery is exact whatever this is."""
    keep_deltas: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Deltas kept before they are folded into a new base."""
