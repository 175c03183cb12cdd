"""The live line of a replay: event time, examples per second, freshness and running AUC."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from minutely.replays.loop import EmbeddedLoop
from trainer.metrics import auc

_EVERY_SECONDS = 0.5
_RECENT = 10_000


class ReplayProgress:
    """Shows how far a loop is. Running AUC is that of the last served impressions whose labels may be known by now."""

    def __init__(self, console: Console, title: str) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._title = title
        self._next = 0.0

    def __enter__(self) -> ReplayProgress:
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=None, state="")
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, loop: EmbeddedLoop, *, last: bool = False) -> None:
        """Redraw when it is time to, or when it is the ``last``."""
        now = time.monotonic()
        if now < self._next and not last:
            return
        self._next = now + _EVERY_SECONDS
        rate = loop.trainer.examples / max(now - self._started, 1e-9)
        event_time = datetime.fromtimestamp(loop.clock.now_ms() / 1000, UTC)
        state = f"{event_time:%Y-%m-%d %H:%M} · {rate:,.0f} examples/s{_freshness(loop)}{_auc(loop)}"
        self._bar.update(self._task, total=loop.events.impressions, completed=loop.impressions, state=state)


def _freshness(loop: EmbeddedLoop) -> str:
    latencies = loop.primary.latencies
    return f" · fresh to {latencies[-1].max() / 1000:,.0f} s" if latencies else ""


def _auc(loop: EmbeddedLoop) -> str:
    stop = loop.impressions
    start = max(stop - _RECENT, 0)
    for at, (name, label) in enumerate(loop.pipeline.labels.items()):
        if not label.is_value:
            found = auc(loop.primary.scores[start:stop, at], loop.truth[name][start:stop])
            return "" if found is None else f" · {name} AUC {found:.3f}"
    return ""
