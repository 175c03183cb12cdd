"""What all services share: they listen, wait for topics, log to standard error, may open files as the system lets them, and answer
Prometheus."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from prometheus_client import start_http_server
from prometheus_client.registry import Collector, CollectorRegistry

from basis.open_files import raise_limit
from basis.printable import printable
from basis.problems import CannotListen
from minutely.config import Pipeline
from streaming.kafka.topics import ensure_topics
from streaming.waiting import retrying

BACKLOG = 2048
PERSON_SECONDS = 60.0
"""How long commands that a person runs wait for brokers at their start."""


class Address(NamedTuple):
    """Where a service listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@contextmanager
def listening(address: Address, option: str) -> Iterator[None]:
    """Name the address and the ``option`` that it came from where it cannot be listened at, as `CannotListen`."""
    try:
        yield
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        said = "another program listens there" if taken else error.strerror or str(error)
        allowed = "a free port" if taken else "an address of this machine, and a port that this user may take"
        raise CannotListen(f"{option} {address}: {said}; allowed: {allowed}") from None


def bind(address: Address, option: str) -> socket.socket:
    """A TCP socket that has the address, for a server to listen at; `CannotListen` where it cannot be had."""
    with listening(address, option):
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = min(found, key=lambda each: each[0] != socket.AF_INET)
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6 and not address.host.strip(":"):
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind(place)
            bound.listen(BACKLOG)  # an address in use fails here, not at the first connection
        except OSError:
            bound.close()
            raise
        return bound


def serve_metrics(collector: Collector, address: Address) -> None:
    """Answer at ``/metrics`` from a thread of its own, as long as the process lives; `CannotListen` where the address is taken."""
    registry = CollectorRegistry()
    registry.register(collector)
    with listening(address, "--metrics"):
        start_http_server(address.port, address.host, registry)


def wait_for_topics(pipeline: Pipeline, log: logging.Logger, stop: Callable[[], bool]) -> None:
    """Wait, at the start of a command that a person runs, until brokers have the topics or ``stop`` comes.

    Raises:
        NoAnswerError: no broker is there in a minute.
    """
    retrying(log, stop, partial(ensure_topics, pipeline.kafka), pipeline.kafka.asked, PERSON_SECONDS)


class _Lines(logging.Formatter):
    """One line for each message, whatever texts of others it holds, and after it the lines of a traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


def log_to_stderr() -> None:
    """Lines of the services, and of libraries only what is wrong."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("minutely").setLevel(logging.INFO)


def begin() -> None:
    """Do what each service does first."""
    log_to_stderr()
    raise_limit()
