"""What a log holds, for `minutely check`: rows, time, ids, labels, what their windows would cut, and what deserves a look."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from rich.console import Console

from basis.settings import format_duration
from minutely.config import Pipeline
from minutely.logs.advice import LabelDelays, advice
from minutely.logs.log_mistakes import refused, used
from minutely.terminal import TitledTable, literal
from streaming.features.columns import Ragged
from streaming.features.kinds import WeightFeature
from streaming.records.labels import Label
from streaming.source.logged_events import LoggedEvents


def describe(console: Console, pipeline: Pipeline, events: LoggedEvents) -> None:
    """Print what was found in a log without mistakes."""
    first, last = (datetime.fromtimestamp(int(at) / 1000, UTC) for at in events.served_at[[0, -1]])
    unmatched = int(refused(pipeline, events)["unmatched"].sum())
    unused = len(events.engagements) - int(used(pipeline, events).sum())
    console.print(
        f"[bold]{pipeline.name}[/bold]: {events.impressions:,} impressions in {events.requests:,} requests, "
        f"{len(events.engagements):,} engagements"
        + (f" ({unmatched:,} of them without an impression)" if unmatched else "")
        + (f" ({unused:,} of them of actions that no label looks at)" if unused else "")
        + f", {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"
    )
    if events.empty:
        console.print(f"explode: {events.empty:,} rows have no items, so no impressions")
    for name, share in events.matched.items():
        console.print(f"side table {literal(name)}: {share:.1%} of the impressions have a row of it")
    console.print(_features(pipeline, events), _labels(pipeline, events))
    if events.live:
        console.print(_live(pipeline, events))
    for problem in advice(pipeline, events):
        console.print(f"[yellow]look at[/yellow] {literal(str(problem))}", soft_wrap=True, highlight=False)


def _features(pipeline: Pipeline, events: LoggedEvents) -> TitledTable:
    table = TitledTable("feature", "kind", "ids or range", "missing", heading="Features")
    for name, feature in pipeline.features.items():
        column = events.features[name]
        if isinstance(column, Ragged):
            lengths = np.diff(column.offsets)
            found = (
                f"{len(np.unique(column.values)):,} ids, {lengths.mean():.1f} an impression, at most {lengths.max():,}"
            )
        elif feature.kind == "sparse":
            found = f"{len(np.unique(column)):,} ids"
        else:
            found = f"{column.min():.4g} to {column.max():.4g}, mean {column.mean():.4g}"
        missing = events.missing.get(name)
        kind = "weight" if isinstance(feature, WeightFeature) else feature.kind
        table.add_row(name, kind, found, "" if missing is None else f"{missing:.1%}")
    return table


def _live(pipeline: Pipeline, events: LoggedEvents) -> TitledTable:
    title = "Live: keys at the end of the log, and what each costs in memory with its place in the index"
    table = TitledTable("definition", "key", "keys", "bytes a key", "MB", heading=title)
    for name, definition in pipeline.live.definitions():
        found = events.live[name]
        each = f"{found.bytes / found.keys:.0f}" if found.keys else "-"
        table.add_row(name, ", ".join(definition.key), f"{found.keys:,}", each, f"{found.bytes / 1e6:.1f}")
    return table


def _labels(pipeline: Pipeline, events: LoggedEvents) -> TitledTable:
    headings = ("label", "positive", "delay p50", "p90", "p99", "window", "cut", "decided")
    title = "Labels: delay since the serving; cut: positives after the window; decided: impressions with a deciding event in it"
    table = TitledTable(*headings, heading=title)
    for name, label in pipeline.labels.items():
        table.add_row(name, *_label(label, events))
    return table


def _label(label: Label, events: LoggedEvents) -> list[str]:
    delays = LabelDelays.of(label, events)
    deciding = events.positive(label) | events.of_action(label.decided_by)
    deciding &= events.delays() <= label.window
    decided = len(np.unique(events.engagements.row[deciding])) / events.impressions
    if label.is_value:
        mean = events.truth(label).mean(dtype=np.float64)
        share = f"mean {mean:,.0f}" if mean >= 100 else f"mean {mean:.3g}"
    else:
        share = f"{len(delays.rows):,} {len(delays.rows) / events.impressions:.1%}"
    if len(delays.rows):
        quantiles, cut = [delays.percentile(percent) for percent in (50, 90, 99)], f"{delays.cut:.2%}"
    else:
        quantiles, cut = ["-"] * 3, "-"
    return [share, *quantiles, format_duration(label.window), cut, f"{decided:.2%}"]
