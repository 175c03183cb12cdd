"""Replaying logs through the whole loop, for `minutely replay` and `minutely compare`."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from rich.console import Console

from basis.problems import Problem, Problems
from basis.settings import format_duration
from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.logs.own_logs import load_events
from minutely.replays import cold_start
from minutely.replays.loop import EmbeddedLoop, open_loop
from minutely.replays.progress import ReplayProgress
from minutely.replays.report import write_report
from minutely.replays.results import results_of, summarize
from minutely.replays.scores import require_free, write_scores
from minutely.run import Run
from paramserver.files import LocalFiles, WriteBack
from streaming.source.logged_events import LoggedEvents

_DELTAS_IN_MEMORY_BYTES = 128 << 20
COMPARED: dict[str, int | None] = {"60s": 60_000, "5m": 300_000, "1h": 3_600_000, "24h": 86_400_000, "never": None}


class Extras(NamedTuple):
    """What a replay does on request: take the log through the loop once more for the cold start, write ``scores`` to a file."""

    cold_start: bool = False
    scores: Path | None = None


PLAIN = Extras()


class Replayed(NamedTuple):
    """A finished replay: its summary, in a comparison with the results of each cadence, and where its scores are."""

    run: Run
    summary: dict[str, Any]
    scores: Path | None


def replay(
    pipeline: Pipeline,
    cadences: Mapping[str, int | None],
    warmup: float,
    out: Path | None,
    console: Console,
    extras: Extras = PLAIN,
) -> Replayed:
    """Take the pipeline's logs through the loop with one replica a cadence, and leave a run's folder.

    Ctrl-C ends it between two steps, with everything that was learned by then published and summarised.
    """
    _check_cadences(pipeline, cadences)
    if extras.cold_start:
        cold_start.require_user(pipeline)
    Run.check_free(out)
    if extras.scores is not None:
        require_free(extras.scores, out)
    torch.set_num_threads(1)  # at steps of a few examples a second thread costs more than it brings
    now_ms = time.time_ns() // 1_000_000
    with console.status("Reading logs"):
        events = load_events(pipeline, now_ms)
    run = Run.create(pipeline, out, now_ms)
    with stop_on_signal() as stop:
        return _replay(pipeline, events, run, dict(cadences), warmup, extras, console, stop)


def _check_cadences(pipeline: Pipeline, cadences: Mapping[str, int | None]) -> None:
    """Whether steps end where replicas pull; the config's own cadence was checked with the config."""
    step = pipeline.train.step_every
    odd = [name for name, every in cadences.items() if every is not None and every % step]
    if odd and len(cadences) > 1:
        allowed = f"{', '.join(odd)} are compared; allowed: a time that divides them, such as 60s"
        raise Problems([Problem(pipeline.name, "train.step_every", format_duration(step), allowed)])
    if odd:
        allowed = f"allowed: multiples of train.step_every ({format_duration(step)}), or never"
        raise Problems([Problem(pipeline.name, "--sync-every", odd[0], allowed)])


def _replay(
    pipeline: Pipeline,
    events: LoggedEvents,
    run: Run,
    cadences: dict[str, int | None],
    warmup: float,
    extras: Extras,
    console: Console,
    stop: Callable[[], bool],
) -> Replayed:
    started = time.monotonic()
    files = WriteBack(LocalFiles(run.deltas, durable=False), _DELTAS_IN_MEMORY_BYTES)
    gc.freeze()  # the log's objects stay for the whole run
    with open_loop(pipeline, events, run.folder, files, cadences, warmup) as loop:
        _run_to_its_end(loop, pipeline.name, console, stop)
        files.flush()
        summary = summarize(loop, warmup, time.monotonic() - started, interrupted=stop())
        if len(cadences) > 1:
            summary["cadences"] = {served.name: results_of(loop, served) for served in loop.replicas}
        else:
            measured = _cold_start(loop, run, cadences, warmup, console, stop) if extras.cold_start else None
            summary["cold_start"] = measured
            summary["interrupted"] = stop()
        write_report(run.report, loop, summary)
        loop.keep_dead_letters(run.dead_letters)
    run.summary.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    for name in ("log", "pending"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    if extras.scores is not None:
        write_scores(extras.scores, loop)
    return Replayed(run, summary, extras.scores)


def _run_to_its_end(loop: EmbeddedLoop, title: str, console: Console, stop: Callable[[], bool]) -> None:
    with ReplayProgress(console, title) as progress:
        while not stop() and loop.tick():
            progress.update(loop)
        loop.finish()
        progress.update(loop, last=True)


def _cold_start(
    done: EmbeddedLoop,
    run: Run,
    cadences: dict[str, int | None],
    warmup: float,
    console: Console,
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """The AUC of users' first impressions under both default rows; None where it was interrupted.

    What another default row would have served is served: by the whole loop once more, with that row and nothing else changed.
    """
    pipeline, events, user = done.pipeline, done.events, cold_start.require_user(done.pipeline)
    scores = {}
    for default_row in cold_start.DEFAULT_ROWS:
        if cold_start.is_default_row(pipeline, default_row):
            scores[default_row] = done.primary.scores
            continue
        tables = pipeline.tables.with_default_row(default_row)
        changed = pipeline.model_copy(update={"tables": tables})
        folder = run.folder / f"default-row-{default_row}"
        files = WriteBack(LocalFiles(folder / "deltas", durable=False), _DELTAS_IN_MEMORY_BYTES)
        try:
            with open_loop(changed, events, folder, files, cadences, warmup) as loop:
                _run_to_its_end(loop, f"{pipeline.name}, default row {default_row}", console, stop)
                scores[default_row] = loop.primary.scores
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if stop():
        return None
    return cold_start.measure(pipeline, events, user, scores, done.scored_from)
