"""The ``join`` section of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from basis.settings import DurationMs, PositiveDurationMs, Section


class JoinSettings(Section):
    """The ``join`` section."""

    emit: Literal["decided", "window"] = "decided"
    """Emit an example when all its labels are decided, or only when its longest window closes."""
    lateness: DurationMs = 0
    """How far out of order, in event time, records of one partition may arrive."""
    late: Literal["dead_letter", "correct"] = "dead_letter"
    """What to do with an engagement that would have changed an emitted example: refuse it, or emit the example again with the right
    labels and the next revision. To ``correct``, requests are kept until ``lateness`` after their window."""
    max_future: DurationMs = 3_600_000
    """Records whose time is further ahead of the time at which their broker took them are dead letters."""
    max_ahead: DurationMs = 5_000
    """How far a record may move the watermark beyond the time at which its broker took it. Records further ahead are delayed, never
    dropped."""
    max_rows: Annotated[int, Field(ge=1, le=65_536)] = 8192
    """The most examples in one batch."""
    max_wait: PositiveDurationMs = 200
    """On Kafka, examples wait at most this long for others, to be sent together."""
    memory_bytes: Annotated[int, Field(ge=16 << 20)] = 256 << 20
    """Memory of all partitions of a joiner together: for pending requests, and for the buffers of the stores that have the rest on
    disk."""
