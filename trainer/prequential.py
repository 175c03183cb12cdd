"""Prequential metrics: each example is scored before it is trained on, by the forward pass that training needs anyway."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from streaming.records.labels import Label
from trainer.losses import Loss, stands_for
from trainer.metrics import class_metrics, value_metrics

_EXAMPLES = 1 << 20


class Prequential:
    """The newest examples, a million by default: their scores, their labels, and how many of the stream each stands for.

    One thread may add while another asks for metrics.
    """

    def __init__(self, labels: Mapping[str, Label], examples: int = _EXAMPLES) -> None:
        self._labels = dict(labels)
        self._predict = Loss(labels).predict
        self._examples = examples
        self._parts: deque[npt.NDArray[np.float32]] = deque()
        self._count = 0

    def add(self, outputs: Tensor, targets: Tensor, rates: Tensor | None) -> None:
        """Take a step's outputs and targets [n, labels], and sampling rates [n] (None: all 1)."""
        scores = self._predict(outputs).numpy()
        each = np.ones(len(scores), np.float32) if rates is None else stands_for(targets, rates).numpy()
        self._parts.append(np.concatenate((scores, targets.numpy(), each[:, None]), axis=1))
        self._count += len(scores)
        while self._count - len(self._parts[0]) >= self._examples:
            self._count -= len(self._parts.popleft())

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """The metrics of each label, negatives that sampling left out included; without examples, None for each."""
        width = len(self._labels)
        parts = self._parts.copy()  # in one step, safe beside a thread that adds
        rows = np.concatenate([np.empty((0, 2 * width + 1), np.float32), *parts])
        found = {}
        for at, (name, label) in enumerate(self._labels.items()):
            scores, truth, each = rows[:, at], rows[:, width + at], rows[:, -1]
            weights = None if (each == 1).all() else each
            measure = value_metrics if label.is_value else class_metrics
            found[name] = measure(scores, truth, weights=weights)
        return found
