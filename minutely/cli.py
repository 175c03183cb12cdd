"""The command line."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape

from basis.problems import BadFile, GapError, GuardedError, NotFiniteError, Problems
from basis.settings import format_duration, parse_duration

if TYPE_CHECKING:
    from minutely.config import Pipeline
    from minutely.service import Address

_INTERRUPTED = 130
_GUARDED = 3
_BATCH_ONLY = ("--until", "--run", "--out")

config_argument = click.argument("config", type=click.Path(path_type=Path))
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the logs, instead of the configured one.",
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the results, new or empty. [default: runs/NAME-TIME]",
)
seed_option = click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed, instead of the configured one.")
warmup_option = click.option(
    "--warmup",
    type=click.FloatRange(0, 1, max_open=True),
    callback=lambda _context, _option, value: value if value == value else _no_number(value),
    default=0.5,
    show_default=True,
    help="Share of the impressions to learn from before served scores count.",
)


def _no_number(value: float) -> float:
    raise click.BadParameter(f"{value} is no share; allowed: 0 to 1")


class Cadence(click.ParamType[int | str]):
    """A duration in ms, or the word ``never``."""

    name = "60s|1h|24h|never"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read what was typed."""
        if value == "never":
            return value
        try:
            every = parse_duration(value)
            if every == 0:
                raise ValueError("must be longer than 0s")
            return every
        except ValueError as error:
            self.fail(f"{value!r}: {error}, or never", param, ctx)


class Number(click.ParamType[float]):
    """A positive number with ``suffix`` after it."""

    suffix = ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read what was typed."""
        text = str(value)
        try:
            number = float(text.removesuffix(self.suffix)) if text.endswith(self.suffix) else 0.0
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            self.fail(f"{text!r}; allowed: a positive number with {self.suffix}, as in 60{self.suffix}", param, ctx)
        return number


class HostPort(click.ParamType[Any]):
    """Where to listen."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Read what was typed."""
        from minutely.service import Address

        host, _, port = str(value).rpartition(":")
        if not port.isdigit() or not 0 < int(port) < 65_536:
            self.fail(f"{value!r}; allowed: HOST:PORT, as in 127.0.0.1:9464", param, ctx)
        return Address(host or "127.0.0.1", int(port))


metrics_option = click.option("--metrics", type=HostPort(), help="Answer Prometheus at this address. [default: not]")


class Times(Number):
    """How many times faster."""

    name, suffix = "60x", "x"


class PerSecond(Number):
    """How many a second."""

    name, suffix = "500/s", "/s"


