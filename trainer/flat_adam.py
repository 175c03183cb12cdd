"""The optimizer of dense weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim.adam import adam


class FlatAdam:
    """Adam (Kingma and Ba, ICLR 2015) over a model's weights laid out as one vector, of which they become views.

    One update of a few kilobytes instead of one a layer, by torch's functional fused form: at steps of a few examples the wrappers
    of ``torch.optim.Adam`` take longer than its arithmetic.
    """

    def __init__(self, model: torch.nn.Module, learning_rate: float) -> None:
        weights = list(model.parameters())
        self._learning_rate = learning_rate
        self.vector = torch.cat([weight.detach().reshape(-1) for weight in weights])
        self._gradient = torch.zeros_like(self.vector)
        self._mean = torch.zeros_like(self.vector)
        self._variance = torch.zeros_like(self.vector)
        self._steps = torch.zeros(())
        at = 0
        for weight in weights:
            part = slice(at, at + weight.numel())
            weight.data = self.vector[part].view_as(weight)
            weight.grad = self._gradient[part].view_as(weight)
            at = part.stop

    def step(self) -> None:
        """Update the weights by the gradients that came together since the last step."""
        adam(
            [self.vector],
            [self._gradient],
            [self._mean],
            [self._variance],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        self._gradient.zero_()

    def squared_gradient(self) -> torch.Tensor:
        """The squared norm of the gradients that came together since the last step, one number."""
        return torch.dot(self._gradient, self._gradient)

    def forget_gradient(self) -> None:
        """Start the step over."""
        self._gradient.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """What a restart needs besides the weights."""
        return {"mean": self._mean, "variance": self._variance, "steps": self._steps}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave; the weights are the model's to load."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
