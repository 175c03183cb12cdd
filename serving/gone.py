"""Whether a client has left before its answer: then nothing more is scored for it, and nothing that it did not see is logged.

One that sends no more is taken to have left. It could still read, but TCP does not tell it from one that gave up and closed its
connection, and of those there are many where answers are late.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

Gone: TypeAlias = Callable[[], bool]
"""Says, at any time and to any thread, whether a request's client has left."""

_EXTENSION = "minutely.gone"


def tell_gone(scope: Any, gone: Gone) -> None:
    """Have a request know. Of ASGI's own ways one reads on, which a pipelining client must not get, and one waits."""
    scope.setdefault("extensions", {})[_EXTENSION] = gone


def gone_of(scope: MutableMapping[str, Any]) -> Gone:
    """What was told to a request; of a server that does not tell, nobody leaves."""
    gone: Gone = scope.get("extensions", {}).get(_EXTENSION, never)
    return gone


def never() -> bool:
    """Who asks is in this process."""
    return False
