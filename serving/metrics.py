"""A replica's metrics, as Prometheus asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from prometheus_client import Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from serving.connections import REASONS, Reason
from serving.freshness import BOUNDS_SECONDS
from serving.freshness import Histogram as Delays
from serving.status import STATES, PinnedBy
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import MAX_ID_LENGTH

if TYPE_CHECKING:
    from serving.service import ReplicaService

_ANSWER_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_NAMES = 16


disable_created_metrics()  # type: ignore[no-untyped-call]  # times of creation are one more line for each count


class RequestMetrics:
    """What is counted as requests come."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter("minutely_serve_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.unused = Counter(
            "minutely_serve_unused_engagements", "Engagements whose action no label looks at.", registry=registry
        )
        self._unknown = Counter(
            "minutely_serve_unknown_features",
            "Requests with a feature that the config does not have.",
            ["feature"],
            registry=registry,
        )
        self._names: set[str] = set()
        self.missing_live = Counter(
            "minutely_serve_missing_live", "Requests without values of live features.", registry=registry
        )
        self.seconds = Histogram(
            "minutely_serve_seconds", "From request to answer.", ["route"], buckets=_ANSWER_SECONDS, registry=registry
        )

    def count_unknown(self, features: Iterable[str]) -> None:
        """Count what was given and ignored, by name as long as these are few: they come from strangers."""
        for name in features:
            if len(self._names) < _NAMES and len(name) <= MAX_ID_LENGTH:
                self._names.add(name)
            self._unknown.labels(name if name in self._names else "others").inc()


