"""`minutely train --from archive`: a model from the archive, published as the first version of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from deltalake import DeltaTable
from rich.console import Console

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.parts import make_trainer
from minutely.run import Run
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from streaming.archive import Archive
from streaming.examples import ExampleFormat
from streaming.log import EXAMPLES
from trainer.prequential import Prequential
from trainer.retrain import train_archive

_EVER = 2**62


def archive_place(pipeline: Pipeline, run: Path | None) -> str:
    """Where the archive is: ``archive.dir``, or else in a run's folder; `Problems` where there is none."""
    configured = pipeline.archive.dir if pipeline.archive is not None else None
    place = configured if configured is not None and run is None else str(Run.find(run).folder / "archive")
    if not DeltaTable.is_deltatable(place):
        allowed = "allowed: archive.dir in the config, or the run of a replay whose config has an archive section"
        raise Problems([Problem(place, "archive", "none there", allowed)])
    return place


def train_from_archive(
    pipeline: Pipeline, place: str, since: int | None, until: int | None, out: Path | None, console: Console
) -> dict[str, Any]:
    """Train on the examples decided from ``since`` to before ``until`` (ms), publish the model in a new run; its summary.

    Without ``until`` the version's offsets are those at which the archive ends, where live training goes on.
    """
    started = time.monotonic()
    torch.set_num_threads(1)  # as online, where steps are too small to share
    now_ms = time.time_ns() // 1_000_000
    archive = Archive(place, ExampleFormat(pipeline.features, pipeline.labels))
    prequential = Prequential(pipeline.labels)
    trainer = make_trainer(pipeline, prequential)
    with console.status("Training from the archive") as status:
        train_archive(
            archive,
            trainer,
            pipeline.train,
            0 if since is None else since,
            _EVER if until is None else until,
            lambda examples: status.update(f"Training from the archive: {examples:,} examples"),
        )
    if not trainer.examples:
        raise Problems([Problem(place, "--since, --until", "no example in between", f"allowed: {_span(archive)}")])
    positions = archive.positions() if until is None else {}
    cut = Cut(
        watermark=min(position.watermark for position in positions.values()) if until is None else until,
        now_ms=now_ms,
        offsets={f"{EXAMPLES}/{partition}": position.offset for partition, position in positions.items()},
        dense=trainer.dense_weights(),
        trainer=trainer.state(),
    )
    run = Run.create(pipeline, out, now_ms)
    sync = pipeline.sync
    files = LocalFiles(run.deltas, durable=True)
    deltas = DeltaLog(files, pipeline.form(), sync.keep_deltas, precision=sync.rows)
    deltas.take_over({name: table.export() for name, table in trainer.tables.items()}, cut)
    deltas.fold()
    seconds = time.monotonic() - started
    summary = {
        "archive": place,
        "since": since,
        "until": until,
        "examples": trainer.examples,
        "metrics": prequential.metrics(),
        "offsets": cut.offsets,
        "rows": {"live": sum(map(len, trainer.tables.values()))},
        "wall_seconds": round(seconds, 3),
        "examples_per_second": round(trainer.examples / seconds, 1),
        "seed": pipeline.seed,
        "config": pipeline.model_dump(mode="json"),
    }
    run.summary.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    _print(console, run, summary)
    return summary


def _span(archive: Archive) -> str:
    hours = list(archive.hours(0, _EVER))
    return f"times from {hours[0]} to {hours[-1]} (event hours, UTC)" if hours else "an archive that is not empty"


def _print(console: Console, run: Run, summary: dict[str, Any]) -> None:
    for label, metrics in summary["metrics"].items():
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
        console.print(f"[bold]{label}[/bold]  {shown}")
    console.print(
        f"{summary['examples']:,} examples, each scored before it was trained on; {summary['rows']['live']:,} rows; "
        f"{summary['wall_seconds']:.1f} s, {summary['examples_per_second']:,.0f} examples/s"
    )
    console.print(f"Model: {run.deltas}")
