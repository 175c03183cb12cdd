"""The log as services of the loop use it: a group that shares the partitions, inputs to read, transactions, and the records still
kept.

Calls fail with `BrokerError`: brokers are down or refuse, or the outcome of the call is unknown. `Outlet.open` also with
`UnknownPlaceError`, which only a person can resolve. Topics have the names of `streaming.log`, without a prefix.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from streaming.log import BrokerError, LostRange, Record

C = TypeVar("C")

InputPartition: TypeAlias = tuple[str, int]
"""A topic and a partition of it."""


class OutputRecord(NamedTuple):
    """A record to send, to the outlet's own partition or another one, with a key where the topic is compacted."""

    topic: str
    value: bytes
    partition: int | None = None
    key: bytes | None = None


class UnknownPlaceError(Exception):
    """It cannot be known where a partition's owner was: its commit is not there, of somebody else, or of another version."""


class Outlet(Protocol[C]):
    """Where a partition's transactions go, each with a commit that names it."""

    def open(self) -> C | None:
        """Fence the previous owner, settle its transaction, and return what was committed last; None if nothing was."""

    def send(self, outbox: Sequence[OutputRecord], commit: C) -> Mapping[str, int]:
        """Send one transaction. Return the offset after the last record in our partition, by topic."""

    def close(self) -> None:
        """Close without waiting; the next owner settles a transaction that is under way."""


class History(Protocol):
    """The records of a partition that are still kept."""

    def beginning(self, topic: str) -> int:
        """Return the first offset that is kept."""

    def end(self, topic: str) -> int:
        """Return the offset after the last record, also of one in a transaction that is open."""

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record] | LostRange]:
        """Yield the committed records from ``start`` to before ``stop``, in bounded lists; an empty list while nothing comes, as
        behind a transaction that is open. In place of records that no client can read, yield their range."""


class Fetched(NamedTuple):
    """The result of one read of the inputs, by place."""

    records: Mapping[InputPartition, list[Record]]
    """In order of their offsets."""
    read_to: Mapping[InputPartition, int]
    """Everything before this offset was read: after the last record come only transaction markers or aborted records."""
    failed: Mapping[InputPartition, BrokerError]
    """Why reading stopped there, mostly because the next record was deleted."""
    lost: Mapping[InputPartition, LostRange] = MappingProxyType({})
    """What no client can read; everything before it was read."""


class Brokers(Protocol):
    """The log of all partitions, and the group of services that shares them."""

    @property
    def inputs(self) -> Sequence[str]:
        """The topics that are read."""

    def join(self) -> None:
        """Join the group."""

    def assigned(self) -> frozenset[int]:
        """Follow the group without waiting, and return the partitions that are ours now."""

    def leave(self) -> None:
        """Leave the group, so that others take over at once, and close every connection."""

    def outlet(self, partition: int) -> Outlet[Any]:
        """Return the outlet of a partition."""

    def history(self, partition: int) -> History:
        """Return the history of a partition."""

    def check_leaders(self, partitions: Collection[int]) -> None:
        """Raise `NoLeaderError` if one of them has no leader in a topic that they read or write."""

    def begins(self, partitions: Collection[int]) -> Mapping[InputPartition, int]:
        """Return the first offsets that are kept, of the inputs."""

    def ends(self, partitions: Collection[int]) -> Mapping[InputPartition, int]:
        """Return the current offsets after the last records of the inputs, also of those in transactions that are open."""

    def read_on(self, positions: Mapping[InputPartition, int]) -> None:
        """Read these places and no others from now on, each from its offset."""

    def read(self) -> Fetched:
        """Return what comes next, bounded in records, bytes and time."""