class ConnectionMetrics:
    """What is counted of connections that are turned away or ended, by listener."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = Counter(
            "minutely_serve_refused",
            "Connections turned away or ended by us.",
            ["listener", "reason"],
            registry=registry,
        )

    def of(self, listener: str) -> Callable[[Reason], None]:
        """What counts for one listener."""
        counts = {reason: self._refused.labels(listener, reason) for reason in REASONS}
        return lambda reason: counts[reason].inc()


class ReplicaMetrics(Collector):
    """Reads what the parts of a replica know anyway, when asked."""

    def __init__(self, service: ReplicaService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Everything; gauges of freshness carry the replica's name."""
        yield from self._freshness()
        yield from self._pulls()
        yield from self._traffic()
        yield from self._live()
        yield from self._shadow()

    def _freshness(self) -> Iterator[Metric]:
        name, fresh = self._service.name, self._service.freshness
        yield self._gauge(
            "minutely_model_freshness_seconds", "Now minus the event time up to which everything is in the scores.",
            fresh.age_seconds(),
        )  # fmt: skip
        yield self._gauge(
            "minutely_newest_behaviour_seconds", "Now minus the newest behaviour in the scores.",
            fresh.newest_behaviour_seconds(),
        )  # fmt: skip
        state = GaugeMetricFamily("minutely_model_state", "1 for the replica's state.", labels=["replica", "state"])
        now = fresh.state()
        for each in STATES:
            state.add_metric([name, each], float(each == now))
        yield state
        yield _histogram(
            "minutely_event_to_servable_seconds", "From behaviour to servable.", {"": fresh.event_to_servable}
        )
        yield _histogram(
            "minutely_decided_to_servable_seconds", "From decided labels to servable.", {"": fresh.decided_to_servable}
        )
        yield _histogram("minutely_stage_seconds", "Time of an example in each stage.", fresh.stages, "stage")

    def _pulls(self) -> Iterator[Metric]:
        service, fresh = self._service, self._service.freshness
        yield self._gauge("minutely_sparse_version", "Version of the rows.", service.replica.sparse_version)
        yield self._gauge("minutely_dense_version", "Version of the dense weights.", service.replica.dense_version)
        yield self._gauge("minutely_ready", "Whether the replica says that it is ready.", float(service.ready()[0]))
        pins = GaugeMetricFamily(
            "minutely_pinned",
            "1 for what keeps it at a version: its own pin, or a rollback's.",
            labels=["replica", "by"],
        )
        pinned = service.puller.pinned
        for by in get_args(PinnedBy):
            pins.add_metric([service.name, by], float(pinned is not None and pinned.by == by))
        yield pins
        yield CounterMetricFamily("minutely_deltas", "Versions applied.", fresh.deltas)
        yield CounterMetricFamily("minutely_delta_rows", "Rows that they changed.", fresh.delta_rows)
        yield CounterMetricFamily("minutely_delta_expired", "Rows that they expired.", fresh.delta_expired)
        yield CounterMetricFamily("minutely_delta_bytes", "Bytes of their rows.", fresh.delta_bytes)
        failures = CounterMetricFamily("minutely_pull_failures", "Pulls that failed.", labels=["reason"])
        for reason in sorted({"damaged", "unreadable", "failed", *service.puller.failures}):
            failures.add_metric([reason], service.puller.failures[reason])
        yield failures
        drifted = CounterMetricFamily(
            "minutely_rows_drifted", "Comparisons in which rows were not those of their version.", labels=["table"]
        )
        for table in service.replica.tables:
            drifted.add_metric([table], service.puller.drifted[table])
        yield drifted
        live = GaugeMetricFamily("minutely_rows_live", "Rows now.", labels=["table"])
        admitted = CounterMetricFamily("minutely_rows_admitted", "Rows that came.", labels=["table"])
        expired = CounterMetricFamily("minutely_rows_expired", "Rows that went.", labels=["table"])
        for table, rows in service.replica.tables.items():
            stats = rows.stats
            live.add_metric([table], stats.live)
            admitted.add_metric([table], stats.inserted)
            expired.add_metric([table], stats.erased)
        yield from (live, admitted, expired)

    def _traffic(self) -> Iterator[Metric]:
        scoring, outbox = self._service.scoring, self._service.outbox
        yield CounterMetricFamily("minutely_serve_candidates", "Candidates scored.", scoring.scored)
        yield CounterMetricFamily("minutely_serve_batches", "Batches scored.", scoring.batches)
        yield GaugeMetricFamily("minutely_serve_waiting", "Candidates waiting or being scored.", scoring.waiting)
        yield GaugeMetricFamily("minutely_log_waiting", "Records waiting for the log.", outbox.open)
        yield GaugeMetricFamily("minutely_log_waiting_bytes", "The memory that they take.", outbox.size_bytes)
        for name, what, counts in (
            ("minutely_log_sent", "Records that the log has.", outbox.sent),
            ("minutely_log_dropped", "Records that the log will never have.", outbox.dropped),
        ):
            family = CounterMetricFamily(name, what, labels=["topic"])
            for topic in (IMPRESSIONS, ENGAGEMENTS):
                family.add_metric([topic], counts[topic])
            yield family

    def _live(self) -> Iterator[Metric]:
        """Nothing where the config has no live features."""
        live = self._service.live
        if live is None:
            return
        keys = GaugeMetricFamily("minutely_live_keys", "Keys of live features.", labels=["definition"])
        memory = GaugeMetricFamily("minutely_live_bytes", "The memory that they take.", labels=["definition"])
        for definition, kept in live.kept().items():
            keys.add_metric([definition], kept.keys)
            memory.add_metric([definition], kept.bytes)
        skipped = CounterMetricFamily(
            "minutely_live_skipped", "Records of the topic features that were passed over.", labels=["reason"]
        )
        for reason, count in sorted(live.skipped.items()):
            skipped.add_metric([reason], count)
        yield from (keys, memory, skipped)
        yield CounterMetricFamily("minutely_live_records", "Records of the topic features that were read.", live.read)
        yield self._gauge("minutely_live_lag", "Records of it that were not read yet.", live.lag)
        yield self._gauge("minutely_live_age_seconds", "How old its newest record is.", live.age_seconds())

    def _shadow(self) -> Iterator[Metric]:
        """Nothing while there is no shadow."""
        shadow = self._service.shadowing.current
        if shadow is None:
            return
        status = shadow.status()
        found = status.compared
        yield self._gauge(
            "minutely_shadow_version", "Version that scores a share of the requests beside.", status.version
        )
        yield self._gauge("minutely_shadow_ready", "Whether it has its version.", float(status.ready))
        yield CounterMetricFamily("minutely_shadow_requests", "Requests that it scored.", found.requests)
        yield CounterMetricFamily("minutely_shadow_dropped", "What its buffers had no room for.", status.dropped)
        for name, what, value in (
            (
                "mean_difference",
                "Mean absolute difference of the combined score to what was served.",
                found.mean_difference,
            ),
            ("max_difference", "The largest one.", found.max_difference),
            ("other_first", "Share of requests with another first item.", found.other_first),
        ):
            yield self._gauge(f"minutely_shadow_{name}", what, value)
        judged = "of the newest impressions whose windows have closed, as served and by the shadow."
        for name, what in (("log_loss", "Log loss"), ("auc", "AUC"), ("calibration", "Mean score over mean label")):
            family = GaugeMetricFamily(f"minutely_shadow_{name}", f"{what} {judged}", labels=["label", "of"])
            for label, sides in found.quality.items():
                for side, quality in sides.items():
                    number = getattr(quality, name)
                    if number is not None:
                        family.add_metric([label, side], number)
            yield family

    def _gauge(self, name: str, what: str, value: float | None) -> Metric:
        family = GaugeMetricFamily(name, what, labels=["replica"])
        if value is not None:
            family.add_metric([self._service.name], value)
        return family


def _histogram(name: str, what: str, by_label: dict[str, Delays], label: str | None = None) -> Metric:
    family = HistogramMetricFamily(name, what, labels=[label] if label else [])
    for value, found in by_label.items():
        bounds = [*map(str, map(float, BOUNDS_SECONDS)), "+Inf"]
        buckets = list(zip(bounds, accumulate(map(float, found.counts)), strict=True))
        family.add_metric([value] if label else [], buckets, sum_value=found.sum_seconds)
    return family
