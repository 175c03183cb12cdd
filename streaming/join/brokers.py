"""What a joiner needs of a log: a group that shares its partitions, inputs to read, transactions, and what is still kept.

Every call fails by `BrokerError` alone, where brokers are away or refuse, or where it is not known how the call ended. Topics are
called as in `streaming.log`, without a prefix.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from streaming.join.commit import Committed
from streaming.log import BrokerError, Record

Place: TypeAlias = tuple[str, int]
"""A topic and a partition of it."""


class Outgoing(NamedTuple):
    """A record to send."""

    topic: str
    value: bytes


class Outlet(Protocol):
    """Where a partition's transactions go."""

    def open(self) -> Committed | None:
        """Fence and settle a predecessor, then read what it committed; None where there is nothing yet."""

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> Mapping[str, int]:
        """One transaction. The offset after its last record in each topic that it wrote to."""

    def close(self) -> None:
        """Let go of it at once; a transaction that is under way is settled by its successor."""


class History(Protocol):
    """Records of the partition that are still kept."""

    def beginning(self, topic: str) -> int:
        """The first offset that is kept."""

    def end(self, topic: str) -> int:
        """The offset after the last committed record."""

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        """The records from ``start`` to before ``stop``, in bounded lists; an empty list where there is nothing yet."""


class Fetched(NamedTuple):
    """What one read of the inputs gave, by place."""

    records: Mapping[Place, list[Record]]
    """In order of their offsets."""
    reached: Mapping[Place, int]
    """There is nothing to read before this offset: past the last record are marks of transactions, or what was aborted."""
    failed: Mapping[Place, BrokerError]
    """Reading stopped there, mostly since the next record is gone."""


class Brokers(Protocol):
    """The log of all partitions, and the group of joiners that shares them."""

    def join(self) -> None:
        """Become a member of the group."""

    def assigned(self) -> frozenset[int]:
        """Follow the group, without waiting: the partitions that are ours now."""

    def leave(self) -> None:
        """Leave the group, so that others take over at once, and close every connection."""

    def outlet(self, partition: int) -> Outlet:
        """Where the transactions of a partition go."""

    def history(self, partition: int) -> History:
        """What is still kept of a partition."""

    def check_leaders(self, partitions: Collection[int]) -> None:
        """`NoLeaderError` where nobody leads some of them, in a topic that joiners read or write."""

    def begins(self, partitions: Collection[int]) -> Mapping[Place, int]:
        """The first offsets that are kept of both inputs."""

    def ends(self, partitions: Collection[int]) -> Mapping[Place, int]:
        """The offsets after the last committed records of both inputs, as they are now."""

    def read_on(self, positions: Mapping[Place, int]) -> None:
        """Read these places and no others, each from that offset."""

    def read(self) -> Fetched:
        """What comes next, bounded in records, bytes and time."""
