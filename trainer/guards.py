"""Guards: a model that went astray is not published."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from basis.problems import GuardedError
from streaming.records.labels import Label
from trainer.losses import Loss
from trainer.models import RankingModel
from trainer.settings import Bounds, GuardSettings


class Guard:
    """Running means of loss and prediction over about the newest ``over`` examples, and the bounds that they must keep.

    No bound, no cost; before ``over`` examples nothing is refused.
    """

    def __init__(self, settings: GuardSettings, labels: Mapping[str, Label]) -> None:
        self._settings = settings
        self._labels = labels
        self._predict = Loss(labels).predict
        self._examples = 0
        self._loss = 0.0
        self._prediction = torch.zeros(len(labels))

    @property
    def is_on(self) -> bool:
        """Whether there is any bound."""
        return self._settings.loss is not None or bool(self._settings.prediction)

    def add(self, loss: Tensor, outputs: Tensor) -> None:
        """Take a step's summed loss and its outputs [n, outputs]."""
        count = len(outputs)
        self._examples += count
        share = min(1.0, count / min(self._examples, self._settings.over))
        self._loss += share * (float(loss) / count - self._loss)
        self._prediction += share * (self._predict(outputs).mean(0) - self._prediction)

    def check(self) -> None:
        """Raise `GuardedError` where a running mean is out of its bounds."""
        if not self.is_on or self._examples < self._settings.over:
            return
        if self._settings.loss is not None:
            _check("train.guards.loss", "the running mean of the loss", self._loss, self._settings.loss)
        for at, name in enumerate(self._labels):
            bounds = self._settings.prediction.get(name)
            if bounds is not None:
                place, what = f"train.guards.prediction.{name}", f"the running mean prediction of {name}"
                _check(place, what, float(self._prediction[at]), bounds)


def _check(place: str, what: str, value: float, bounds: Bounds) -> None:
    low, high = bounds
    if not low <= value <= high:
        raise GuardedError(f"{what} is {value:.6g}; allowed by {place}: {low:g} to {high:g}")


def check_finite(vector: Tensor, model: RankingModel) -> None:
    """`GuardedError` where a dense weight is no number. ``vector`` holds all that are trained."""
    buffers = dict(model.named_buffers()) if model.norm is not None else {}
    # The square of the norm says it in one pass over the weights, where it is finite.
    if math.isfinite(torch.dot(vector, vector)) and all(buffer.isfinite().all() for buffer in buffers.values()):
        return
    wrong = [name for name, weight in model.state_dict().items() if not weight.isfinite().all()]
    if wrong:
        raise GuardedError(f"dense weights that are no finite numbers: {', '.join(wrong)}")
