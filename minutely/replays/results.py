"""What a run came to: the summary that scripts read, from the scores that replicas served."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from basis.settings import format_duration
from minutely.config import Pipeline
from minutely.replays.loop import EmbeddedLoop, Served
from streaming.join.calibration import Sums
from streaming.log import ENGAGEMENTS
from streaming.source.logged_events import LoggedEvents
from trainer.metrics import class_metrics, value_metrics


def summarize(loop: EmbeddedLoop, warmup: float, wall_seconds: float, *, interrupted: bool) -> dict[str, Any]:
    """The contents of ``summary.json``; metrics and freshness are the first replica's."""
    pipeline, counts = loop.pipeline, loop.joiner.counts
    stats = [table.stats for table in loop.trainer.tables.values()]
    primary = results_of(loop, loop.primary)
    return {
        "impressions": loop.impressions,
        "engagements": counts.records[ENGAGEMENTS],
        "examples": loop.trainer.examples,
        "dropped_negatives": counts.dropped,
        "dead_letters": loop.dead_letters,
        "dead_letters_by_reason": loop.dead_letters_by_reason(),
        "metrics": primary["metrics"],
        "freshness_seconds": primary["freshness_seconds"],
        "versions": loop.deltas.version,
        "rows": {
            "live": sum(item.live for item in stats),
            "admitted": sum(item.admitted for item in stats),
            "expired": sum(item.expired for item in stats),
            "evicted": sum(item.evicted for item in stats),
        },
        "wall_seconds": round(wall_seconds, 3),
        "examples_per_second": round(loop.trainer.examples / wall_seconds, 1) if wall_seconds else 0.0,
        "warmup": warmup,
        "sync_every": primary["sync_every"],
        "replica_equals_table": loop.replica_equals_table(loop.primary),
        "interrupted": interrupted,
        "warnings": warnings_of(pipeline, loop, loop.primary),
        "diverged": not all(np.isfinite(served.scores[: served.scored_to]).all() for served in loop.replicas),
        "seed": pipeline.seed,
        "config": pipeline.model_dump(mode="json"),
    }


def results_of(loop: EmbeddedLoop, served: Served) -> dict[str, Any]:
    """Metrics of what one replica served after the warm-up, and how fresh it was."""
    begin, end = loop.scored_from, min(served.scored_to, loop.impressions)
    return {
        "sync_every": "never" if served.every is None else format_duration(served.every),
        "metrics": metrics_of(loop.pipeline, loop.events, served.scores[begin:end], begin),
        "freshness_seconds": _percentiles(served),
    }


def warnings_of(pipeline: Pipeline, loop: EmbeddedLoop, served: Served) -> list[str]:
    """What is wrong with the scores that a replica served after the warm-up, as lines for people."""
    bounds = pipeline.train.guards.served_calibration
    if bounds is None:
        return []
    begin, end = loop.scored_from, min(served.scored_to, loop.impressions)
    found = []
    for at, (name, label) in enumerate(pipeline.labels.items()):
        sums = Sums.of(served.scores[begin:end, at], loop.truth[name][begin:end])
        if sums.stray(bounds):
            found.append(sums.say(name, label, bounds))
    return found


def metrics_of(
    pipeline: Pipeline, events: LoggedEvents, scores: npt.NDArray[np.float32], begin: int
) -> dict[str, dict[str, float | None]]:
    """Metrics by label of ``scores`` float32 [n, labels], those of the impressions from ``begin`` on."""
    end = begin + len(scores)
    requests = events.request_of_row[begin:end]
    metrics = {}
    for at, (name, label) in enumerate(pipeline.labels.items()):
        truth, exact = events.truth(label)[begin:end], scores[:, at].astype(np.float64)
        metrics[name] = value_metrics(exact, truth) if label.is_value else class_metrics(exact, truth, requests)
    return metrics


def number(value: float | None, digits: int = 4) -> str:
    """A metric as people read it, in the terminal and in the report alike."""
    return "-" if value is None else f"{value:,.{digits}f}"


def _percentiles(served: Served) -> dict[str, float | None]:
    if not served.latencies:
        return {"p50": None, "p95": None, "p99": None}
    found = np.percentile(np.concatenate(served.latencies), (50, 95, 99)) / 1000
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}
