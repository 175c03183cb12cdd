"""The command line."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click
from click.core import ParameterSource

from basis.problems import Problems
from basis.settings import format_duration
from minutely.cli_options import (
    Cadence,
    EventTime,
    NegativeNumbers,
    config_argument,
    data_option,
    deltas_option,
    load,
    memory_option,
    out_option,
    run_option,
    seed_option,
    warmup_option,
    with_memory,
)
from minutely.cli_services import COMMANDS
from minutely.ends import Ending, errors_as_statuses
from minutely.terminal import Terminal

if TYPE_CHECKING:
    from minutely.config import Pipeline
    from minutely.replays.replay import Extras


class _Minutely(click.RichGroup):
    """The commands, each of which ends with a status that says how."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was typed."""
        with errors_as_statuses():
            return super().invoke(ctx)


_ONLY_AS_OF = {"deltas", "run"}
_NOT_AS_OF = {"warmup", "sync_every", "seed", "cold_start", "scores"}
_STATUSES = """Exit statuses: 0 done, 1 something that was named is wrong or broken, 2 the command line is wrong, 3 a guard keeps
the model back, 4 that address cannot be listened at, 5 brokers or replicas do not answer, 130 Ctrl-C, 141 the output was closed."""


@click.group(cls=_Minutely, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_STATUSES)
@click.version_option(package_name="minutely")
def cli() -> None:
    """Minutely trains ranking models on what users did a minute ago, and serves from them at once.

    Begin with `minutely replay movielens`, then let `minutely init` write a config for your own logs, and `minutely check` it.
    """


