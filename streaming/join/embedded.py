"""The embedded log as the joiners' service uses it, in one process: `minutely replay` runs this.

The service, its partition, recovery and state are those that run on Kafka. A transaction is one write to the log, which holds the
commit too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from streaming.clock import Clock
from streaming.embedded_log import EmbeddedLog
from streaming.join.commit import Committed, decode_commit, encode_commit
from streaming.join.partition import JoinPartition
from streaming.join.service import JoinService
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.join.timers import NEVER
from streaming.log import INPUTS, Record
from streaming.loop.brokers import Fetched, History, InputPartition, Outlet, OutputRecord

_RECORDS_AT_ONCE = 4096


class EmbeddedOutlet:
    """`Outlet` of one partition. There is no other process, so there is no owner to fence."""

    def __init__(self, log: EmbeddedLog, partition: int) -> None:
        self._log = log
        self._partition = partition

    def open(self) -> Committed | None:
        """Return the last transaction's commit; None if there is none yet."""
        said = self._log.committed(self._partition)
        return None if said is None else decode_commit(said)

    def send(self, outbox: Sequence[OutputRecord], commit: Committed) -> dict[str, int]:
        """Send one transaction. Return the offset after its last record, by topic that it wrote to."""
        records: dict[str, list[bytes]] = defaultdict(list)
        for item in outbox:
            records[item.topic].append(item.value)
        self._log.transact(self._partition, records, encode_commit(commit))
        return {topic: self._log.end(topic, self._partition) for topic in records}

    def close(self) -> None:
        """Do nothing: the log belongs to the caller."""


class EmbeddedHistory:
    """`History` of one partition."""

    def __init__(self, log: EmbeddedLog, partition: int) -> None:
        self._log = log
        self._partition = partition

    def beginning(self, topic: str) -> int:
        """Return the first offset that is kept."""
        return self._log.begin(topic, self._partition)

    def end(self, topic: str) -> int:
        """Return the offset after the last record."""
        return self._log.end(topic, self._partition)

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        """Yield the records from ``start`` to before ``stop``, in bounded lists."""
        for at in range(start, stop, _RECORDS_AT_ONCE):
            yield self._log.read(topic, self._partition, at, min(_RECORDS_AT_ONCE, stop - at))


class EmbeddedBrokers:
    """`Brokers` over one partition. It is always ours, and no call fails: the log is in this process, and has no other joiner."""

    inputs = INPUTS

    def __init__(self, log: EmbeddedLog, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._partitions = frozenset({partition})
        self._positions: dict[InputPartition, int] = {}

    def join(self) -> None:
        """Do nothing: there are no other joiners."""

    def assigned(self) -> frozenset[int]:
        """Return the one partition."""
        return self._partitions

    def leave(self) -> None:
        """Do nothing: the log belongs to the caller."""

    def outlet(self, partition: int) -> EmbeddedOutlet:
        """Return the outlet of the partition."""
        return EmbeddedOutlet(self._log, partition)

    def history(self, partition: int) -> EmbeddedHistory:
        """Return the history of the partition."""
        return EmbeddedHistory(self._log, partition)

    def check_leaders(self, partitions: Collection[int]) -> None:
        """Do nothing: the log is always available."""

    def begins(self, partitions: Collection[int]) -> dict[InputPartition, int]:
        """Return the first offsets that are kept, of both inputs."""
        return {(topic, partition): self._log.begin(topic, partition) for partition in partitions for topic in INPUTS}

    def ends(self, partitions: Collection[int]) -> dict[InputPartition, int]:
        """Return the offsets after the last records of both inputs."""
        return {(topic, partition): self._log.end(topic, partition) for partition in partitions for topic in INPUTS}

    def read_on(self, positions: Mapping[InputPartition, int]) -> None:
        """Read these places and no others from now on, each from its offset."""
        self._positions = dict(positions)

    def read(self) -> Fetched:
        """Return all records: a replay appends one step of event time, which is joined whole."""
        found = {}
        for place, offset in self._positions.items():
            topic, partition = place
            end = self._log.end(topic, partition)
            if offset < end:
                found[place] = self._log.read(topic, partition, offset, end - offset)
                self._positions[place] = end
        return Fetched(found, {}, {})


def embedded_service(
    log: EmbeddedLog, spec: JoinSpec, open_state: Callable[[], JoinState], clock: Clock, partition: int = 0
) -> JoinService:
    """Return the joiners' service over one partition, for a caller that drives it with `catch_up`.

    Everything due is emitted at once, so that the examples of a step are in one order. The state is written to disk only when its
    memory is full, and the watermark is published whenever it moves.
    """

    spec = spec._replace(limits=spec.limits._replace(batch_bytes=NEVER))

    def make(number: int, outlet: Outlet[Committed], history: History) -> JoinPartition:
        return JoinPartition(
            spec,
            open_state(),
            outlet,
            history,
            number,
            new_id=lambda: "embedded",
            write_every_ms=NEVER,
            requests_at_once=None,
        )

    return JoinService(EmbeddedBrokers(log, partition), make, clock, max_wait_ms=1, batch_records=1, publish_every_ms=1)


def catch_up(service: JoinService) -> None:
    """Join everything in the log as of the clock's time. Neither the clock nor the log may change meanwhile."""
    service.round()
    while not service.caught_up:
        assert all(member.retry.ready for member in service.members.values()), "no clock moves"
        service.round()
