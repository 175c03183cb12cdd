"""`minutely freshness`: how fresh replicas are, as a live table, as lines, or as JSON."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from basis.decoding import why
from basis.problems import NoAnswerError
from minutely.terminal import literal
from serving.freshness import STAGES
from serving.status import Status

COMPOSE = ("127.0.0.1:8081", "127.0.0.1:8082")
"""Where the replicas of `docker-compose.yml` answer."""
_TIMEOUT_SECONDS = 5.0
_decoder = msgspec.json.Decoder(Status)  # made once: see serving.client
_COLORS = {"fresh": "green", "idle": "cyan", "stale": "red", "empty": "yellow"}


class Looked(msgspec.Struct):
    """What a replica said at ``url``, or why it did not."""

    url: str
    status: Status | None = None
    error: str | None = None


def look(urls: Sequence[str]) -> list[Looked]:
    """Ask all replicas at once; one that does not answer is named with the reason."""
    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(_ask, urls))


def _ask(url: str) -> Looked:
    place = url if "://" in url else f"http://{url}"
    try:
        with urllib.request.urlopen(f"{place.rstrip('/')}/v1/status", timeout=_TIMEOUT_SECONDS) as answer:
            data = answer.read()
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        return Looked(url, error=" ".join(str(reason).split()) or type(error).__name__)
    try:
        return Looked(url, _decoder.decode(data))
    except Exception as error:
        return Looked(url, error=f"no replica's status: {why(error)}")


def print_once(console: Console, urls: Sequence[str], *, as_json: bool) -> bool:
    """Print a line for each replica, after one of headings where it is no JSON; whether all answered.

    `NoAnswerError` where none did.
    """
    found = look(urls)
    if as_json:
        for each in found:
            console.print(msgspec.json.encode(each).decode(), soft_wrap=True, highlight=False, markup=False)
    else:
        console.print(table(found))
    if all(each.error for each in found):
        raise NoAnswerError(
            f"{', '.join(urls)}: is a replica running there? Allowed: the addresses of minutely serve --listen"
        )
    return not any(each.error for each in found)


def follow(console: Console, urls: Sequence[str], every_seconds: float) -> None:
    """A table that follows the replicas until Ctrl-C."""
    try:
        with Live(table(look(urls)), console=console, refresh_per_second=4) as live:
            while True:
                time.sleep(every_seconds)
                live.update(table(look(urls)))
    except KeyboardInterrupt:
        return


def table(found: Sequence[Looked]) -> Table:
    """Replicas by row: versions, ages and delays, then the median time in each stage."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "replica",
        "state",
        "rows of",
        "dense of",
        "freshness",
        "newest",
        "decided→servable p50/p99",
        *STAGES,
        "rows",
    ):
        made.add_column(name, justify="left" if name in ("replica", "state") else "right", no_wrap=name == "replica")
    for each in found:
        status = each.status
        if status is None:
            made.add_row(literal(each.url), f"[red]{literal(each.error or '')}[/red]")
            continue
        delays = status.decided_to_servable_seconds
        state = f"[{_COLORS[status.state]}]{status.state}[/]" + (
            f" pinned by {status.pinned_by}" if status.pinned else ""
        )
        made.add_row(
            literal(status.replica),
            state + (f" [red]{literal(' '.join(status.problem.split()))}[/red]" if status.problem else ""),
            str(status.sparse_version),
            str(status.dense_version),
            seconds(status.freshness_seconds),
            seconds(status.newest_behaviour_seconds),
            f"{seconds(delays.get('p50'))} / {seconds(delays.get('p99'))}",
            *(seconds(status.stage_p50_seconds.get(stage)) for stage in STAGES),
            f"{status.rows:,}",
        )
    return made


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 600 else f"{value / 60:.0f} min"
