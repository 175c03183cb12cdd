"""A partition's joiner over the embedded log, in one process: what `minutely replay` runs.

The partition, its recovery and its state are those of the service on Kafka. A transaction is one write to the log, with what it
says beside its records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from streaming.clock import Clock
from streaming.join.brokers import Outgoing
from streaming.join.commit import Committed, decode_commit, encode_commit
from streaming.join.partition import JoinPartition
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.join.timers import NEVER
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS, EmbeddedLog, Record

_RECORDS_AT_ONCE = 4096
_ENDED = {IMPRESSIONS: True, ENGAGEMENTS: True}


class EmbeddedOutlet:
    """`Outlet` of one partition. There is no other process, so there is nobody to fence."""

    def __init__(self, log: EmbeddedLog, partition: int) -> None:
        self._log = log
        self._partition = partition

    def open(self) -> Committed | None:
        """What the last transaction said; None where there is none yet."""
        said = self._log.committed(self._partition)
        return None if said is None else decode_commit(said)

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> int:
        """One transaction. The offset after its last record in `examples`, 0 where it holds none."""
        records: dict[str, list[bytes]] = defaultdict(list)
        for item in outbox:
            records[item.topic].append(item.value)
        self._log.transact(self._partition, records, encode_commit(commit))
        return self._log.end(EXAMPLES, self._partition) if EXAMPLES in records else 0

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


class EmbeddedJoiner:
    """One partition's joiner, which `step` drives; nothing else writes to the log meanwhile."""

    def __init__(self, log: EmbeddedLog, spec: JoinSpec, state: JoinState, clock: Clock, number: int = 0) -> None:
        """All that is due is emitted at once, and the state goes to disk only where its memory is full."""
        self._log = log
        self._clock = clock
        self._number = number
        self.partition = JoinPartition(
            spec,
            state,
            EmbeddedOutlet(log, number),
            EmbeddedHistory(log, number),
            clock,
            number,
            new_id=lambda: "embedded",
            write_every_ms=NEVER,
            requests_at_once=NEVER,
        )
        for _ in self.partition.recover():
            pass

    def step(self) -> None:
        """Read both inputs to their end, and emit all that this decides."""
        partition = self.partition
        for topic in (IMPRESSIONS, ENGAGEMENTS):
            while records := self._log.read(topic, self._number, partition.offsets[topic], _RECORDS_AT_ONCE):
                partition.take(topic, records)
        partition.step(_ENDED, self._clock.now_ms(), tell_every_ms=1)
