"""What commands have in common: their arguments and options, and the types of these."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from basis.settings import parse_duration

if TYPE_CHECKING:
    from minutely.config import Pipeline
    from minutely.service import Address

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

    name = "2024-01-31|2024-01-31T05:00"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read what was typed."""
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r}: allowed: a date or a time in ISO 8601, such as {self.name}", param, ctx)
        return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


deltas_option = click.option(
    "--deltas",
    help="Folder or object store address of the published versions, such as state/NAME/deltas. [default: that of the run]",
)
run_option = click.option("--run", type=click.Path(path_type=Path), help="Folder of a run. [default: the latest]")
archive_option = click.option(
    "--archive", "place", help="Folder or object store address of the archive. [default: archive.dir]"
)


def load(config: Path, data: Path | None, seed: int | None) -> Pipeline:
    """The pipeline of a config; `Problems` where it is wrong."""
    from minutely.config import load_pipeline

    pipeline = load_pipeline(config, data)
    return pipeline if seed is None else pipeline.model_copy(update={"seed": seed})
