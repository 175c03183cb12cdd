"""The commands of the services on Kafka, and of those that look after them."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from minutely.cli_options import (
    CONFIG_HELP,
    ConfigFile,
    Duration,
    EventTime,
    HostPort,
    Offsets,
    PerSecond,
    ReplicaAddress,
    Times,
    archive_option,
    config_argument,
    data_option,
    load,
    load_for_service,
    memory_option,
    metrics_option,
)
from minutely.ends import Ending
from minutely.terminal import Terminal, literal

if TYPE_CHECKING:
    from minutely.services.service import Address

_BATCH_ONLY = ("--until", "--run", "--out")


@click.command()
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
    from minutely.services.join import join as run
    from minutely.services.service import log_to_stderr

    log_to_stderr()
    pipeline = load_for_service(config)
    run(pipeline, state or Path("state") / pipeline.name / "join", metrics)


@click.command()
@config_argument
@archive_option
@metrics_option
def archive(config: Path, place: str | None, metrics: Address | None) -> None:
    """Archive every example that the joiners write to Kafka, once, in a Delta Lake table.

    Started again, it resumes exactly after what the table contains.
    """
    from minutely.services.archive import archive as run
    from minutely.services.archive import live_archive
    from minutely.services.service import log_to_stderr

    log_to_stderr()
    pipeline = load_for_service(config)
    run(pipeline, live_archive(pipeline, place), metrics)


@click.command()
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
@click.option("--resume", is_flag=True, help="Continue where a guard has held training.")
@click.option(
    "--pass-over", type=Offsets(), multiple=True, help="With --resume: offsets of examples that are not trained on."
)
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
    pass_over: tuple[tuple[int, range], ...],
) -> None:
    """Train on what the joiners write to Kafka, and publish a version every sync.sparse_every.

    Started again, it resumes exactly after what its newest version contains. Where a guard has held training, it says why and
    ends with status 3, until it is started with --resume: then it continues from the last version that was published. With
    --pass-over 0:120-140 it leaves out what is at these offsets of partition 0.

    With --from archive it trains in batch, in the order in which online training saw its examples. The archive is archive.dir of
    the config, or else that of a replay's run (the latest, or --run). Leaves a run's folder with the model as version 1.

    With --from archive and --deltas it then continues in the live log where the archive ends, takes over from the trainer that
    publishes to that folder, if any, and is the trainer from then on. Started again after that, it continues like any trainer.
    """
    given = {"--archive": place, "--since": since, "--until": until, "--run": run, "--out": out, "--seed": seed}
    named = [name for name, value in given.items() if value is not None]
    live = origin is None or deltas is not None
    if origin is None and named:
        raise click.UsageError(f"{', '.join(named)}: only with --from archive")
    if origin is not None and live and (batch_only := [name for name in named if name in _BATCH_ONLY]):
        raise click.UsageError(f"{', '.join(batch_only)}: not with --deltas, where training continues in the live log")
    if not live and metrics is not None:
        raise click.UsageError("--metrics: not without --deltas, where training ends with the archive")
    if since is not None and until is not None and until <= since:
        raise click.BadParameter("--until is not after --since; allowed: a later time")
    if pass_over and not resume:
        raise click.UsageError("--pass-over: only with --resume")
    pipeline = load_for_service(config, seed=seed) if live else load(config, None, seed)
    if live:
        from minutely.services.archive import live_archive
        from minutely.services.batch import Retraining
        from minutely.services.service import log_to_stderr
        from minutely.services.train import train as serve

        log_to_stderr()
        retraining = None if origin is None else Retraining(live_archive(pipeline, place), since)
        left: dict[int, list[range]] = {}
        for partition, offsets in pass_over:
            left.setdefault(partition, []).append(offsets)
        serve(pipeline, deltas or f"state/{pipeline.name}/deltas", metrics, retraining, resume=resume, pass_over=left)
    else:
        from minutely.services.batch import archive_place, train_from_archive

        found = place or archive_place(pipeline, run)
        train_from_archive(pipeline, found, since, until, out, Terminal())


@click.command()
@config_argument
@click.option("--deltas", help="Folder or object store address of the published versions. [default: state/NAME/deltas]")
@click.option("--listen", type=HostPort(), default="127.0.0.1:8080", show_default=True, help="Where to answer.")
@click.option(
    "--health",
    type=HostPort(),
    help="Answer health and metrics here too, without TLS, apart from other connections.",
)
@click.option("--name", help="Name of this replica in metrics. [default: the host's name and the port]")
def serve(config: Path, deltas: str | None, listen: Address, health: Address | None, name: str | None) -> None:
    """Answer ranking requests over HTTP from a copy of the newest version, and log what was served to Kafka.

    Routes: /v1/rank, /v1/engagements, /v1/status, /v2 (Open Inference Protocol), /metrics, /openapi.json.
    """
    from minutely.services.serve import serve as run
    from minutely.services.service import log_to_stderr

    log_to_stderr()
    pipeline = load(config, None, None)
    run(pipeline, deltas or f"state/{pipeline.name}/deltas", listen, health, name)


@click.command()
@click.argument(
    "replicas", nargs=-1, type=ReplicaAddress(), help="Where replicas answer. [default: those of docker-compose.yml]"
)
@click.option("--json", "as_json", is_flag=True, help="Ask once, and print one line of JSON for each replica.")
@click.option("--every", type=Duration(), default="1s", show_default=True, help="Time between two looks.")
def freshness(replicas: tuple[str, ...], as_json: bool, every: int) -> None:
    """Show how fresh replicas are: a live table of their versions and ages, until Ctrl-C.

    Where the output is no terminal, it asks once and prints one line for each replica. Having asked once, it ends with status 1
    where a replica did not answer, and with status 5 where none did.
    """
    from minutely.services.freshness import COMPOSE, follow, print_once

    console, asked = Terminal(), replicas or COMPOSE
    if console.is_terminal and not as_json:
        follow(console, asked, every / 1000)
    elif not print_once(console, asked, as_json=as_json):
        sys.exit(Ending.FAULT)


@click.command()
@config_argument
@data_option
@memory_option
@click.option("--speed", type=Times(), help="How much faster than logged, as in 60x. [default: 1x]")
@click.option("--rate", type=PerSecond(), help="Requests a second instead, as in 500/s.")
def produce(config: Path, data: str | None, memory: int | None, speed: float | None, rate: float | None) -> None:
    """Send logged events to Kafka as if they happened now: order kept, engagement delays as they were."""
    from minutely.services.produce import produce as run
    from minutely.services.service import log_to_stderr

    if speed is not None and rate is not None:
        raise click.UsageError("--speed and --rate say the same thing in two ways; give one")
    log_to_stderr()
    run(load_for_service(config, data, memory=memory), 1.0 if speed is None else speed, rate)


@click.command("dead-letters")
@click.argument("config", type=ConfigFile(), required=False, help=f"{CONFIG_HELP} Not with --run.")
@click.option("--reason", help="Only those refused for this reason.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="How many to show.")
@click.option(
    "--again",
    is_flag=True,
    help="Send them to where they came from, each once: those of --reason, or else of all reasons that a fix can mend.",
)
@click.option(
    "--since",
    type=Duration(),
    help="With --again: only those refused in this time up to now, as in 7d; older ones are left out, also later.",
)
@click.option("--run", type=click.Path(path_type=Path), help="List those of a replay, by the folder of its run.")
def dead_letters(
    config: Path | None, reason: str | None, limit: int, again: bool, since: int | None, run: Path | None
) -> None:
    """List what was refused and why, or send it again after a fix."""
    from minutely.run import Run
    from minutely.services.again import send_again
    from minutely.services.dead_letters import show, show_kept
    from streaming.records.reasons import JOINER_REASONS

    if again and run is not None:
        raise click.UsageError("--again sends what is on Kafka; a replay's are only listed")
    if since is not None and not again:
        raise click.UsageError("--since says what --again sends")
    if (config is None) == (run is None):
        raise click.UsageError("give either CONFIG, for what was refused on Kafka, or --run, for what a replay refused")
    if again and reason is not None and reason not in JOINER_REASONS:
        raise click.UsageError(
            f"--reason {reason}: nothing to send; allowed with --again: {', '.join(sorted(JOINER_REASONS))}"
        )
    console = Terminal()
    if config is None:
        show_kept(console, Run.find(run).dead_letters, reason, limit)
        return
    pipeline = load(config, None, None)
    if again:
        found = send_again(pipeline, reason, since)
        console.print(f"sent {found.sent.total()} again{_by_reason(found.sent)}; what is refused again is a new letter")
        if found.left:
            others = "no fix mends them; --reason sends those of one reason, except letters that are cut"
            what = others if reason is None else "they have another reason, or are cut"
            console.print(f"passed over {found.left.total()}{_by_reason(found.left)}; {what}")
        if found.astray:
            what = "they name partitions that are not there"
            console.print(f"passed over {found.astray.total()}{_by_reason(found.astray)}; {what}")
    else:
        show(console, pipeline, reason, limit)


def _by_reason(counts: Counter[str]) -> str:
    """As it is printed; reasons are texts of records."""
    return literal(f" ({', '.join(f'{name} {count}' for name, count in sorted(counts.items()))})") if counts else ""


COMMANDS = (join, archive, train, serve, freshness, produce, dead_letters)
