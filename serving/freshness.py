"""How fresh a replica is, and how long behaviour took to get there: from event time, never from the date of a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paramserver.learned import Delays
from paramserver.manifest import Manifest
from serving.status import State
from streaming.clock import Clock

BOUNDS_SECONDS = (
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    3,
    5,
    10,
    20,
    30,
    40,
    50,
    60,
    65,
    70,
    80,
    90,
    120,
    300,
    900,
    3600,
)


class Histogram:
    """Counts of durations by `BOUNDS_SECONDS`; `quantile` goes by the finer buckets of what came lately."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(BOUNDS_SECONDS) + 1, np.int64)
        self.sum_seconds = 0.0
        self._recent: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = []

    def add(self, delays: Delays, later_ms: float) -> None:
        """Count delays that took ``later_ms`` longer."""
        if not delays.counts:
            return
        seconds, counts = (delays.middles_ms() + max(later_ms, 0.0)) / 1000, np.array(delays.counts)
        self.counts += np.bincount(np.searchsorted(BOUNDS_SECONDS, seconds), counts, minlength=len(self.counts)).astype(
            np.int64
        )
        self.sum_seconds += float(seconds @ counts)
        self._recent = [*self._recent[-(_RECENT - 1) :], (seconds, counts)]

    def quantiles(self, shares: Sequence[float]) -> dict[str, float]:
        """Quantiles of the last versions' durations in seconds, as ``p99``; none before the first."""
        recent = self._recent
        if not recent:
            return {}
        seconds, counts = (np.concatenate([part[at] for part in recent]) for at in (0, 1))
        order = np.argsort(seconds)
        reached = np.cumsum(counts[order]) / counts.sum()
        at = np.minimum(np.searchsorted(reached, shares), len(order) - 1)
        return {
            f"p{share * 100:g}": round(float(value), 4) for share, value in zip(shares, seconds[order][at], strict=True)
        }


_RECENT = 60
STAGES = ("join", "train", "publish", "apply")


class Freshness:
    """Told of every version as it is applied, keeps what `minutely freshness` and Prometheus ask for."""

    def __init__(self, clock: Clock, fresh_within: int) -> None:
        self._clock = clock
        self._fresh_within = fresh_within
        self._began_at = clock.now_ms()
        self._manifest: Manifest | None = None
        self._applied_at = 0
        self.event_to_servable = Histogram()
        self.decided_to_servable = Histogram()
        self.stages = {stage: Histogram() for stage in STAGES}
        self.delta_rows = self.delta_expired = self.delta_bytes = self.deltas = 0

    def applied(self, manifest: Manifest) -> None:
        """The rows are of this version now. Bases, which bring no new epoch, are not counted."""
        self._manifest, self._applied_at = manifest, self._clock.elapsed_ms()
        if manifest.is_base:
            return
        self.deltas += 1
        self.delta_rows += sum(shard.changed for shard in manifest.shards)
        self.delta_expired += sum(shard.expired for shard in manifest.shards)
        self.delta_bytes += sum(shard.rows.size for shard in manifest.shards)
        learned = manifest.learned
        if learned is None or not learned.examples or manifest.published_at < self._began_at:
            return  # a replica that starts catches up: how long versions waited for it says nothing of freshness
        later_ms = self._clock.now_ms() - manifest.published_at
        self.event_to_servable.add(learned.event, later_ms)
        self.decided_to_servable.add(learned.decided, later_ms)
        for stage, delays in (("join", learned.join), ("train", learned.train), ("publish", learned.publish)):
            self.stages[stage].add(delays, 0.0)
        self.stages["apply"].add(Delays.of(np.array([later_ms]), np.array([learned.examples])), 0.0)

    def age_seconds(self) -> float | None:
        """Now minus the watermark of what is served; None before the first version."""
        return None if self._manifest is None else self._since(self._manifest.watermark)

    def newest_behaviour_seconds(self) -> float | None:
        """Now minus the newest behaviour in what is served; None where no version says."""
        learned = self._manifest.learned if self._manifest else None
        return self._since(learned.newest_at) if learned and learned.newest_at else None

    def _since(self, at_ms: int) -> float:
        """At least what passed since the version came: a clock that was set back hides nothing."""
        return max(self._clock.elapsed_ms() - self._applied_at, self._clock.now_ms() - at_ms) / 1000

    def state(self) -> State:
        """Whether it is fresh, idle or stale."""
        age, behaviour = self.age_seconds(), self.newest_behaviour_seconds()
        if age is None:
            return "empty"
        limit = self._fresh_within / 1000
        if age > limit:
            return "stale"
        return "idle" if behaviour is not None and behaviour > limit else "fresh"
