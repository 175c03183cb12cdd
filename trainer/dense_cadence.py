"""When dense weights go out: at growing intervals while a model is young, then at the end of every ``dense_every``."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.worker import Trainer

_SHORTEST_MS = 60_000


class DenseCadence:
    """The rule of services and replays alike; all times are event times in ms.

    The first dense weights are due at once. The next ones are due after as long as the model had learned for when the last ones
    went out (`Trainer.first_at`), but at least a minute: after 1, 2, 4, ... minutes, and at the latest when the cell of ``every``
    ends in which those went out. So a model older than ``every`` is at that cadence alone. With ``change``, they are also due
    when what training has moved, its L2 norm relative to that of the weights that went out, exceeds it.
    """

    def __init__(self, trainer: Trainer, every: int, change: float | None = None) -> None:
        self._trainer = trainer
        self._every = every
        self._change = change
        self._sent_at: int | None = None
        self._sent: torch.Tensor | None = None

    def due_at(self) -> int:
        """From when new dense weights are due, whatever has changed."""
        last, first = self._sent_at, self._trainer.first_at
        if last is None:
            return 0
        age = 0 if first is None else last - first
        return min((last // self._every + 1) * self._every, last + max(age, _SHORTEST_MS))

    def is_due(self, at: int) -> bool:
        """Whether a version of ``at`` is to bring dense weights."""
        return at >= self.due_at() or self._is_changed()

    def sent(self, at: int) -> None:
        """A version of ``at`` brings the trainer's weights as they are."""
        self._sent_at = at
        if self._change is not None:
            self._sent = self._trainer.weights.vector.clone()

    def restore(self, at: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Go on after a restart: these weights, by name, went out at ``at``."""
        self._sent_at = at
        if self._change is not None:
            self._sent = torch.cat([weights[name].reshape(-1) for name, _ in self._trainer.model.named_parameters()])

    def _is_changed(self) -> bool:
        if self._change is None or self._sent is None:
            return False
        moved = torch.linalg.vector_norm(self._trainer.weights.vector - self._sent)
        return bool(moved > self._change * torch.linalg.vector_norm(self._sent))
