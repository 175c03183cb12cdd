"""What the examples of an epoch were like as it was published, to measure how long behaviour takes to be served."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Times: TypeAlias = npt.NDArray[np.int64]

_WIDTH = np.log(1.05)


class Delays(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of delays: bucket b counts those from 1.05**b up to 1.05**(b + 1) ms, bucket 0 also the shorter ones."""

    buckets: list[Annotated[int, msgspec.Meta(ge=0, le=1000)]] = []
    counts: list[Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]] = []

    def __post_init__(self) -> None:
        """``ValueError`` where a bucket has no count; read from a file, it is one of the file's."""
        if len(self.buckets) != len(self.counts):
            raise ValueError(f"{len(self.counts)} counts for {len(self.buckets)} buckets")

    @classmethod
    def of(cls, milliseconds: Times, counts: Times | None = None) -> Delays:
        """The distribution of delays int64 [n], each ``counts`` times (once where None). Clocks that differ make negative ones."""
        place = (np.log(np.maximum(milliseconds, 1)) / _WIDTH).astype(np.int64)
        found = np.bincount(place, counts).astype(np.int64)
        used = np.flatnonzero(found)
        return cls(buckets=used.tolist(), counts=found[used].tolist())

    def middles_ms(self) -> npt.NDArray[np.float64]:
        """The delay that stands for each bucket, float64 [buckets]."""
        middles: npt.NDArray[np.float64] = np.exp((np.array(self.buckets) + 0.5) * _WIDTH)
        return middles


class Learned(msgspec.Struct, frozen=True, kw_only=True):
    """The examples of one epoch. ``newest_at`` is the event time (ms) of the newest behaviour that the version reflects.

    ``event`` and ``decided``: from `happened_at` and `decided_at` to the publication. ``join``: from `decided_at` until the trainer
    had read the example; ``train``: until it was trained on; ``publish``: from there to the publication.
    """

    newest_at: int
    examples: int = 0
    event: Delays = Delays()
    decided: Delays = Delays()
    join: Delays = Delays()
    train: Delays = Delays()
    publish: Delays = Delays()
