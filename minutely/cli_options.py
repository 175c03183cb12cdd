"""What commands have in common: their arguments and options, and the types of these."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import rich_click as click

from basis.problems import Problem, Problems
from basis.settings import parse_duration
from minutely.built_in import BUILT_IN, find_config

if TYPE_CHECKING:
    from minutely.config import Pipeline
    from minutely.services.service import Address

_NEGATIVE = re.compile(r"-[0-9]+")
_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^]]*)\]|(?P<host>[^:\[\]\s]*)):(?P<port>[0-9]{1,5})")


class ConfigFile(click.ParamType[Path]):
    """A pipeline's file, or the name of a built-in one."""

    name = "config"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Find what was typed."""
        return find_config(Path(value))


CONFIG_HELP = f"The pipeline's YAML file, or the name of a built-in one: {', '.join(BUILT_IN)}."
config_argument = click.argument("config", type=ConfigFile(), help=CONFIG_HELP)
data_option = click.option(
    "--data",
    type=click.Path(file_okay=False),
    help="Folder or object store address of the logs, instead of the configured one.",
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


class NegativeNumbers(click.RichCommand):
    """A command whose arguments may be negative numbers, where click would look for an option ``-5``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take options, then arguments."""
        if "--" not in args:
            negative = [each for each in args if _NEGATIVE.fullmatch(each)]
            args = [each for each in args if each not in negative] + (["--", *negative] if negative else [])
        return super().parse_args(ctx, args)


class Duration(click.ParamType[int]):
    """A duration in ms, longer than nothing."""

    name = "duration"
    or_else = ""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read what was typed."""
        try:
            every = parse_duration(value)
            if every == 0:
                raise ValueError("must be longer than 0s")
            return every
        except ValueError as error:
            self.fail(f"{value!r}: {error}{self.or_else}", param, ctx)


class Cadence(Duration):
    """A duration in ms, or the word ``never``."""

    name = "duration|never"
    or_else = ", or never"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read what was typed."""
        return value if value == "never" else super().convert(value, param, ctx)


class Memory(click.ParamType[int]):
    """A size in bytes, as of ``source.memory``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read what was typed."""
        from streaming.source.settings import parse_memory

        try:
            return parse_memory(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


memory_option = click.option(
    "--memory",
    type=Memory(),
    help="How much of the logs is sorted in memory, as in 2GB; the rest is on disk. [default: source.memory, or a quarter of "
    "the machine's]",
)


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
    """Where to listen; an IPv6 address stands in brackets, as in URLs."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Read what was typed."""
        from minutely.services.service import Address

        match = _HOST_PORT.fullmatch(str(value))
        if match is None or not 0 < int(match["port"]) < 65_536 or not _is_ipv6(match["ipv6"]):
            self.fail(
                f"{value!r}; allowed: HOST:PORT, as in 127.0.0.1:9464 or [::1]:9464, ports 1 to 65535", param, ctx
            )
        return Address(match["ipv6"] or match["host"] or "127.0.0.1", int(match["port"]))


def _is_ipv6(text: str | None) -> bool:
    try:
        return text is None or ip_address(text).version == 6
    except ValueError:
        return False


class ReplicaAddress(click.ParamType[str]):
    """Where a replica answers: what `minutely serve` has as --listen, or a URL."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Read what was typed."""
        text = str(value)
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            right = False
        if not right:
            self.fail(
                f"{text!r}; allowed: HOST:PORT, as in 127.0.0.1:8081 or [::1]:8081, or a URL with http or https",
                param,
                ctx,
            )
        return text


metrics_option = click.option("--metrics", type=HostPort(), help="Answer Prometheus at this address. [default: not]")


class Times(Number):
    """How many times faster."""

    name, suffix = "speed", "x"


class PerSecond(Number):
    """How many a second."""

    name, suffix = "rate", "/s"


class Offsets(click.ParamType[tuple[int, range]]):
    """Offsets of one partition, as its number and their range."""

    name = "PARTITION:FIRST-LAST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, range]:
        """Read what was typed."""
        found = re.fullmatch(r"(\d{1,9}):(\d{1,18})(?:-(\d{1,18}))?", str(value), re.ASCII)
        first, last = (int(found[2]), int(found[3] or found[2])) if found else (1, 0)
        if found is None or last < first:
            self.fail(f"{value!r}; allowed: a partition and offsets, as in 0:120 or 0:120-140", param, ctx)
        return int(found[1]), range(first, last + 1)


class EventTime(click.ParamType[int]):
    """An ISO 8601 date or time, as ms since 1970; UTC where it names no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read what was typed."""
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r}: allowed: a date or a time in ISO 8601, such as 2024-01-31 or 2024-01-31T05:00", param, ctx
            )
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


deltas_option = click.option(
    "--deltas",
    help="Folder or object store address of the published versions, such as state/NAME/deltas. [default: that of the run]",
)
run_option = click.option("--run", type=click.Path(path_type=Path), help="Folder of a run. [default: the latest]")
archive_option = click.option(
    "--archive", "place", help="Folder or object store address of the archive. [default: archive.dir]"
)


def load(config: Path, data: str | None, seed: int | None, memory: int | None = None) -> Pipeline:
    """The pipeline of a config; `Problems` where it is wrong."""
    from minutely.config import load_pipeline

    pipeline = with_memory(load_pipeline(config, data), memory)
    return pipeline if seed is None else pipeline.model_copy(update={"seed": seed})


def load_for_service(
    config: Path, data: str | None = None, seed: int | None = None, memory: int | None = None
) -> Pipeline:
    """The pipeline of a config for a service on Kafka; `Problems` where it is wrong, or has live features, of which only
    replicas know."""
    pipeline = load(config, data, seed, memory)
    if kept := [name for name, _ in pipeline.live.definitions()]:
        allowed = "live features are kept in replays only so far; allowed: minutely replay, or a config without them"
        raise Problems([Problem(str(config), "live", ", ".join(kept), allowed)])
    return pipeline


def with_memory(pipeline: Pipeline, memory: int | None) -> Pipeline:
    """The pipeline with what ``--memory`` says."""
    if memory is None:
        return pipeline
    return pipeline.model_copy(update={"source": pipeline.source.model_copy(update={"memory": memory})})
