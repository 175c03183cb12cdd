"""Served calibration: compares served scores with the labels that followed, and reports labels that are out of bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from streaming.records.labels import Label

Bounds: TypeAlias = tuple[float, float]
_BLOCK = 1000
_BLOCKS = 16
_DEVIATIONS = 5.0


class Sums(NamedTuple):
    """Sums for one label: impressions, their served scores, their values, and the squares of both."""

    impressions: int = 0
    scores: float = 0.0
    values: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, scores: npt.NDArray[Any], values: npt.NDArray[Any]) -> Sums:
        """Sum scores and values [n], leaving out pairs in which either is not finite."""
        exact = np.stack((scores, values)).astype(np.float64)
        exact = exact[:, np.isfinite(exact).all(0)]
        return cls(exact.shape[1], float(exact[0].sum()), float(exact[1].sum()), float((exact**2).sum()))

    def __add__(self, other: Sums) -> Sums:  # type: ignore[override]  # these are no sequences
        return Sums(
            self.impressions + other.impressions,
            self.scores + other.scores,
            self.values + other.values,
            self.squares + other.squares,
        )

    @property
    def calibration(self) -> float | None:
        """Mean score over mean value; None without a value above 0."""
        return self.scores / self.values if self.values > 0 else None

    def stray(self, bounds: Bounds) -> bool:
        """Whether the calibration is out of bounds by more than chance: 5 standard deviations of the sums' difference."""
        low, high = bounds
        by_chance = abs(self.scores - self.values) <= _DEVIATIONS * self.squares**0.5
        return not by_chance and not low * self.values <= self.scores <= high * self.values

    def say(self, name: str, label: Label, bounds: Bounds) -> str:
        """Return a log line about a label that is out of bounds, with the remedy if its loss is the cause."""
        low, high = bounds
        ratio = "" if self.calibration is None else f" (calibration {self.calibration:.3g})"
        mean_score, mean_value = self.scores / self.impressions, self.values / self.impressions
        remedy = (
            ""
            if label.predicts_mean
            else f"; labels.{name}.transform: log predicts about a median; for the mean, remove it and set "
            f"labels.{name}.loss: tweedie or zero_inflated_log_normal"
        )
        return (
            f"{name}: served scores average {mean_score:.4g}, the labels {mean_value:.4g}{ratio}, over "
            f"{self.impressions:,} impressions; allowed by train.guards.served_calibration: {low:g} to {high:g}{remedy}"
        )


class ServedCalibration:
    """Sums by label over at most the newest 16,000 impressions that a model scored and whose labels are decided.

    After every 1,000, it calls ``warn`` for each label that went out of ``bounds``, and ``inform`` for each that came back.
    Single-threaded.
    """

    def __init__(
        self,
        labels: Mapping[str, Label],
        bounds: Bounds,
        warn: Callable[[str], object],
        inform: Callable[[str], object],
    ) -> None:
        self._labels = labels
        self._bounds = bounds
        self._warn = warn
        self._inform = inform
        self._served: list[tuple[bytes, Sequence[int], tuple[float, ...]]] = []
        self._waiting = 0
        self._blocks: deque[list[Sums]] = deque(maxlen=_BLOCKS)
        self.sums = dict.fromkeys(labels, Sums())
        self.stray = dict.fromkeys(labels, False)
        """Which labels are out of bounds."""

    def add(self, scores: bytes, places: Sequence[int], values: tuple[float, ...]) -> None:
        """Add impressions at ``places`` of one request's ``scores``, float32 [n, labels]; all of them have the label ``values``."""
        self._served.append((scores, places, values))
        self._waiting += len(places)
        if self._waiting >= _BLOCK:
            self._look()

    def _look(self) -> None:
        served, self._served, self._waiting = self._served, [], 0
        width = len(self._labels)
        parts = [np.frombuffer(scores, np.float32).reshape(-1, width)[list(places)] for scores, places, _ in served]
        scores = np.concatenate(parts)
        values = np.repeat([values for *_, values in served], [len(part) for part in parts], axis=0)
        kept = [label.is_score(scores[:, at]) for at, label in enumerate(self._labels.values())]
        self._blocks.append([Sums.of(scores[rows, at], values[rows, at]) for at, rows in enumerate(kept)])
        for at, name in enumerate(self.sums):
            sums = sum((block[at] for block in self._blocks), Sums())
            stray = sums.stray(self._bounds)
            if stray and not self.stray[name]:
                self._warn(sums.say(name, self._labels[name], self._bounds))
            elif self.stray[name] and not stray:
                self._inform(f"{name}: served scores are within bounds again")
            self.sums[name], self.stray[name] = sums, stray
