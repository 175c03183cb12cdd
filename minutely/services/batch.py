"""`minutely train --from archive`: a model from the archive, published as the first version of a run."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import xxhash
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from rich.console import Console

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.parts import make_trainer
from minutely.run import Run
from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from streaming.archive.table import Archive
from streaming.log import EXAMPLES
from streaming.records.examples import ExampleFormat
from trainer.cut import cut_of
from trainer.prequential import Prequential
from trainer.retrain import train_archive

EVER = 2**62
_COLOURED = re.compile(r"\x1b\[[0-9;]*m")
"""What the library of the archive colours its messages with, terminal or not."""


class Retraining(NamedTuple):
    """What is to be trained: the archive at ``place``, examples decided at ``since`` (ms) or later, all where that is None."""

    place: str
    since: int | None

    def name(self, pipeline: Pipeline) -> str:
        """The same for the same model: of the same archive and time, with the same parts of the config and the same seed."""
        parts = {"features", "labels", "model", "tables", "train", "seed"}
        form = [self.place, self.since, pipeline.model_dump(mode="json", include=parts)]
        return f"archive-{xxhash.xxh3_64_hexdigest(msgspec.json.encode(form, order='sorted'))}"


def archive_place(pipeline: Pipeline, run: Path | None) -> str:
    """Where the archive is: ``archive.dir``, or else in a run's folder; `Problems` where there is no run."""
    configured = pipeline.archive.dir if pipeline.archive is not None else None
    return configured if configured is not None and run is None else str(Run.find(run).folder / "archive")


def open_archive(place: str, examples: ExampleFormat) -> Archive:
    """The archive that is there; `Problems` where none is."""
    try:
        there = DeltaTable.is_deltatable(place)
    except (OSError, DeltaError) as error:
        raise unreachable(place, error) from None
    if not there:
        allowed = "allowed: what minutely archive writes, or the run of a replay whose config has an archive section"
        raise Problems([Problem(place, "--archive", "no archive there", allowed)])
    return Archive(place, examples)


def unreachable(place: str, error: Exception) -> Problems:
    """The error of a place that cannot be read or written as an archive."""
    reason = " ".join(_COLOURED.sub("", str(error)).split())
    return Problems([Problem(place, "--archive", reason, "allowed: a place that can be read and written")])


def nothing_in_between(archive: Archive, place: str) -> Problems:
    """The error of an archive without an example of the time that was asked for."""
    return Problems([Problem(place, "--since, --until", "no example in between", f"allowed: {_span(archive)}")])


def train_from_archive(
    pipeline: Pipeline, place: str, since: int | None, until: int | None, out: Path | None, console: Console
) -> dict[str, Any]:
    """Train on the examples decided from ``since`` to before ``until`` (ms), publish the model in a new run; its summary.

    Without ``until`` the version's offsets are those at which the archive ends, where live training continues. `GuardedError` where
    the weights are not fit to be published: nothing is written.
    """
    started = time.monotonic()
    Run.check_free(out)
    torch.set_num_threads(1)  # as online, where steps are too small to share
    now_ms = time.time_ns() // 1_000_000
    archive = open_archive(place, ExampleFormat(pipeline.features, pipeline.labels))
    prequential = Prequential(pipeline.labels)
    trainer = make_trainer(pipeline, prequential)
    with console.status("Training from the archive") as status:
        train_archive(
            archive,
            trainer,
            pipeline.train,
            0 if since is None else since,
            EVER if until is None else until,
            lambda examples: status.update(f"Training from the archive: {examples:,} examples"),
        )
    if not trainer.examples:
        raise nothing_in_between(archive, place)
    positions = archive.positions() if until is None else {}
    watermark = min(position.watermark for position in positions.values()) if until is None else until
    offsets = {f"{EXAMPLES}/{partition}": position.offset for partition, position in positions.items()}
    cut = cut_of(trainer, watermark, now_ms, offsets)
    run = Run.create(pipeline, out, now_ms)
    files, sync = LocalFiles(run.deltas, durable=True), pipeline.sync
    deltas = DeltaLog(files, pipeline.form(), sync.keep_deltas, precision=sync.rows)
    rows = {name: table.export() for name, table in trainer.tables.items()}
    deltas.take_over(rows, cut, Retraining(place, since).name(pipeline))
    deltas.fold()
    seconds = time.monotonic() - started
    summary = {
        "archive": place,
        "since": since,
        "until": until,
        "examples": trainer.examples,
        "metrics": prequential.metrics(),
        "offsets": offsets,
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
    hours = list(archive.hours(0, EVER))
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
