"""Losses: what each label's outputs are trained by, and what they come to as people read them.

A model has as many outputs as its labels' losses take together, in the order of the labels; see `outputs_of`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from streaming.records.labels import Label

_MOST_LOG = 30.0
_LEAST_DEVIATION = 0.1


class ValueLoss(ABC):
    """The loss of one label that is a number, over ``width`` outputs."""

    width: ClassVar[int] = 1

    def __init__(self, label: Label) -> None:
        self.scale = label.scale

    @abstractmethod
    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example, [n], of ``outputs`` [n, width] and ``targets`` [n], in the label's own unit."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """Outputs [n, width] in the label's own unit, [n]."""


class SquaredLoss(ValueLoss):
    """Half the squared error of the value, or of log(1 + value), whose mean is not the log of the mean."""

    def __init__(self, label: Label) -> None:
        super().__init__(label)
        self._log = label.transform == "log"

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As the class says."""
        values = targets / self.scale
        error = outputs[:, 0] - (values.clamp(min=0).log1p() if self._log else values)
        return 0.5 * error * error

    def predict(self, outputs: Tensor) -> Tensor:
        """The value; with ``transform: log`` its median rather than its mean where errors of the logarithm are symmetric."""
        out = outputs[:, 0]
        return (out.clamp(max=_MOST_LOG).expm1() if self._log else out) * self.scale


class ZeroInflatedLogNormal(ValueLoss):
    """Log odds that the value is above 0, and mean and deviation of its logarithm there (Wang, Liu, Miao, arXiv:1912.07753)."""

    width = 3

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Negative log likelihood, in the unit of ``scale``."""
        values = targets / self.scale
        positive = (values > 0).to(outputs.dtype)
        log_values = torch.where(values > 0, values, 1.0).log()
        mean, deviation = outputs[:, 1], _deviation(outputs[:, 2])
        distance = (log_values - mean) / deviation
        likelihood = 0.5 * distance * distance + deviation.log() + log_values + 0.5 * math.log(2 * math.pi)
        any_value = functional.binary_cross_entropy_with_logits(outputs[:, 0], positive, reduction="none")
        return any_value + positive * likelihood

    def predict(self, outputs: Tensor) -> Tensor:
        """The mean."""
        deviation = _deviation(outputs[:, 2])
        mean = (outputs[:, 1] + 0.5 * deviation * deviation).clamp(max=_MOST_LOG).exp()
        return outputs[:, 0].sigmoid() * mean * self.scale


def _deviation(outputs: Tensor) -> Tensor:
    return (
        functional.softplus(outputs) + _LEAST_DEVIATION
    )  # a clamp would have no slope, so alike values would end it for good


class Tweedie(ValueLoss):
    """The logarithm of a mean: of sums of a Poisson number of gamma values (Jørgensen, 1987), with a variance of mean ** 1.5."""

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The part of half the unit deviance that depends on the outputs: 2 y / sqrt(mean) + 2 sqrt(mean)."""
        half = 0.5 * outputs[:, 0]
        return 2 * ((targets / self.scale).clamp(min=0) * (-half).exp() + half.exp())

    def predict(self, outputs: Tensor) -> Tensor:
        """The mean."""
        return outputs[:, 0].clamp(max=_MOST_LOG).exp() * self.scale


_KINDS: dict[str, type[ValueLoss]] = {
    "squared": SquaredLoss,
    "zero_inflated_log_normal": ZeroInflatedLogNormal,
    "tweedie": Tweedie,
}


def outputs_of(labels: Mapping[str, Label]) -> int:
    """How many outputs a model needs for these labels."""
    return sum(map(_width, labels.values()))


def _width(label: Label) -> int:
    return _KINDS[label.loss].width if label.is_value else 1


class _Placed(NamedTuple):
    """A loss and the place of its outputs."""

    loss: ValueLoss
    outputs: slice


class Loss:
    """What outputs are trained by, and what they say (`predict`); made once for a set of labels.

    The sum over examples and labels, each by its loss, which for a class is the binary cross entropy of its log odds, and by its
    weight. A sum, so that an example moves its rows by as much in a small step as in a large one.

    Where negatives were sampled, the model still learns the whole stream, so what it predicts needs no correction later. With one
    class label, sampling adds -log(rate) to every log odds (He et al., ADKDD 2014), so the loss takes the output with that
    added: exact, and no example weighs more than another. With several labels, or values, a label's log odds move by an amount that
    depends on the others, so every kept negative weighs 1 / rate instead: right whatever the labels have to do with each other.
    """

    def __init__(self, labels: Mapping[str, Label]) -> None:
        self._weights = torch.tensor([label.weight for label in labels.values()])
        classes: list[int] = []
        class_outputs: list[int] = []
        self._values: dict[int, _Placed] = {}
        start = 0
        for at, label in enumerate(labels.values()):
            if label.is_value:
                self._values[at] = _Placed(_KINDS[label.loss](label), slice(start, start + _width(label)))
            else:
                classes.append(at)
                class_outputs.append(start)
            start += _width(label)
        self._classes, self._class_outputs = torch.tensor(classes), torch.tensor(class_outputs)
        self._is_one_class = classes == [0] and not self._values

    def __call__(self, outputs: Tensor, targets: Tensor, weights: Tensor, rates: Tensor | None = None) -> Tensor:
        """``outputs`` [n, outputs], ``targets`` [n, labels], ``weights`` and ``rates`` of sampling [n] (None: 1), to one number."""
        if rates is not None:
            if self._is_one_class:
                outputs = outputs - rates.log().unsqueeze(1)
            else:
                weights = weights * stands_for(targets, rates)
        weights = weights.unsqueeze(1) * self._weights
        if not self._values:  # all at once, since in steps of a few examples every operation counts
            return _log_loss(outputs, targets, weights)
        total = outputs.new_zeros(())
        if len(self._classes):
            of_classes = (values.index_select(1, self._classes) for values in (targets, weights))
            total = _log_loss(outputs.index_select(1, self._class_outputs), *of_classes)
        for value, item in self._values.items():
            total = total + (item.loss.each(outputs[:, item.outputs], targets[:, value]) * weights[:, value]).sum()
        return total

    def predict(self, outputs: Tensor) -> Tensor:
        """Outputs [n, outputs] as people read them, [n, labels]: probabilities of classes, values in the label's own unit."""
        if not self._values:
            return outputs.sigmoid()
        found = outputs.new_empty((len(outputs), len(self._weights)))
        if len(self._classes):
            found.index_copy_(1, self._classes, outputs.index_select(1, self._class_outputs).sigmoid())
        for value, item in self._values.items():
            found[:, value] = item.loss.predict(outputs[:, item.outputs])
        return found


def stands_for(targets: Tensor, rates: Tensor) -> Tensor:
    """How many examples of the whole stream each one stands for, [n]: a kept negative for 1 / rate of them."""
    return torch.where(targets.any(1), 1.0, 1 / rates)


def _log_loss(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs, targets, weights, reduction="sum")
