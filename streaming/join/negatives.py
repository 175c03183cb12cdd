"""Negative sampling: the joiner publishes a share of the negatives, and every example says which share.

The choice depends on the seed and the ``example_id`` alone, so a replay, a rebuild, the archive and a test's oracle agree on it.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import xxhash
from pydantic import Field

from basis.settings import Section


class NegativeSettings(Section):
    """The ``negatives`` section. A negative is an example all of whose labels are 0."""

    keep: Annotated[float, Field(ge=1e-6, le=1)] = 1.0
    """The share of negatives that become examples; losses and metrics are corrected for it."""


class Negatives(NamedTuple):
    """Chooses the negatives that are kept.

    >>> from streaming.join.negatives import Negatives
    >>> negatives = Negatives(keep=0.1, seed=1)
    >>> sum(negatives.keeps(f"r{number}/item7") for number in range(10_000))
    984
    """

    keep: float = 1.0
    seed: int = 0

    def keeps(self, example_id: str) -> bool:
        """Whether a negative with this id (see `identity`) becomes an example."""
        return self.keep >= 1 or xxhash.xxh3_64_intdigest(example_id.encode(), self.seed) < self.keep * 2.0**64
