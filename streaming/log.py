"""The log: topics with partitions of records, each at an offset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from basis.problems import GapError

IMPRESSIONS, ENGAGEMENTS, EXAMPLES, DEAD_LETTERS = "impressions", "engagements", "examples", "dead-letters"
INPUTS = (IMPRESSIONS, ENGAGEMENTS)
"""What products write and joiners read."""
OUTPUTS = (EXAMPLES, DEAD_LETTERS)
TOPICS = (*INPUTS, *OUTPUTS)
INTERACTIONS, FEATURES = "interactions", "features"
LIVE_TOPICS = (INTERACTIONS, FEATURES)
"""What joiners say for live features, and what is kept of their keys."""


class Record(NamedTuple):
    """One record of a partition. ``appended_at`` is when its broker took it, by the broker's clock (ms since 1970, UTC); where the
    broker does not say, when it was read."""

    offset: int
    value: bytes
    appended_at: int = 0


class BrokerError(Exception):
    """Brokers are down or refuse, or the outcome of a call is unknown. ``name`` is what the client calls the error, if it is one of
    its own."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(f"{name}: {text}" if name else text)
        self.name = name


class LostRange(NamedTuple):
    """Records from ``start`` to before ``stop`` that can no longer be read: they were deleted, or ``unreadable`` is the client's
    error for their batch."""

    topic: str
    start: int
    stop: int
    unreadable: str = ""

    @property
    def size(self) -> int:
        """How many records are lost at most; marks of transactions take offsets too."""
        return self.stop - self.start

    def told(self, partition: int) -> str:
        """Return what a log says of it."""
        place = f"{self.topic}/{partition}: records from offset {self.start} to {self.stop}"
        if self.topic not in INPUTS and not self.unreadable:
            return (
                f"{place} are gone: it is not known what was sent there, and examples of open requests may come twice"
            )
        if self.unreadable:
            why, advice = f"cannot be decompressed ({self.unreadable})", "Send smaller batches, or compress them less."
        else:
            why, advice = "were deleted before they were read", "Set kafka.retention longer than the longest outage."
        return f"{place} {why}: up to {self.size} lost. {advice}"


class NoLeaderError(BrokerError):
    """No broker leads these ``partitions`` now."""

    def __init__(self, text: str, partitions: Iterable[int]) -> None:
        super().__init__(text, "LEADER_NOT_AVAILABLE")
        self.partitions = frozenset(partitions)


class LogReader(Protocol):
    """A log, as its readers use it."""

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Return up to ``limit`` records from ``offset`` on, in order; none at the end. `GapError` if that offset is gone."""

    def begin(self, topic: str, partition: int) -> int:
        """Return the first offset that is kept; of a partition without records, the offset of the next one."""


def check_no_gap(log: LogReader, topic: str, partition: int, offset: int) -> None:
    """Raise `GapError` if records from ``offset`` on are no longer in the log."""
    begin = log.begin(topic, partition)
    if begin > offset:
        raise GapError(
            f"{topic}/{partition}: the log begins at offset {begin}, records from {offset} on are needed; "
            "start over with an empty output, and set a longer retention"
        )
