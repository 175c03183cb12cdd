"""How rows are trained and what they start as: the optimizers and initializers of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias


def check(name: str, value: float, rule: str, ok: bool) -> None:
    """Raise ValueError that names an option, its value and its rule unless ``ok`` and finite."""
    if not (math.isfinite(value) and ok):
        raise ValueError(f"{name} must be {rule}, got {value}")


@dataclass(frozen=True, kw_only=True)
class _Optimizer:
    """What all optimizers share.

    `learning_rate` is above 0. `clip`, where given, is the largest L2 norm of a row's summed gradient; a larger one is
    scaled down to it, as `torch.nn.utils.clip_grad_norm_` does.
    """

    learning_rate: float = 0.01
    clip: float | None = None

    def __post_init__(self) -> None:
        check("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0)
        if self.clip is not None:
            check("clip", self.clip, "above 0", self.clip > 0)


@dataclass(frozen=True, kw_only=True)
class SGD(_Optimizer):
    """`w -= learning_rate * g`; no state."""


@dataclass(frozen=True, kw_only=True)
class Adagrad(_Optimizer):
    """Adagrad (Duchi, Hazan, Singer, JMLR 2011), by default with one accumulator a row (state: 1 float).

    Row-wise: the accumulator grows by the mean of the squared gradient (Gupta, Bengio, Weston, JMLR 2014).
    `per_element`: as `torch.optim.Adagrad` (state: dim floats).
    """

    initial_accumulator: float = 0.0
    eps: float = 1e-10
    per_element: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check("initial_accumulator", self.initial_accumulator, "at least 0", self.initial_accumulator >= 0)
        check("eps", self.eps, "above 0", self.eps > 0)


@dataclass(frozen=True, kw_only=True)
class Adam(_Optimizer):
    """Adam (Kingma and Ba, ICLR 2015) with each row as a parameter of its own: `torch.optim.Adam` on the row, stepping
    when the row has a gradient (state: 2 dim + 1 floats: mean, variance, steps)."""

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check("beta1", self.beta1, "in [0, 1)", 0 <= self.beta1 < 1)
        check("beta2", self.beta2, "in [0, 1)", 0 <= self.beta2 < 1)
        check("eps", self.eps, "above 0", self.eps > 0)


@dataclass(frozen=True, kw_only=True)
class FTRL(_Optimizer):
    """FTRL-Proximal (McMahan et al., KDD 2013, algorithm 1; learning_rate is its alpha; state: 2 dim floats: z, n).

    A row's embedding is a function of its state, so a first value other than zeros lasts until the first gradient.
    """

    learning_rate: float = 0.05
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check("beta", self.beta, "above 0", self.beta > 0)
        check("l1", self.l1, "at least 0", self.l1 >= 0)
        check("l2", self.l2, "at least 0", self.l2 >= 0)


@dataclass(frozen=True, kw_only=True)
class Momentum(_Optimizer):
    """`torch.optim.SGD` with momentum, without dampening (state: dim floats)."""

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check("momentum", self.momentum, "in [0, 1)", 0 <= self.momentum < 1)


Optimizer: TypeAlias = SGD | Adagrad | Adam | FTRL | Momentum


@dataclass(frozen=True)
class Zeros:
    """New rows are zeros."""


@dataclass(frozen=True)
class Constant:
    """New rows hold one value."""

    value: float

    def __post_init__(self) -> None:
        check("value", self.value, "finite", True)


@dataclass(frozen=True)
class Uniform:
    """New rows are uniform in [low, high)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        check("low", self.low, "finite", True)
        check("high", self.high, f"above low ({self.low})", self.high > self.low)


@dataclass(frozen=True)
class Normal:
    """New rows are normal."""

    mean: float
    standard_deviation: float

    def __post_init__(self) -> None:
        check("mean", self.mean, "finite", True)
        check("standard_deviation", self.standard_deviation, "above 0", self.standard_deviation > 0)


Initializer: TypeAlias = Zeros | Constant | Uniform | Normal


def optimizer_arguments(optimizer: Optimizer) -> tuple[str, list[float]]:
    """Kind and values as the native table takes them."""
    clip = optimizer.clip or 0.0
    values = {"eps": 1e-10, "initial_accumulator": 0.0, "beta1": 0.0, "beta2": 0.0, "beta": 1.0, "l1": 0.0, "l2": 0.0}
    match optimizer:
        case SGD():
            kind = "sgd"
        case Adagrad():
            kind = "adagrad" if optimizer.per_element else "row_adagrad"
            values |= {"eps": optimizer.eps, "initial_accumulator": optimizer.initial_accumulator}
        case Adam():
            kind = "adam"
            values |= {"eps": optimizer.eps, "beta1": optimizer.beta1, "beta2": optimizer.beta2}
        case FTRL():
            kind = "ftrl"
            values |= {"beta": optimizer.beta, "l1": optimizer.l1, "l2": optimizer.l2}
        case Momentum():
            kind = "momentum"
            values |= {"beta1": optimizer.momentum}
    return kind, [optimizer.learning_rate, clip, *values.values()]


def initializer_arguments(initializer: Initializer) -> tuple[str, float, float]:
    """Kind and its two values as the native table takes them."""
    match initializer:
        case Zeros():
            return "zeros", 0.0, 0.0
        case Constant(value):
            return "constant", value, 0.0
        case Uniform(low, high):
            return "uniform", low, high
        case Normal(mean, standard_deviation):
            return "normal", mean, standard_deviation
