"""What one partition's joiner holds at most, of anything that others decide the size of.

Records themselves are bounded by `streaming.records.events`. Work is split before anything is refused: a transaction ends when it
is full, and the next one continues, in the middle of a request where need be.
"""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Numbers, and bytes where a name says so. One record or one row may pass a limit that is in bytes."""

    waiting: int = 10_000
    """Engagements that wait for one request; a product that sends ``request_id: "undefined"`` has all of them wait for that."""
    waiting_bytes: int = 1 << 20
    impression_events: int = 1000
    """Engagements of one impression that count."""
    request_events: int = 20_000
    """Those of all impressions of a request, which are written together: about 0.5 MB."""
    taken_bytes: int = 8 << 20
    """What is taken before a transaction; one read of the brokers, some 24 MiB, may pass it."""
    batch_bytes: int = 16 << 20
    """What is in one transaction: rows with the features that they share, as they are sent, and dead letters."""
