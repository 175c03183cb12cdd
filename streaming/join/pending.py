"""What a joiner knows of a request, and what it needs of the place that keeps it."""

from __future__ import annotations

from typing import Protocol

import msgspec

from streaming.join.timers import NEVER
from streaming.records.events import Request

OVERHEAD_BYTES = 1024
"""What a pending request costs in memory besides its features, measured with one impression of 11 features."""
ID_BYTES = 56
"""What the id of each further impression costs beside its characters."""
WAITING_BYTES = 128
"""What an engagement that waits costs beside its bytes."""

DROPPED = 255
"""In ``emitted``: a negative that sampling dropped."""


class Pending(msgspec.Struct, array_like=True, gc=False):
    """What is known of one request; times in ms of event time.

    Before the request itself has arrived, ``served_at`` is -1 and ``waiting`` holds its engagements as they came
    (offset, payload). ``emitted`` holds a byte an impression: 0 while it is open, else how often it is in `examples`, which
    is its last revision plus 1, or `DROPPED`. Once every impression is emitted, ``request`` is None, unless late events correct
    examples, and the rest stays as the marker that repeated and late events are recognised by.

    ``offset`` is that of the request in `impressions`. Where it was made under another schema and became a dead letter for that,
    ``outdated`` says why.
    """

    wake_at: int = NEVER
    served_at: int = -1
    request: Request | None = None
    impression_ids: list[str] = []
    emitted: bytearray = msgspec.field(default_factory=bytearray)
    events: dict[int, list[tuple[int, str, float]]] = {}
    waiting: list[tuple[int, bytes]] = []
    waiting_bytes: int = 0
    """Of the payloads in ``waiting``."""
    event_count: int = 0
    """How many there are in ``events``."""
    offset: int = -1
    outdated: str = ""


class PendingRequests(Protocol):
    """What the joiner needs of its state."""

    def get(self, request_id: str) -> Pending | None:
        """The entry; changes made to it stay, once `add`, `wake` or `shrink` told of them."""

    def add(self, request_id: str, pending: Pending, grown_bytes: int) -> None:
        """Put in an entry, or tell that one which is there grew by ``grown_bytes`` of payload."""

    def shrink(self, request_id: str) -> None:
        """Tell that an entry gave its payload away."""

    def wake(self, request_id: str, pending: Pending, at: int) -> None:
        """Make `due` return the entry when ``at`` (ms) has passed, or earlier where that was asked for before."""

    def due(self, before: int, limit: int) -> list[str]:
        """Up to ``limit`` ids whose time is before ``before`` (ms); `get` each and `wake` it anew."""

    def next_due(self) -> int:
        """The earliest time (ms) that `due` waits for, or `NEVER`."""

    def drop(self, request_id: str) -> None:
        """Forget an entry that `get` returned."""
