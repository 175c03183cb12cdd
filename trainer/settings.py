"""The ``model`` and ``train`` sections of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from basis.settings import PositiveDurationMs, Section, pair

Size = Annotated[int, Field(ge=1, le=65_536)]


class ModelSettings(Section):
    """The ``model`` section."""

    kind: Literal["deepfm", "dlrm"] = "deepfm"
    dim: Annotated[int, Field(ge=1, le=1024)] = 8
    """Length of an id's embedding."""
    hidden: Annotated[list[Size], Field(min_length=1, max_length=8)] = [64, 32]
    """Widths of the hidden layers."""


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("allowed: [low, high], the lower first")
    return bounds


Bounds: TypeAlias = Annotated[tuple[float, float], pair("[low, high]"), AfterValidator(_ordered)]


class GuardSettings(Section):
    """The ``train.guards`` section: what a model must keep to be published, besides that its weights are numbers."""

    loss: Bounds | None = None
    """Of the running mean loss of an example, all labels together, as [low, high]."""
    prediction: dict[str, Bounds] = {}
    """Of the running mean prediction, by label."""
    over: Annotated[int, Field(ge=1)] = 10_000
    """About how many examples a running mean is over; before there were so many, nothing is refused."""
    served_calibration: Bounds | None = (0.8, 1.25)
    """Of mean served score over mean label. Outside of it nothing is refused: replays and joiners say so. None: they do not."""


class TrainSettings(Section):
    """The ``train`` section."""

    dense_learning_rate: Annotated[float, Field(gt=0)] = 0.001
    """Of Adam, for the dense weights."""
    step_every: PositiveDurationMs = 60_000
    """One training step per this much event time, whatever the cadence of the replicas."""
    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """The most examples of one step."""
    weight: str | None = None
    """The dense feature whose value an example's loss is multiplied by; it is no input of the model then."""
    norm_half_life: PositiveDurationMs = 7 * 86_400_000
    """After this much event time, a row weighs half in the mean and variance that dense features are standardised by."""
    guards: GuardSettings = GuardSettings()