class EventTime(click.ParamType[int]):
    """An ISO 8601 date or time, as ms since 1970; UTC where it names no zone."""

    name = "2024-01-31|2024-01-31T05:00"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read what was typed."""
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r}: allowed: a date or a time in ISO 8601, such as {self.name}", param, ctx)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


_deltas_option = click.option(
    "--deltas",
    help="Folder or object store address of the published versions, such as state/NAME/deltas. [default: that of the run]",
)
_run_option = click.option("--run", type=click.Path(path_type=Path), help="Folder of a run. [default: the latest]")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="minutely")
def cli() -> None:
    """Minutely trains ranking models on what users did a minute ago, and serves from them at once.

    Begin with `minutely replay configs/movielens.yaml`, then point a config at your own logs and `minutely check` it.
    """


@cli.command()
@config_argument
@data_option
@out_option
@seed_option
@warmup_option
@click.option("--sync-every", type=Cadence(), help="How often the replica pulls. [default: sync.sparse_every, 60s]")
@click.option("--as-of", type=EventTime(), help="Only score, with the published model as of this event time.")
@_deltas_option
@_run_option
@click.pass_context
def replay(
    context: click.Context,
    config: Path,
    data: Path | None,
    out: Path | None,
    seed: int | None,
    warmup: float,
    sync_every: int | str | None,
    as_of: int | None,
    deltas: str | None,
    run: Path | None,
) -> None:
    """Replay logs through the whole loop: joiner, trainer, parameter server, deltas and a serving replica.

    The replica scores every impression with the version that it has at that event time, before its label exists; those
    scores are what the summary measures. Leaves summary.json and report.html in the run's folder.

    With --as-of nothing is trained: the model that --deltas or --run has as of that time scores everything that was served from
    then on. The summary is printed, and left in --out where that is given.
    """
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if odd := sorted(given & ({"deltas", "run"} if as_of is None else {"warmup", "sync_every", "seed"})):
        options = ", ".join("--" + name.replace("_", "-") for name in odd)
        raise click.UsageError(f"{options}: {'only' if as_of is None else 'not'} with --as-of")
    pipeline = _load(config, data, seed)
    if as_of is not None:
        from minutely.as_of import print_as_of, replay_as_of

        print_as_of(Console(), replay_as_of(pipeline, _deltas_place(deltas, run), as_of, out, Console()))
        return
    every = pipeline.sync.sparse_every if sync_every is None else sync_every
    name = "never" if isinstance(every, str) else format_duration(every)
    _replay(pipeline, {name: None if isinstance(every, str) else every}, warmup, out)


@cli.command()
@config_argument
@data_option
@out_option
@seed_option
@warmup_option
def compare(config: Path, data: Path | None, out: Path | None, seed: int | None, warmup: float) -> None:
    """Compare cadences: what is freshness worth on this data?

    Trains once and serves with one replica for each of 60s, 5m, 1h, 24h and never. All share the warm-up, and differ only in
    when they pull what was learned.
    """
    from minutely.replay import COMPARED

    _replay(_load(config, data, seed), COMPARED, warmup, out)


@cli.command()
@config_argument
@data_option
def check(config: Path, data: Path | None) -> None:
    """Check a config and the logs that it names: every mistake at once, or else what was found in them."""
    from minutely.check import describe, silent_labels
    from minutely.config import load_what_is_right
    from streaming.source import load
    from streaming.tabular import as_problems

    pipeline, problems = load_what_is_right(config, data)
    events = None
    if pipeline is not None:
        try:
            events = load(pipeline.data_folder(), pipeline.source, pipeline.features, time.time_ns() // 1_000_000)
            problems += as_problems(events.rejects)
            problems += [] if problems else silent_labels(pipeline, events)
        except Problems as found:
            problems += found.problems
    if problems or pipeline is None or events is None:
        raise Problems(problems)
    describe(Console(), pipeline, events)


@cli.command()
@click.argument("table")
@click.argument("id")
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of the run. [default: the latest]")
def rows(table: str, id: str, folder: Path | None) -> None:
    """Show one row of a run: embedding norm, count, last seen, and the version that last changed it.

    ID is an integer or a text, as it stands in the logs.
    """
    from minutely.rows import show_row

    show_row(Console(), folder, table, id)


@cli.command()
@config_argument
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of this joiner's state. [default: state/NAME/join]",
)
@metrics_option
def join(config: Path, state: Path | None, metrics: Address | None) -> None:
    """Join impressions with engagements on Kafka: examples out, each once, whatever dies.

    Start as many as you like with one state folder each; they share the partitions.
    """
    from minutely.join import join as run
    from minutely.service import log_to_stderr

    log_to_stderr()
    pipeline = _load(config, None, None)
    run(pipeline, state or Path("state") / pipeline.name / "join", metrics)


archive_option = click.option(
    "--archive", "place", help="Folder or object store address of the archive. [default: archive.dir]"
)


@cli.command()
@config_argument
@archive_option
@metrics_option
def archive(config: Path, place: str | None, metrics: Address | None) -> None:
    """Archive every example that the joiners write to Kafka, once, in a Delta Lake table.

    Started again, it goes on after exactly what the table contains.
    """
    from minutely.archive import archive as run
    from minutely.archive import live_archive
    from minutely.service import log_to_stderr

    log_to_stderr()
    pipeline = _load(config, None, None)
    run(pipeline, live_archive(pipeline, place), metrics)


@cli.command()
@config_argument
@click.option("--deltas", help="Folder or object store address of the published versions. [default: state/NAME/deltas]")
@metrics_option
@click.option("--from", "origin", type=click.Choice(["archive"]), help="Train in batch, from the archive.")
@archive_option
@click.option("--since", type=EventTime(), help="With --from: examples decided at this event time or later.")
@click.option("--until", type=EventTime(), help="With --from: examples decided before this event time.")
@click.option("--run", type=click.Path(path_type=Path), help="With --from: take the archive of this run's folder.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="With --from: the new run's folder.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="With --from: seed, instead of the configured one.")
@click.option("--resume", is_flag=True, help="Go on where a guard has held training.")
def train(
    config: Path,
    deltas: str | None,
    metrics: Address | None,
    origin: str | None,
    place: str | None,
    since: int | None,
    until: int | None,
    run: Path | None,
    out: Path | None,
    seed: int | None,
    resume: bool,
) -> None:
    """Train on what the joiners write to Kafka, and publish a version every sync.sparse_every.

    Started again, it goes on after exactly what its newest version contains. Where a guard has held training, it says why and
    ends with status 3, until it is started with --resume: then it goes on from the last version that was published.

    With --from archive it trains in batch, in the order in which online training saw its examples. The archive is archive.dir of
    the config, or else that of a replay's run (the latest, or --run). Leaves a run's folder with the model as version 1.

    With --from archive and --deltas it then goes on in the live log where the archive ends, takes over from the trainer that
    publishes to that folder, if any, and is the trainer from then on. Started again after that, it goes on like any trainer.
    """
    given = {"--archive": place, "--since": since, "--until": until, "--run": run, "--out": out, "--seed": seed}
    named = [name for name, value in given.items() if value is not None]
    live = origin is None or deltas is not None
    if origin is None and named:
        raise click.UsageError(f"{', '.join(named)}: only with --from archive")
    if origin is not None and live and (batch_only := [name for name in named if name in _BATCH_ONLY]):
        raise click.UsageError(f"{', '.join(batch_only)}: not with --deltas, where training goes on in the live log")
    if not live and metrics is not None:
        raise click.UsageError("--metrics: not without --deltas, where training ends with the archive")
    if since is not None and until is not None and until <= since:
        raise click.BadParameter("--until is not after --since; allowed: a later time")
    pipeline = _load(config, None, seed)
    if live:
        from minutely.archive import live_archive
        from minutely.batch import Retraining
        from minutely.service import log_to_stderr
        from minutely.train import train as serve

        log_to_stderr()
        retraining = None if origin is None else Retraining(live_archive(pipeline, place), since)
        serve(pipeline, deltas or f"state/{pipeline.name}/deltas", metrics, retraining, resume=resume)
    else:
        from minutely.batch import archive_place, train_from_archive

        found = place or archive_place(pipeline, run)
        train_from_archive(pipeline, found, since, until, out, Console())


@cli.command()
@config_argument
@click.option(
    "--deltas",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the published versions. [default: state/NAME/deltas]",
)
@click.option("--listen", type=HostPort(), default="127.0.0.1:8080", show_default=True, help="Where to answer.")
@click.option("--name", help="Name of this replica in metrics. [default: the host's name and the port]")
def serve(config: Path, deltas: Path | None, listen: Address, name: str | None) -> None:
    """Answer ranking requests over HTTP from a copy of the newest version, and log what was served to Kafka.

    Routes: /v1/rank, /v1/engagements, /v1/status, /v2 (Open Inference Protocol), /metrics, /openapi.json.
    """
    from minutely.serve import serve as run
    from minutely.service import log_to_stderr

    log_to_stderr()
    pipeline = _load(config, None, None)
    run(pipeline, deltas or Path("state") / pipeline.name / "deltas", listen, name)


@cli.command()
@click.argument("urls", nargs=-1, required=True, metavar="URL...")
@click.option("--json", "as_json", is_flag=True, help="Ask once, and print one line of JSON for each replica.")
@click.option("--every", type=float, default=1.0, show_default=True, help="Seconds between two looks.")
def freshness(urls: tuple[str, ...], as_json: bool, every: float) -> None:
    """Show how fresh replicas are: a live table of their versions and ages, until Ctrl-C."""
    from minutely.freshness import print_json, show

    if as_json:
        sys.exit(print_json(urls))
    show(Console(), urls, every)


@cli.command()
@config_argument
@data_option
@click.option("--speed", type=Times(), help="How much faster than logged, as in 60x. [default: 1x]")
@click.option("--rate", type=PerSecond(), help="Requests a second instead, as in 500/s.")
def produce(config: Path, data: Path | None, speed: float | None, rate: float | None) -> None:
    """Send logged events to Kafka as if they happened now: order kept, engagement delays as they were."""
    from minutely.produce import produce as run
    from minutely.service import log_to_stderr

    if speed is not None and rate is not None:
        raise click.UsageError("--speed and --rate say the same thing in two ways; give one")
    log_to_stderr()
    run(_load(config, data, None), 1.0 if speed is None else speed, rate)


@cli.command()
@_deltas_option
@_run_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def versions(deltas: str | None, run: Path | None, as_json: bool) -> None:
    """List the published versions: size, rows, watermark, and what holds them."""
    from minutely.versions import show_versions

    show_versions(Console(), _deltas_place(deltas, run), as_json=as_json)


@cli.command()
@click.argument("version", type=click.IntRange(1), required=False)
@_deltas_option
@_run_option
@click.option(
    "--train-from",
    type=click.Choice(["old", "newest"]),
    default="newest",
    show_default=True,
    help="What training goes on from.",
)
@click.option("--release", is_flag=True, help="Let replicas take the newest version again.")
def rollback(version: int | None, deltas: str | None, run: Path | None, train_from: str, release: bool) -> None:
    """Make replicas serve what an older VERSION held, as a new version.

    With --train-from old, training goes on from it too, from its offsets. With newest it goes on from the newest version, and
    replicas stay at the old content until minutely rollback --release.
    """
    from minutely import versions as published

    if (version is None) != release:
        raise click.UsageError("give either a VERSION or --release")
    place = _deltas_place(deltas, run)
    if version is None:
        published.release(Console(), place)
    else:
        published.roll_back(Console(), place, version, training=train_from == "old")


def _deltas_place(deltas: str | None, run: Path | None) -> str:
    from minutely.run import Run

    if deltas is not None and run is not None:
        raise click.UsageError("--deltas and --run: give one")
    return deltas or str(Run.find(run).deltas)


@cli.command("dead-letters")
@config_argument
@click.option("--reason", help="Only those refused for this reason.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="How many to show.")
@click.option("--again", is_flag=True, help="Send them again, to where they came from.")
def dead_letters(config: Path, reason: str | None, limit: int, again: bool) -> None:
    """List what the joiners refused and why, or send it again after a fix."""
    from minutely.dead_letters import send_again, show

    pipeline = _load(config, None, None)
    console = Console(soft_wrap=True)
    if again:
        console.print(f"sent {send_again(pipeline, reason)} again")
    else:
        show(console, pipeline, reason, limit)


def _load(config: Path, data: Path | None, seed: int | None) -> Pipeline:
    from minutely.config import load_pipeline

    pipeline = load_pipeline(config, data)
    return pipeline if seed is None else pipeline.model_copy(update={"seed": seed})


def _replay(pipeline: Pipeline, cadences: dict[str, int | None], warmup: float, out: Path | None) -> None:
    from minutely.replay import replay
    from minutely.summary_table import print_summary

    console = Console()
    done = replay(pipeline, cadences, warmup, out, console)
    print_summary(console, done)
    if done.summary["interrupted"]:
        sys.exit(_INTERRUPTED)


def main() -> None:
    """Entry point: mistakes of the user end with what, where and what is allowed, on standard error, and exit status 1."""
    try:
        cli()
    except Problems as error:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        for problem in error.problems:
            console.print(f"[red]error[/red] {escape(str(problem))}")
        sys.exit(1)
    except (NotFiniteError, GuardedError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]not published[/red] {escape(str(error))}")
        sys.exit(_GUARDED)
    except (
        OSError,
        BadFile,
        GapError,
    ) as error:  # a folder that cannot be written, a run that was damaged, lost records
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error[/red] {escape(str(error))}")
        sys.exit(1)
