"""What all services share: they end in order on SIGINT and SIGTERM, and log to standard error."""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

_ACCESS = re.compile(r"\w*Authenticat\w*|\w*Authorization\w*|certificate|SSLError")


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    port: int


class _AccessOnly(logging.Filter):
    """Of the Kafka client's lines, lets through why brokers did not let us in, once each; that they are away, the services say."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is written."""
        if not record.name.startswith("kafka."):
            return True
        found = _ACCESS.search(record.getMessage())
        if found is None or found[0] in self._said:
            return False
        self._said.add(found[0])
        record.exc_info = None
        return True


def log_to_stderr() -> None:
    """Lines of the services, and of libraries only what is wrong."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("minutely").setLevel(logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_AccessOnly())


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
