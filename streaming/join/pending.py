"""The joiner's entry of a request."""

from __future__ import annotations

import msgspec

from streaming.join.timers import NEVER
from streaming.records.events import Request

OVERHEAD_BYTES = 1120
"""Memory of a pending request besides its features, measured with one impression of 11 features."""
ID_BYTES = 56
"""Memory of the id of each further impression besides its characters."""
WAITING_BYTES = 128
"""Memory of a waiting engagement besides its bytes."""

DROPPED = 255
"""In ``emitted``: a negative that sampling dropped."""


class Pending(msgspec.Struct, gc=False):
    """The joiner's entry of one request; times in ms of event time.

    Before the request itself has arrived, ``served_at`` is -1 and ``waiting`` holds its engagements as they came
    (offset, payload). ``emitted`` has one byte per impression: 0 while it is open, else how often it is in `examples` (its last
    revision plus 1), or `DROPPED`. Once every impression is emitted, ``request`` is None, unless late events correct examples. The
    rest stays as a marker, to recognise repeated and late events.

    ``offset`` is that of the request in `impressions`. If it became a dead letter because of its schema, ``outdated`` says why.
    ``digest`` is the XXH3 hash (64 bits) of the request's record.
    """

    wake_at: int = NEVER
    served_at: int = -1
    request: Request | None = None
    impression_ids: list[str] = []
    emitted: bytearray = msgspec.field(default_factory=bytearray)
    events: dict[int, list[tuple[int, str, float]]] = {}
    waiting: list[tuple[int, bytes]] = []
    waiting_bytes: int = 0
    """The size of the payloads in ``waiting``."""
    event_count: int = 0
    """The number of ``events``."""
    offset: int = -1
    outdated: str = ""
    digest: int = 0

    def wait(self, offset: int, engagement: bytes) -> None:
        """Let an engagement wait for its request."""
        self.waiting.append((offset, engagement))
        self.waiting_bytes += len(engagement)

    def close(self) -> None:
        """Drop all open impressions."""
        self.emitted = bytearray(times or DROPPED for times in self.emitted)
