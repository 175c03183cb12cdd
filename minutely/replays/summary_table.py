"""The table at the end of a replay."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from minutely.replays.replay import Replayed
from minutely.replays.results import number
from minutely.replays.run_letters import told_letters
from minutely.terminal import TitledTable


def print_summary(console: Console, done: Replayed) -> None:
    """Print what a run came to, one column a cadence."""
    summary = done.summary
    cadences: dict[str, Any] = summary.get("cadences") or {summary["sync_every"]: summary}
    title = f"Served scores after a warm-up of {summary['warmup']:.0%}, by how often the replica pulls"
    table = TitledTable("", *cadences, heading=title)
    first = next(iter(cadences.values()))
    for label, metrics in first["metrics"].items():
        for metric in metrics:
            table.add_row(f"{label} {metric}", *(number(item["metrics"][label][metric]) for item in cadences.values()))
    for name in ("p50", "p99"):
        table.add_row(
            f"freshness {name} (s)", *(number(item["freshness_seconds"][name], 1) for item in cadences.values())
        )
    console.print(table)
    if summary.get("cold_start"):
        console.print(_cold_start(summary["cold_start"]))
    rows = summary["rows"]
    evicted = f", {rows['evicted']:,} evicted" if rows.get("evicted") else ""
    console.print(
        f"{summary['impressions']:,} impressions, {summary['engagements']:,} engagements, {summary['examples']:,} examples, "
        f"{summary['dead_letters']:,} dead letters; {rows['live']:,} rows live, {rows['expired']:,} expired{evicted}; "
        f"{summary['versions']:,} versions; {summary['wall_seconds']:.1f} s, {summary['examples_per_second']:,.0f} examples/s"
    )
    if told := told_letters(summary["dead_letters_by_reason"], done.run.folder):
        console.print(Text(told), soft_wrap=True)
    for warning in summary["warnings"]:
        console.print(Text(f"Miscalibrated: {warning}", "yellow"))
    if summary["diverged"]:
        console.print("[red]Diverged: some scores are not finite. Lower the learning rates.[/red]")
    if summary["interrupted"]:
        console.print("[yellow]Interrupted: this is what was learned by then.[/yellow]")
    console.print(f"Report: {done.run.report}")
    if done.scores is not None:
        console.print(f"Scores: {done.scores}")


def _cold_start(found: dict[str, Any]) -> TitledTable:
    title = (
        f"AUC of each user's first {found['first']} impressions, as served: {found['impressions']:,} of "
        f"{found['users']:,} users, by what an id without a row reads as"
    )
    table = TitledTable("default_row", *found["auc"], heading=title)
    for label in next(iter(found["auc"].values())):
        table.add_row(f"{label} auc", *(number(metrics[label]) for metrics in found["auc"].values()))
    return table
