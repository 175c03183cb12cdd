"""Prometheus metrics of the joiner, by partition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streaming.join.calibration import ServedCalibration
from streaming.log import INPUTS
from streaming.records.reasons import JOINER_REASONS

if TYPE_CHECKING:
    from streaming.join.service import JoinService


class JoinMetrics(Collector):
    """Reads the joiners' own counts at each scrape. They begin at 0 when a partition is assigned."""

    def __init__(self, service: JoinService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, by partition."""
        lag = GaugeMetricFamily(
            "minutely_join_lag", "Records not joined yet, if that is known.", labels=["topic", "partition"]
        )
        waiting = GaugeMetricFamily(
            "minutely_join_waiting", "1 if the partition is not read since something failed.", labels=["partition"]
        )
        pending = GaugeMetricFamily("minutely_join_pending", "Requests in the state.", labels=["partition"])
        watermark = GaugeMetricFamily(
            "minutely_join_watermark_seconds", "Event time up to which everything is emitted.", labels=["partition"]
        )
        records = CounterMetricFamily("minutely_join_records", "Records read.", labels=["topic", "partition"])
        examples = CounterMetricFamily("minutely_join_examples", "Examples written.", labels=["partition"])
        repeated = CounterMetricFamily("minutely_join_repeated", "Records taken before.", labels=["partition"])
        corrected = CounterMetricFamily("minutely_join_corrected", "Examples sent again.", labels=["partition"])
        lost = CounterMetricFamily(
            "minutely_join_lost",
            "Records of inputs deleted before they were read, or in batches that no client can read, at most.",
            labels=["topic", "partition"],
        )
        dead = CounterMetricFamily("minutely_join_dead_letters", "Records refused.", labels=["reason", "partition"])
        clock = GaugeMetricFamily(
            "minutely_join_clock_ahead_seconds",
            "How far our clock is ahead of the brokers' at least; negative: behind.",
            labels=["partition"],
        )
        for number, member in list(self._service.members.items()):
            partition, counts = str(number), member.work.joiner.counts
            waiting.add_metric([partition], float(member.waits))
            for topic, behind in member.lag.copy().items():
                lag.add_metric([topic, partition], behind)
            for topic in INPUTS:
                records.add_metric([topic, partition], counts.records[topic])
            pending.add_metric([partition], member.work.pending)
            watermark.add_metric([partition], max(member.work.published, 0) / 1000)
            clock.add_metric([partition], member.clocks.ahead_ms / 1000)
            examples.add_metric([partition], counts.examples)
            repeated.add_metric([partition], counts.repeated)
            corrected.add_metric([partition], counts.corrected)
            for topic in INPUTS:  # what outputs held is not known: the log says so, and nothing of them need be lost
                lost.add_metric([topic, partition], member.lost[topic])
            refused = counts.refused.copy()
            for reason in sorted(JOINER_REASONS | refused.keys()):
                dead.add_metric([reason, partition], refused[reason])
        yield from (lag, waiting, pending, watermark, clock, records, examples, repeated, corrected, lost, dead)
        if self._service.served is not None:
            yield from self._calibration(self._service.served)

    def _calibration(self, served: ServedCalibration) -> Iterator[Metric]:
        ratio = GaugeMetricFamily(
            "minutely_join_served_calibration",
            "Mean served score over mean label, newest impressions.",
            labels=["label"],
        )
        stray = GaugeMetricFamily(
            "minutely_join_miscalibrated", "1 if that is outside train.guards.served_calibration.", labels=["label"]
        )
        for label, sums in served.sums.copy().items():
            if sums.calibration is not None:
                ratio.add_metric([label], sums.calibration)
            stray.add_metric([label], float(served.stray[label]))
        yield from (ratio, stray)
