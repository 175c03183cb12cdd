"""What a log holds, for `minutely check`: rows, time, ids, labels, and what their windows would cut."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from rich.console import Console
from rich.table import Table as TextTable

from basis.problems import Problem
from basis.settings import format_duration
from minutely.config import Pipeline
from streaming.columns import Ragged
from streaming.labels import Label
from streaming.source import LoggedEvents


def silent_labels(pipeline: Pipeline, events: LoggedEvents) -> list[Problem]:
    """Labels whose action the log does not know."""
    allowed = f"never happens in the log; allowed: {', '.join(events.engagements.actions[:20])}"
    return [
        Problem(pipeline.name, f"labels.{name}.action", repr(label.action), allowed)
        for name, label in pipeline.labels.items()
        if label.action not in events.engagements.actions
    ]


def describe(console: Console, pipeline: Pipeline, events: LoggedEvents) -> None:
    """Print what was found in a log without mistakes."""
    first, last = (datetime.fromtimestamp(int(at) / 1000, UTC) for at in events.served_at[[0, -1]])
    console.print(
        f"[bold]{pipeline.name}[/bold]: {events.impressions:,} impressions in {events.requests:,} requests, "
        f"{len(events.engagements):,} engagements, {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"
    )
    console.print(_features(pipeline, events), _labels(pipeline, events))


def _features(pipeline: Pipeline, events: LoggedEvents) -> TextTable:
    table = TextTable("feature", "kind", "ids or range", title="Features", title_justify="left")
    for name, feature in pipeline.features.items():
        column = events.features[name]
        if isinstance(column, Ragged):
            mean = len(column.values) / max(events.impressions, 1)
            found = f"{len(np.unique(column.values)):,} ids, {mean:.1f} an impression"
        elif feature.kind == "sparse":
            found = f"{len(np.unique(column)):,} ids"
        else:
            found = f"{column.min():.4g} to {column.max():.4g}, mean {column.mean():.4g}"
        table.add_row(name, feature.kind, found)
    return table


def _labels(pipeline: Pipeline, events: LoggedEvents) -> TextTable:
    headings = ("label", "positive", "delay p50", "p90", "p99", "window", "cut", "decided")
    title = "Labels: delay from the serving, positives that the window cuts, share decided by an event in it"
    table = TextTable(*headings, title=title, title_justify="left")
    for name, label in pipeline.labels.items():
        table.add_row(name, *_label(label, events))
    return table


def _label(label: Label, events: LoggedEvents) -> list[str]:
    log = events.engagements
    code = {action: at for at, action in enumerate(log.actions)}
    served_at = events.served_at[events.request_of_row[np.maximum(log.row, 0)]]
    delay = log.happened_at - served_at
    known = log.row >= 0
    positive = known & (log.action == code.get(label.action, -1))
    if label.min_value is not None:
        positive &= log.value >= label.min_value
    deciding = known & ((log.action == code.get(label.decided_by or "", -1)) | positive) & (delay <= label.window)
    rows = np.unique(log.row[positive])
    kept = np.unique(log.row[positive & (delay <= label.window)])
    if label.is_value:
        share = f"mean {events.truth(label).mean():,.0f}"
    else:
        share = f"{len(rows):,} {len(rows) / events.impressions:.1%}"
    if len(rows):
        quantiles = [
            format_duration(round(value / 1000) * 1000 if value >= 1000 else round(value))
            for value in np.percentile(delay[positive], (50, 90, 99))
        ]
        cut = f"{1 - len(kept) / len(rows):.2%}"
    else:
        quantiles, cut = ["-"] * 3, "-"
    decided = len(np.unique(log.row[deciding])) / events.impressions
    return [share, *quantiles, format_duration(label.window), cut, f"{decided:.2%}"]
