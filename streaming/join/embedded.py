"""The embedded log as the joiners' service needs it, in one process: what `minutely replay` runs.

The service, its partition, recovery and state are those that run on Kafka. A transaction is one write to the log, with what it
says beside its records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from streaming.clock import Clock
from streaming.join.brokers import Fetched, History, Outgoing, Outlet, Place
from streaming.join.commit import Committed, decode_commit, encode_commit
from streaming.join.partition import JoinPartition
from streaming.join.service import JoinService
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.join.timers import NEVER
from streaming.log import ENGAGEMENTS, IMPRESSIONS, EmbeddedLog, Record

_INPUTS = (IMPRESSIONS, ENGAGEMENTS)
_RECORDS_AT_ONCE = 4096


class EmbeddedOutlet:
    """`Outlet` of one partition. There is no other process, so there is nobody to fence."""

    def __init__(self, log: EmbeddedLog, partition: int) -> None:
        self._log = log
        self._partition = partition

    def open(self) -> Committed | None:
        """What the last transaction said; None where there is none yet."""
        said = self._log.committed(self._partition)
        return None if said is None else decode_commit(said)

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> dict[str, int]:
        """One transaction. The offset after its last record in each topic that it wrote to."""
        records: dict[str, list[bytes]] = defaultdict(list)
        for item in outbox:
            records[item.topic].append(item.value)
        self._log.transact(self._partition, records, encode_commit(commit))
        return {topic: self._log.end(topic, self._partition) for topic in records}

    def close(self) -> None:
        """The log is closed by whoever opened it."""


class EmbeddedHistory:
    """`History` of one partition."""

    def __init__(self, log: EmbeddedLog, partition: int) -> None:
        self._log = log
        self._partition = partition

    def beginning(self, topic: str) -> int:
        """The first offset that is kept."""
        return self._log.begin(topic, self._partition)

    def end(self, topic: str) -> int:
        """The offset after the last record."""
        return self._log.end(topic, self._partition)

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        """The records from ``start`` to before ``stop``, in bounded lists."""
        for at in range(start, stop, _RECORDS_AT_ONCE):
            yield self._log.read(topic, self._partition, at, min(_RECORDS_AT_ONCE, stop - at))


class EmbeddedBrokers:
    """`Brokers` over one partition. It is always ours, and no call fails: the log is in this process, and nobody else joins it."""

    def __init__(self, log: EmbeddedLog, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._partitions = frozenset({partition})
        self._positions: dict[Place, int] = {}

    def join(self) -> None:
        """There is nobody to share with."""

    def assigned(self) -> frozenset[int]:
        """The one partition."""
        return self._partitions

    def leave(self) -> None:
        """The log is closed by whoever opened it."""

    def outlet(self, partition: int) -> EmbeddedOutlet:
        """Where its transactions go."""
        return EmbeddedOutlet(self._log, partition)

    def history(self, partition: int) -> EmbeddedHistory:
        """What is still kept of it."""
        return EmbeddedHistory(self._log, partition)

    def check_leaders(self, partitions: Collection[int]) -> None:
        """The log is always there."""

    def begins(self, partitions: Collection[int]) -> dict[Place, int]:
        """The first offsets that are kept of both inputs."""
        return {(topic, partition): self._log.begin(topic, partition) for partition in partitions for topic in _INPUTS}

    def ends(self, partitions: Collection[int]) -> dict[Place, int]:
        """The offsets after the last records of both inputs."""
        return {(topic, partition): self._log.end(topic, partition) for partition in partitions for topic in _INPUTS}

    def read_on(self, positions: Mapping[Place, int]) -> None:
        """Read these places and no others, each from that offset."""
        self._positions = dict(positions)

    def read(self) -> Fetched:
        """All that is there: whoever replays appends one step of event time, and it is joined whole."""
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
    """The joiners' service over one partition, for a caller that drives it by `catch_up`.

    All that is due comes out at once, so that the examples of a step are in one order. The state goes to disk only where its
    memory is full, and the watermark is told whenever it moved.
    """

    spec = spec._replace(limits=spec.limits._replace(batch_bytes=NEVER))

    def make(number: int, outlet: Outlet, history: History) -> tuple[JoinState, JoinPartition]:
        state = open_state()
        return state, JoinPartition(
            spec,
            state,
            outlet,
            history,
            clock,
            number,
            new_id=lambda: "embedded",
            write_every_ms=NEVER,
            requests_at_once=None,
        )

    return JoinService(EmbeddedBrokers(log, partition), make, clock, max_wait_ms=1, batch_records=1, tell_every_ms=1)


def catch_up(service: JoinService) -> None:
    """Join all that the log holds as of the clock's time, which stands still meanwhile, as does the log."""
    service.round()
    while not service.caught_up:
        assert all(member.patience.ready for member in service.members.values()), "no clock moves"
        service.round()
