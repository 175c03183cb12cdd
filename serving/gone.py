"""Whether a client left before its answer: then nothing is scored for it any more, and nothing that it did not see is logged.

A client that shut down its sending side counts as gone. It could still read, but TCP cannot tell it from one that closed the
connection, and late answers make many of those.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

Gone: TypeAlias = Callable[[], bool]
"""Says, at any time and to any thread, whether a request's client has left."""

_EXTENSION = "minutely.gone"


def tell_gone(scope: Any, gone: Gone) -> None:
    """Attach ``gone`` to a request. ASGI's own ways to ask would consume a pipelining client's next request, or wait."""
    scope.setdefault("extensions", {})[_EXTENSION] = gone


def gone_of(scope: MutableMapping[str, Any]) -> Gone:
    """The `Gone` of a request; under a server that attaches none, clients never count as gone."""
    gone: Gone = scope.get("extensions", {}).get(_EXTENSION, never)
    return gone


def never() -> bool:
    """For requests from within this process."""
    return False
