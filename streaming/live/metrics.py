"""Prometheus metrics of those who keep live features, by partition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streaming.live.partition import LivePartition
from streaming.log import LIVE_TOPICS
from streaming.loop.service import Member


class LiveMetrics(Collector):
    """Reads the partitions' own counts at each scrape. They begin at 0 when a partition is assigned."""

    def __init__(self, members: Mapping[int, Member[LivePartition]]) -> None:
        self._members = members

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics, by partition."""
        lag = GaugeMetricFamily(
            "minutely_features_lag", "Records not counted yet, if that is known.", labels=["topic", "partition"]
        )
        waiting = GaugeMetricFamily(
            "minutely_features_waiting", "1 if the partition is not read since something failed.", labels=["partition"]
        )
        keys = GaugeMetricFamily("minutely_features_keys", "Keys kept.", labels=["definition", "partition"])
        size = GaugeMetricFamily("minutely_features_bytes", "Memory of the keys.", labels=["definition", "partition"])
        happened = CounterMetricFamily(
            "minutely_features_happened", "Servings and actions counted, at each of their keys.", labels=["partition"]
        )
        passed = CounterMetricFamily(
            "minutely_features_passed_over", "Records and parts that were not counted.", labels=["reason", "partition"]
        )
        lost = CounterMetricFamily(
            "minutely_features_lost", "Records deleted before they were read.", labels=["topic", "partition"]
        )
        for number, member in list(self._members.items()):
            partition, work = str(number), member.work
            waiting.add_metric([partition], float(member.waits))
            for topic, behind in member.lag.copy().items():
                lag.add_metric([topic, partition], behind)
            for definition, kept in work.kept.core.kept().items():
                keys.add_metric([definition, partition], kept.keys)
                size.add_metric([definition, partition], kept.bytes)
            happened.add_metric([partition], work.happened)
            for reason, count in work.passed_over.copy().items():
                passed.add_metric([reason, partition], count)
            for topic in LIVE_TOPICS:
                lost.add_metric([topic, partition], member.lost[topic])
        yield from (lag, waiting, keys, size, happened, passed, lost)
