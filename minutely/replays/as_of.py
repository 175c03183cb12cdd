"""`minutely replay --as-of T`: what the model as of a time would have made of everything that was served from then on."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table as TextTable

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.logs.own_logs import load_events
from minutely.parts import make_replica
from minutely.place import open_versions, require_writable
from minutely.replays.results import metrics_of
from streaming.features.columns import slice_columns

_SUMMARY = "summary.json"


def replay_as_of(pipeline: Pipeline, place: str, at: int, out: Path | None, console: Console) -> dict[str, Any]:
    """Score the logged impressions served at ``at`` (ms of event time) or later with the version in ``place`` whose watermark is
    the newest that is not after it. That model has seen nothing of them, and learns nothing from them.

    Returns the contents of ``summary.json``, which is written to ``out`` where that is given. `BadFile` where there is no version
    as of then, with what there is; `Problems` where nothing was served from then on.
    """
    if out is not None and (out / _SUMMARY).exists():
        raise Problems([Problem(str(out), "--out", f"has a {_SUMMARY}", "allowed: a new or empty folder")])
    if out is not None:
        require_writable(out, "--out")
    torch.set_num_threads(1)
    started = time.monotonic()
    replica = make_replica(pipeline, open_versions(place))
    manifest = replica.load_as_of(at)
    with console.status("Reading logs"):
        events = load_events(pipeline, time.time_ns() // 1_000_000)
    begin, end = int(events.starts[np.searchsorted(events.served_at, at)]), events.impressions
    if begin == end:
        last = _text(int(events.served_at[-1])) if events.requests else "nothing was served"
        raise Problems([Problem(pipeline.name, "--as-of", _text(at), f"allowed: at most {last}")])
    scores = replica.score(slice_columns(events.features, begin, end), end - begin)
    summary = {
        "as_of": at,
        "version": manifest.version,
        "dense_version": replica.dense_version,
        "watermark": manifest.watermark,
        "impressions": end - begin,
        "metrics": metrics_of(pipeline, events, scores, begin),
        "wall_seconds": round(time.monotonic() - started, 3),
        "config": pipeline.model_dump(mode="json"),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / _SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    return summary


def print_as_of(console: Console, summary: dict[str, Any]) -> None:
    """Print what it came to."""
    table = TextTable("", f"version {summary['version']}", title_justify="left")
    table.title = (
        f"Scores of {summary['impressions']:,} impressions from {_text(summary['as_of'])} on, by the model as of then"
    )
    for label, metrics in summary["metrics"].items():
        for name, value in metrics.items():
            table.add_row(f"{label} {name}", "-" if value is None else f"{value:,.4f}")
    console.print(table)
    console.print(f"It contains what happened before {_text(summary['watermark'])}.")


def _text(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
