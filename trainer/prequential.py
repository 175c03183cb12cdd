"""How well the newest examples were predicted: by the trainer, before it trains on each, and by the replica that served it.

The trainer's scores are those of the forward pass that training needs anyway. Served scores come with the examples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streaming.records.examples import ServedColumns
from streaming.records.labels import Label
from trainer.losses import Loss, stands_for
from trainer.metrics import class_metrics, value_metrics

_EXAMPLES = 1 << 20
_VERSIONS = 5
_FEWEST = 1000
"""Examples of one version from which on its metrics say something."""

LabelMetrics: TypeAlias = dict[str, dict[str, float | None]]
"""Metrics by label and name; None where one is not defined."""


class _Scored(NamedTuple):
    """Scores and labels [n, labels], float32, how many of the stream each row stands for [n], and versions [n]."""

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]
    each: npt.NDArray[np.float32]
    versions: npt.NDArray[np.int64]


class _Newest:
    """Examples in the order of training, up to a number. One thread may add while another reads."""

    def __init__(self, labels: int, examples: int) -> None:
        none = np.empty((0, labels), np.float32)
        self._none = _Scored(none, none, np.empty(0, np.float32), np.empty(0, np.int64))
        self._examples = examples
        self._parts: deque[_Scored] = deque()
        self._count = 0

    def add(self, part: _Scored) -> None:
        self._parts.append(part)
        self._count += len(part.each)
        while self._count - len(self._parts[0].each) >= self._examples:
            self._count -= len(self._parts.popleft().each)

    def read(self) -> _Scored:
        parts = self._parts.copy()  # in one step, safe beside a thread that adds
        return _Scored(*map(np.concatenate, zip(self._none, *parts, strict=True)))


class Prequential:
    """The newest examples, a million by default: their scores, their labels, and how many of the stream each stands for.

    One thread may add while another asks for metrics.
    """

    def __init__(self, labels: Mapping[str, Label], examples: int = _EXAMPLES) -> None:
        self._labels = dict(labels)
        self._predict = Loss(labels).predict
        self._trained = _Newest(len(labels), examples)
        self._served = _Newest(len(labels), examples)

    def add(self, outputs: Tensor, targets: Tensor, rates: Tensor | None) -> None:
        """Take a step's outputs and targets [n, labels], and sampling rates [n] (None: all 1)."""
        scores = self._predict(outputs).numpy()
        versions = np.zeros(len(scores), np.int64)
        self._trained.add(_Scored(scores, targets.numpy(), _each(targets, rates), versions))

    def add_served(
        self, served: ServedColumns, revisions: npt.NDArray[np.int32], targets: Tensor, rates: Tensor | None
    ) -> None:
        """Take what replicas said of a step's examples. Those that no version scored do not count, nor do revisions, whose scores
        came with the first, nor what no model can have said."""
        counts = (served.sparse_versions > 0) & (revisions == 0)
        for at, label in enumerate(self._labels.values()):
            counts &= label.is_score(served.scores[:, at])
        if counts.any():
            labels, each = targets.numpy()[counts], _each(targets, rates)[counts]
            self._served.add(_Scored(served.scores[counts], labels, each, served.sparse_versions[counts]))

    def metrics(self) -> LabelMetrics:
        """The metrics of each label, negatives that sampling left out included; without examples, None for each."""
        return self._of(self._trained.read())

    def served(self) -> LabelMetrics:
        """The same, of the scores that were served."""
        return self._of(self._served.read())

    def served_by_version(self) -> dict[int, LabelMetrics]:
        """The same for each of the five versions of rows that served last, of those that served a thousand of these examples.
        Their numbers do not say which: another model, in a folder of its own, begins at 1 again."""
        rows = self._served.read()
        versions, since, counts = np.unique(rows.versions[::-1], return_index=True, return_counts=True)
        enough = counts >= _FEWEST
        last = versions[enough][np.argsort(since[enough])[:_VERSIONS]].tolist()
        return {at: self._of(_Scored(*(column[rows.versions == at] for column in rows))) for at in sorted(last)}

    def _of(self, rows: _Scored) -> LabelMetrics:
        weights = None if (rows.each == 1).all() else rows.each
        found = {}
        for at, (name, label) in enumerate(self._labels.items()):
            measure = value_metrics if label.is_value else class_metrics
            found[name] = measure(rows.scores[:, at], rows.labels[:, at], weights=weights)
        return found


def _each(targets: Tensor, rates: Tensor | None) -> npt.NDArray[np.float32]:
    each: npt.NDArray[np.float32] = (torch.ones(len(targets)) if rates is None else stands_for(targets, rates)).numpy()
    return each
