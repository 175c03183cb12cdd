"""Labels: the action that makes one positive, the action that decides it negative, and when it is decided.

A label is decided by the first event, in event time, that can decide it, else by its window's close. The order of arrival does
not matter: at the same millisecond, a positive action wins over a deciding one, and the larger value over the smaller.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from basis.settings import PositiveDurationMs, Section
from streaming.features.kinds import FLOAT32_MAX, Name

Action: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
MAX_WINDOW_MS = 90 * 86_400_000


class Label(Section):
    """What the model predicts: a class (``log`` loss) or a value (any other).

    >>> from streaming.records.labels import Label, Rule, decide
    >>> label = Label(action="click", decided_by="skip", window="1m")
    >>> decide([Rule.of(label)], 1000, [(5000, "skip", 1.0), (4000, "click", 1.0)])  # the order of event time decides
    Decision(values=(1.0,), decided_at=4000, happened_at=4000)
    >>> decide([Rule.of(label)], 1000, [])  # at the window's close
    Decision(values=(0.0,), decided_at=61000, happened_at=1000)
    """

    action: Action
    """The action that makes the label positive, or gives its value."""
    min_value: float | None = None
    """The action is positive only with at least this value; by default, with any."""
    decided_by: Action | None = None
    """The action that ends the wait: without a positive action up to then, the label is negative."""
    window: PositiveDurationMs
    """An undecided label is negative this long after the serving."""
    loss: Literal["log", "squared", "zero_inflated_log_normal", "tweedie"] = "log"
    """For a class ``log``. For a value ``squared``, or for many zeros and a heavy tail one of the others; they predict the mean."""
    weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """The weight of this label's loss in the sum over labels."""
    transform: Literal["none", "log"] = "none"
    """``log`` trains on log(1 + value)."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Values are divided by this first, for example by 1000 to turn milliseconds into seconds."""
    max_value: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] | None = None
    """Larger values count as this much, so that no single one dominates training; in the logged unit, before ``scale``."""

    @model_validator(mode="after")
    def _fits(self) -> Label:
        if self.window > MAX_WINDOW_MS:
            raise ValueError("window: longer than 90d")
        if self.is_value and self.min_value is not None:
            raise ValueError("min_value is for classes (loss: log); other losses take the value itself")
        if not self.is_value and self.scale != 1.0:
            raise ValueError("scale is for values (loss: squared, zero_inflated_log_normal or tweedie)")
        if self.loss != "squared" and self.transform != "none":
            raise ValueError("transform is for loss: squared")
        if not self.is_value and self.max_value is not None:
            raise ValueError("max_value is for values (loss: squared, zero_inflated_log_normal or tweedie)")
        return self

    @property
    def is_value(self) -> bool:
        """Whether the label is a number rather than a class."""
        return self.loss != "log"

    def is_score(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which of these a model can have given: a probability for a class, any finite number for a value. What products report
        may be anything."""
        return np.isfinite(scores) if self.is_value else (scores >= 0) & (scores <= 1)

    @property
    def predicts_mean(self) -> bool:
        """Whether the model's predictions add up to the labels, however values are distributed."""
        return self.transform == "none"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that a value counts as; below 0 only with ``squared`` loss of the value itself."""
        least = -float("inf") if self.loss == "squared" and self.transform == "none" else 0.0
        return least, float("inf") if self.max_value is None else self.max_value


LabelSet: TypeAlias = Annotated[dict[Name, Label], Field(min_length=1, max_length=64)]


class Decision(NamedTuple):
    """The labels of one impression, when the last was decided, and when the newest deciding event happened (ms)."""

    values: tuple[float, ...]
    decided_at: int
    happened_at: int


def used_actions(labels: Mapping[str, Label]) -> frozenset[str]:
    """Return the actions that any label uses."""
    return frozenset(
        action for label in labels.values() for action in (label.action, label.decided_by) if action is not None
    )


def action_windows(labels: Mapping[str, Label]) -> dict[str, int]:
    """Return how long after the serving (ms) each action that labels use counts: the longest window of those labels."""
    return {
        action: max(label.window for label in labels.values() if action in (label.action, label.decided_by))
        for action in used_actions(labels)
    }


class Rule(NamedTuple):
    """A `Label` prepared once for the `decide` of every impression."""

    action: str
    min_value: float
    decided_by: str | None
    window: int
    is_value: bool
    bounds: tuple[float, float]

    @classmethod
    def of(cls, label: Label) -> Rule:
        """Return the rule of a label."""
        least = -float("inf") if label.min_value is None else label.min_value
        return cls(label.action, least, label.decided_by, label.window, label.is_value, label.bounds)

    def decide(self, served_at: int, events: Iterable[tuple[int, str, float]]) -> tuple[float, int, bool]:
        """Return the value, when it was decided (ms), and whether by an event; events are (ms, action, value)."""
        positive, min_value, decided_by, window, is_value, (least, most) = self  # faster than one by one
        closes = served_at + window
        best: tuple[int, int, float] | None = None
        for at, action, value in events:
            if action == positive and value >= min_value:
                rank = (at, 0, -min(max(value, least), most) if is_value else -1.0)
            elif action == decided_by:
                rank = (at, 1, 0.0)
            else:
                continue
            if at <= closes and (best is None or rank < best):
                best = rank
        return (0.0, closes, False) if best is None else (0.0 - best[2], best[0], True)


def decide(rules: Iterable[Rule], served_at: int, events: Iterable[tuple[int, str, float]]) -> Decision:
    """Return the labels of an impression served at ``served_at`` (ms) with these events (ms, action, value), in any order."""
    values = []
    decided_at = happened_at = served_at
    for rule in rules:
        value, at, by_event = rule.decide(served_at, events)
        values.append(value)
        decided_at = max(decided_at, at)
        if by_event:
            happened_at = max(happened_at, at)
    return Decision(tuple(values), decided_at, happened_at)
