"""The ``model`` and ``train`` sections of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from basis.settings import PositiveDurationMs, Section

Size = Annotated[int, Field(ge=1, le=65_536)]


class ModelSettings(Section):
    """The ``model`` section."""

    kind: Literal["deepfm", "dlrm"] = "deepfm"
    dim: Annotated[int, Field(ge=1, le=1024)] = 8
    """Length of an id's embedding."""
    hidden: Annotated[list[Size], Field(min_length=1, max_length=8)] = [64, 32]
    """Widths of the hidden layers."""


class TrainSettings(Section):
    """The ``train`` section."""

    dense_learning_rate: Annotated[float, Field(gt=0)] = 0.001
    """Of Adam, for the dense weights."""
    step_every: PositiveDurationMs = 60_000
    """One training step per this much event time, whatever the cadence of the replicas."""
    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """The most examples of one step."""
