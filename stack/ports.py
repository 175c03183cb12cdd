"""Ports for the services that are started here."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _SLICES, _SLICE = 10_000, 22, 1_000
"""Below the ports that a system gives to connections and to who binds port 0: nobody else takes one between our look at it and
the service's start. Each of the processes that run tests has a slice of its own."""


def _own() -> itertools.cycle[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _FIRST + worker % _SLICES * _SLICE
    begun = os.getpid() % _SLICE  # runs side by side seldom begin at the same one
    return itertools.cycle((*range(first + begun, first + _SLICE), *range(first, first + begun)))


_PORTS = _own()


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens at, all different, and not given again before the whole slice was."""
    found: list[int] = []
    for port in itertools.islice(_PORTS, _SLICE):
        if len(found) == count:
            break
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    assert len(found) == count, f"{count} free ports among {_SLICE}"
    return found
