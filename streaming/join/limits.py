"""Limits of what one partition's joiner holds, wherever its inputs decide the size.

`streaming.records.events` bounds the records themselves. Work is split before anything is refused: a transaction ends when it is
full, and the next one continues, if need be in the middle of a request.
"""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Counts, or bytes if the name says so. A single record or row may exceed a limit in bytes."""

    waiting: int = 10_000
    """Engagements that wait for one request. If a product sends ``request_id: "undefined"``, all of them wait for that one."""
    waiting_bytes: int = 1 << 20
    impression_events: int = 1000
    """Engagements of one impression."""
    request_events: int = 20_000
    """Engagements of all impressions of a request, which are written together: about 0.5 MB."""
    taken_bytes: int = 8 << 20
    """Records taken before a transaction; one read of the brokers, some 24 MiB, may exceed it."""
    batch_bytes: int = 16 << 20
    """Output of one transaction: dead letters, and rows as they are sent, each with the features that they share."""
