"""Metrics of the trainer and the archiver, as Prometheus asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streaming.clock import Clock

_MS = 1000


@dataclass
class Status:
    """What a service is doing: it writes, the thread that answers Prometheus reads. Counts begin with the process."""

    lag: Mapping[int, int] = field(default_factory=dict)
    """Offsets of each partition of `examples` that were not read yet."""
    watermarks: Mapping[int, int] = field(default_factory=dict)
    """Event time (ms) up to which each partition was read."""
    examples: int = 0
    commits: int = 0
    """Versions published, or commits to the archive."""
    refused: int = 0
    """How often the place of the versions, such as a full disk, refused one."""
    committed_at: int | None = None
    """When that was last done (ms), by this process or the one before it; None where nobody knows."""


class StatusMetrics(Collector):
    """The status of one service, whose metrics begin with ``minutely_<service>_``; what it commits is called ``commits``."""

    def __init__(self, service: str, commits: str, status: Status, clock: Clock) -> None:
        self._prefix = f"minutely_{service}_"
        self._commits = commits
        self._status = status
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Everything."""
        status, prefix = self._status, self._prefix
        lag = GaugeMetricFamily(f"{prefix}lag", "Offsets of examples not read yet.", labels=["partition"])
        watermark = GaugeMetricFamily(
            f"{prefix}watermark_seconds", "Event time up to which examples were read.", labels=["partition"]
        )
        for partition, value in status.lag.items():
            lag.add_metric([str(partition)], value)
        for partition, value in status.watermarks.items():
            watermark.add_metric([str(partition)], value / _MS)
        yield from (lag, watermark)
        yield CounterMetricFamily(f"{prefix}examples", "Examples taken.", value=status.examples)
        yield CounterMetricFamily(f"{prefix}{self._commits}", f"Number of {self._commits} made.", value=status.commits)
        yield CounterMetricFamily(
            f"{prefix}refused", f"How often {self._commits} could not be made.", value=status.refused
        )
        if status.committed_at is not None:
            age = max(0, self._clock.now_ms() - status.committed_at) / _MS
            yield GaugeMetricFamily(f"{prefix}idle_seconds", f"Time since the last of its {self._commits}.", value=age)
