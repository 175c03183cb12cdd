"""What all services share: they end in order on SIGINT and SIGTERM, and log to standard error."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    port: int


def log_to_stderr() -> None:
    """Lines of the services, and of libraries only what is wrong."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("minutely").setLevel(logging.INFO)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Whether the process was asked to end; asked a second time, it ends at once."""
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
