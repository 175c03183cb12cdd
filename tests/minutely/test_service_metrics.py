"""The metrics of a service say what its status says, and how long ago it last committed."""

from __future__ import annotations

from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from minutely.metrics import Status, StatusMetrics
from streaming.clock import EventClock


def test_what_prometheus_is_told() -> None:
    clock, status, registry = EventClock(10_000), Status(), CollectorRegistry()
    registry.register(StatusMetrics("train", "versions", status, clock))
    before = generate_latest(registry).decode()
    assert "minutely_train_examples_total 0.0" in before
    assert "idle_seconds" not in before, "nobody knows"
    status.lag, status.watermarks = {0: 7, 1: 0}, {0: 9_500, 1: 8_000}
    status.examples, status.commits, status.committed_at = 12, 3, 9_000
    clock.move_to(11_500)
    said = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert said == [
        'minutely_train_lag{partition="0"} 7.0',
        'minutely_train_lag{partition="1"} 0.0',
        'minutely_train_watermark_seconds{partition="0"} 9.5',
        'minutely_train_watermark_seconds{partition="1"} 8.0',
        "minutely_train_examples_total 12.0",
        "minutely_train_versions_total 3.0",
        "minutely_train_refused_total 0.0",
        "minutely_train_idle_seconds 2.5",
    ]