@cli.command()
@config_argument
@data_option
@out_option
@seed_option
@memory_option
@warmup_option
@click.option(
    "--sync-every",
    type=Cadence(),
    help="How often the replica pulls: 60s, 1h, 24h or never. [default: sync.sparse_every]",
)
@click.option(
    "--cold-start",
    is_flag=True,
    help="Replay once more with the other default row, to measure under both what new users are served.",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the served scores, labels and versions of all impressions to this Parquet file, which must be new.",
)
@click.option(
    "--as-of",
    type=EventTime(),
    help="Only score, with the published model as of this event time, such as 2024-01-31 or 2024-01-31T05:00 (UTC).",
)
@deltas_option
@run_option
@click.pass_context
def replay(
    context: click.Context,
    config: Path,
    data: str | None,
    out: Path | None,
    seed: int | None,
    memory: int | None,
    warmup: float,
    sync_every: int | str | None,
    cold_start: bool,
    scores: Path | None,
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
    if odd := sorted(given & (_ONLY_AS_OF if as_of is None else _NOT_AS_OF)):
        options = ", ".join("--" + name.replace("_", "-") for name in odd)
        raise click.UsageError(f"{options}: {'only' if as_of is None else 'not'} with --as-of")
    pipeline = load(config, data, seed, memory)
    if as_of is not None:
        from minutely.replays.as_of import print_as_of, replay_as_of

        print_as_of(Terminal(), replay_as_of(pipeline, _deltas_place(deltas, run), as_of, out, Terminal()))
        return
    from minutely.replays.replay import Extras

    every = pipeline.sync.sparse_every if sync_every is None else sync_every
    name = "never" if isinstance(every, str) else format_duration(every)
    cadences = {name: None if isinstance(every, str) else every}
    _replay(pipeline, cadences, warmup, out, Extras(cold_start, scores))


@cli.command()
@config_argument
@data_option
@out_option
@seed_option
@memory_option
@warmup_option
def compare(
    config: Path, data: str | None, out: Path | None, seed: int | None, memory: int | None, warmup: float
) -> None:
    """Compare cadences: what is freshness worth on this data?

    Trains once and serves with one replica for each of 60s, 5m, 1h, 24h and never. All share the warm-up, and differ only in
    when they pull what was learned.
    """
    from minutely.replays.replay import COMPARED, PLAIN

    _replay(load(config, data, seed, memory), COMPARED, warmup, out, PLAIN)


@cli.command()
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(path_type=Path), help="Files of logs, or folders of them."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The config's file. [default: NAME.yaml in this folder, after the first path]",
)
@click.option("--force", is_flag=True, help="Replace the config where it is there already.")
def init(paths: tuple[Path, ...], out: Path | None, force: bool) -> None:
    """Write a first config for logs: Parquet, CSV or JSON lines, looked at by their first 100,000 rows.

    It finds which files are impressions, engagements and side tables, and which columns are the time, the request, the user, the
    item, features and labels. Whatever is unsure is said in a comment of the config, beside the alternatives. The labels are
    yours to choose. Then `minutely check` it.
    """
    from minutely.init.command import init

    init(paths, out, time.time_ns() // 1_000_000, force=force, console=Terminal())


@cli.command()
@config_argument
@data_option
@memory_option
def check(config: Path, data: str | None, memory: int | None) -> None:
    """Check a config and the logs that it names: every mistake at once, or else what was found in them.

    It also shows what deserves a look, such as a window that cuts most positives, or a feature that knows the label.
    """
    from minutely.config import in_file, load_what_is_right
    from minutely.logs.check import describe
    from minutely.logs.log_mistakes import mistakes
    from minutely.logs.own_logs import load_events
    from streaming.source.rows.rejects import as_problems

    problems, pipeline, is_whole = load_what_is_right(config, data)
    events = None
    if pipeline is not None:
        pipeline = with_memory(pipeline, memory)
        try:
            events = load_events(pipeline, time.time_ns() // 1_000_000)
            problems += as_problems(events.rejects, events.more_rejects)
            problems += in_file(config, mistakes(pipeline, events)) if is_whole else []
        except Problems as found:
            problems += found.problems
    if problems or pipeline is None or events is None:
        raise Problems(problems)
    describe(Terminal(), pipeline, events)


@cli.command(cls=NegativeNumbers)
@click.argument("table", help="A table of the config.")
@click.argument("id", help="An integer or a text, as in the logs.")
@click.option("--run", "folder", type=click.Path(path_type=Path), help="Folder of the run. [default: the latest]")
def rows(table: str, id: str, folder: Path | None) -> None:
    """Show one row of a run: embedding norm, count, last seen, and the version that last changed it."""
    from minutely.replays.rows import show_row

    show_row(Terminal(), folder, table, id)


@cli.command()
@deltas_option
@run_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def versions(deltas: str | None, run: Path | None, as_json: bool) -> None:
    """List the published versions: size, rows, watermark, and what holds them."""
    from minutely.services.versions import show_versions

    show_versions(Terminal(), _deltas_place(deltas, run), as_json=as_json)


@cli.command(cls=NegativeNumbers)
@click.argument("version", type=click.IntRange(1), required=False, help="One that minutely versions lists.")
@deltas_option
@run_option
@click.option(
    "--train-from",
    type=click.Choice(["old", "newest"]),
    default="newest",
    show_default=True,
    help="The version from which training continues.",
)
@click.option("--release", is_flag=True, help="Let replicas take the newest version again.")
def rollback(version: int | None, deltas: str | None, run: Path | None, train_from: str, release: bool) -> None:
    """Make replicas serve what an older VERSION held, as a new version.

    With --train-from old, training continues from it too, from its offsets. With newest it continues from the newest version, and
    replicas stay at the old content until minutely rollback --release.
    """
    from minutely.services import versions as published

    if (version is None) != release:
        raise click.UsageError("give either a VERSION or --release")
    place = _deltas_place(deltas, run)
    if version is None:
        published.release(Terminal(), place)
    else:
        published.roll_back(Terminal(), place, version, training=train_from == "old")


def _deltas_place(deltas: str | None, run: Path | None) -> str:
    from minutely.run import Run

    if deltas is not None and run is not None:
        raise click.UsageError("--deltas and --run: give one")
    return deltas or str(Run.find(run).deltas)


def _replay(
    pipeline: Pipeline,
    cadences: dict[str, int | None],
    warmup: float,
    out: Path | None,
    extras: Extras,
) -> None:
    from minutely.replays.replay import replay
    from minutely.replays.summary_table import print_summary

    console = Terminal()
    done = replay(pipeline, cadences, warmup, out, console, extras)
    print_summary(console, done)
    if done.summary["interrupted"]:
        sys.exit(Ending.INTERRUPTED)


for command in COMMANDS:
    cli.add_command(command)

main = cli
"""The program."""
