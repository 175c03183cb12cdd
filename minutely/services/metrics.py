"""Metrics of the trainer and the archiver, as Prometheus asks for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from paramserver.table import Table
from streaming.clock import Clock
from streaming.records.reasons import EXAMPLE_REASONS
from trainer.prequential import LabelMetrics, Prequential
from trainer.worker import NOT_FINITE

_MS = 1000
_QUALITY = {
    "auc": "AUC",
    "log_loss": "Log loss",
    "calibration": "Mean score over mean label",
    "rmse": "Root mean square error",
}


_ALWAYS_SHOWN = sorted({*EXAMPLE_REASONS, NOT_FINITE})
"""Alerts see how a counter grows from 0, and not that it comes."""


@dataclass
class Status:
    """What a service is doing: it writes, the thread that answers Prometheus reads. Counts begin with the process."""

    lag: Mapping[int, int] = field(default_factory=dict)
    """Offsets of each partition of `examples` that were not read yet."""
    watermarks: Mapping[int, int] = field(default_factory=dict)
    """Event time (ms) up to which each partition was read."""
    lost: Mapping[int, int] = field(default_factory=dict)
    """Records of each partition of `examples` that were skipped, since no client can read them."""
    examples: int = 0
    dead_letters: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_ALWAYS_SHOWN, 0)))
    """Dead letters that it made, by reason: of records that it could not read, and of examples that it could not train on."""
    lost_letters: int = 0
    """Dead letters that brokers will never take."""
    commits: int = 0
    """Versions published, or commits to the archive."""
    refused: int = 0
    """How often the place of the versions, such as a full disk, refused one."""
    committed_at: int | None = None
    """When that was last done (ms, elapsed time), by this process or the one before it; None where that is unknown."""
    tables: Mapping[str, Table] = field(default_factory=dict)
    """Of a trainer, whose rows are counted."""
    prequential: Prequential | None = None
    """How well a trainer predicted its newest examples before it trained on them."""


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
        unread = CounterMetricFamily(
            f"{prefix}lost", "Records of examples skipped, since no client can read them.", labels=["partition"]
        )
        for partition, value in status.lost.items():
            unread.add_metric([str(partition)], value)
        yield from (lag, watermark, unread)
        yield CounterMetricFamily(f"{prefix}examples", "Examples taken.", value=status.examples)
        what = "Records and examples left out; dead letters name them."
        dead = CounterMetricFamily(f"{prefix}dead_letters", what, labels=["reason"])
        for reason, count in sorted(status.dead_letters.copy().items()):
            dead.add_metric([reason], count)
        yield dead
        lost = "Dead letters lost, since brokers will never take them."
        yield CounterMetricFamily(f"{prefix}dead_letters_lost", lost, value=status.lost_letters)
        yield CounterMetricFamily(f"{prefix}{self._commits}", f"Number of {self._commits} made.", value=status.commits)
        yield CounterMetricFamily(
            f"{prefix}refused", f"How often {self._commits} could not be made.", value=status.refused
        )
        if status.committed_at is not None:
            age = (self._clock.elapsed_ms() - status.committed_at) / _MS
            yield GaugeMetricFamily(f"{prefix}idle_seconds", f"Time since the last of its {self._commits}.", value=age)
        if status.tables:
            yield from self._rows(status.tables)
        if status.prequential is not None:
            yield from self._quality("", "before they were trained on", {(): status.prequential.metrics()})
            yield from self._quality("served_", "as they were served", {(): status.prequential.served()})
            by_version: dict[tuple[str, ...], LabelMetrics] = {
                (str(at),): found for at, found in status.prequential.served_by_version().items()
            }
            yield from self._quality("served_version_", "as a version served them", by_version, ("version",))

    def _rows(self, tables: Mapping[str, Table]) -> Iterator[Metric]:
        prefix = f"{self._prefix}rows_"
        live = GaugeMetricFamily(f"{prefix}live", "Rows now.", labels=["table"])
        admitted = CounterMetricFamily(f"{prefix}admitted", "Rows of ids that came.", labels=["table"])
        expired = CounterMetricFamily(f"{prefix}expired", "Rows whose time was over.", labels=["table"])
        evicted = CounterMetricFamily(f"{prefix}evicted", "Rows that went because of max_rows.", labels=["table"])
        for name, table in tables.items():
            stats = table.stats
            live.add_metric([name], stats.live)
            admitted.add_metric([name], stats.admitted)
            expired.add_metric([name], stats.expired)
            evicted.add_metric([name], stats.evicted)
        yield from (live, admitted, expired, evicted)

    def _quality(
        self, kind: str, when: str, found: Mapping[tuple[str, ...], LabelMetrics], names: tuple[str, ...] = ()
    ) -> Iterator[Metric]:
        """A gauge for each metric; labels for which it is not defined, such as AUC before the first positive, have none.

        ``found`` has metrics by the values of further ``names`` of Prometheus' labels.
        """
        for name, what in _QUALITY.items():
            family = GaugeMetricFamily(
                f"{self._prefix}{kind}{name}", f"{what} of the newest examples, {when}.", labels=["label", *names]
            )
            for values, by_label in found.items():
                for label, metrics in by_label.items():
                    value = metrics.get(name)
                    if value is not None:
                        family.add_metric([label, *values], value)
            yield family
