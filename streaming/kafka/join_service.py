"""The joiner as a service on Kafka: follows the partitions that its group gives it, and joins each.

A consumer that is no member of the group reads the inputs from where the joiner's own state says.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence

from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from streaming.clock import Clock
from streaming.join_partition import JoinPartition
from streaming.join_state import JoinState
from streaming.kafka.membership import Membership
from streaming.kafka.partition_io import KafkaHistory, KafkaOutlet, consumer_of
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.waiting import Patience
from streaming.log import ENGAGEMENTS, IMPRESSIONS, Record

_log = logging.getLogger("minutely.join")
_GROUP = "minutely-joiner"
_RECORDS_AT_ONCE = 4000
_BATCH_RECORDS = 2000
_POLL_MS = 50
_ENDS_MS = 5000
_TELL_EVERY_MS = 1000
_DONE = object()
_GAP = (
    "%s/%d: records from offset %d to %d were deleted before they were joined, up to %d of them are lost; "
    "make kafka.retention longer than joiners may be away"
)


class Member:
    """One of our partitions: its joiner, and what it is busy with."""

    def __init__(self, partition: int, state: JoinState, join: JoinPartition, outlet: KafkaOutlet) -> None:
        self.partition = partition
        self.state = state
        self.join = join
        self.outlet = outlet
        self.recovery: Generator[None] | None = None
        self.recovered = False
        self.positioned = False
        self.committed_at = 0.0
        self.patience = Patience(_log, f"partition {partition}")
        self.lag = {IMPRESSIONS: 0, ENGAGEMENTS: 0}
        """Records that are in the topics and were not taken yet."""
        self.lost = Counter[str]()
        """Records that were deleted before they were read, by topic."""

    def close(self) -> None:
        """Let go of everything; what was not committed is joined by whoever gets the partition."""
        if self.recovery is not None:
            self.recovery.close()
        self.outlet.close()
        self.state.close()


class JoinService:
    """`run` joins until told to stop. ``make_partition`` makes the joiner of one partition over its folder's state."""

    def __init__(
        self,
        settings: KafkaSettings,
        make_partition: Callable[[int, KafkaOutlet, KafkaHistory], tuple[JoinState, JoinPartition]],
        clock: Clock,
        max_wait_ms: int,
    ) -> None:
        self._settings = settings
        self._make_partition = make_partition
        self._clock = clock
        self._max_wait_seconds = max_wait_ms / 1000
        self._reader = consumer_of(settings, reset="none")
        self._group = Membership(settings, _GROUP, IMPRESSIONS)
        self._broker = Patience(_log, "brokers")
        self.members: dict[int, Member] = {}
        """Our partitions by number."""

    def run(self, stop: Callable[[], bool]) -> None:
        """Join until ``stop`` says so; then leave the group, so that others take over at once."""
        self._group.start()
        try:
            while not stop():
                self.round()
        finally:
            self._lose(list(self.members))
            self._group.leave()
            self._reader.close()

    def round(self) -> None:
        """Follow the group, read, and join once; bounded in time and memory."""
        self._follow()
        for member in list(self.members.values()):
            self._recover(member)
        self._assign()
        active = [member for member in self.members.values() if member.positioned]
        if not active:
            time.sleep(_POLL_MS / 1000 if not self.members else 0.001)
            return
        as_of_ms = self._clock.now_ms()
        try:
            ends = self._reader.end_offsets(
                [self._at(topic, member) for member in active for topic in member.lag], timeout_ms=_ENDS_MS
            )
            if not any(member.join.busy for member in active):
                self._take(active)
        except KafkaError as error:
            self._broker.failed(error)
            time.sleep(_POLL_MS / 1000)
            return
        self._broker.worked()
        for member in active:
            self._step(member, ends, as_of_ms)

    def _follow(self) -> None:
        """Take what the group gave us, leave what it took.

        Between the group's word and ours nothing is committed, and who gets a partition fences us before it begins.
        """
        self._group.alive()
        ours = self._group.partitions
        self._lose(self.members.keys() - ours)
        self._gain(ours - self.members.keys())

    def _gain(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            outlet = KafkaOutlet(self._settings, partition)
            state, join = self._make_partition(partition, outlet, KafkaHistory(self._settings, partition))
            self.members[partition] = Member(partition, state, join, outlet)
            _log.info("partition %d is ours", partition)

    def _lose(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self.members.pop(partition).close()
            _log.info("partition %d is another's", partition)

    def _recover(self, member: Member) -> None:
        """One bounded step towards the state that belongs to what was committed."""
        if member.positioned or not member.patience.ready:
            return
        try:
            if not member.recovered:
                if member.recovery is None:
                    member.recovery = member.join.recover()
                member.recovered = next(member.recovery, _DONE) is _DONE
            if member.recovered:
                member.recovery = None
                self._position(member)
                member.patience.worked()
        except KafkaError as error:
            self._broken(member, error)

    def _position(self, member: Member) -> None:
        """Read on where the joiner is, or where the records that are still kept begin."""
        ats = {topic: self._at(topic, member) for topic in member.join.offsets}
        begins = self._reader.beginning_offsets(list(ats.values()), timeout_ms=_ENDS_MS)
        ends = self._reader.end_offsets(list(ats.values()), timeout_ms=_ENDS_MS)
        for topic, offset in list(member.join.offsets.items()):
            if offset > ends[ats[topic]]:  # of a broker that is not whole yet, or has lost what it had promised to keep
                raise OffsetOutOfRangeError(
                    f"{topic} ends at offset {ends[ats[topic]]}, records before {offset} were joined"
                )
            if offset < begins[ats[topic]]:
                member.join.skip(topic, begins[ats[topic]])
        for gap in member.join.gaps:
            member.lost[gap.topic] += gap.stop - gap.start
            _log.error(_GAP, gap.topic, member.partition, gap.start, gap.stop, gap.stop - gap.start)
        member.join.gaps.clear()
        member.positioned = True
        member.committed_at = time.monotonic()
        self._assign()
        for topic, offset in member.join.offsets.items():
            self._reader.seek(ats[topic], offset)

    def _broken(self, member: Member, error: Exception) -> None:
        """A transaction came to no known end, or another worker has the partition: settle that by recovering anew."""
        member.recovery = None
        member.recovered = member.positioned = False
        member.patience.failed(error)

    def _assign(self) -> None:
        wanted = {
            self._at(topic, member) for member in self.members.values() if member.positioned for topic in member.lag
        }
        if wanted != self._reader.assignment():
            self._reader.assign(sorted(wanted))

    def _take(self, active: Sequence[Member]) -> None:
        """Read once, all partitions together: the client does not fetch on where partitions are paused and resumed."""
        names = {self._settings.topic(topic): topic for topic in (IMPRESSIONS, ENGAGEMENTS)}
        try:
            polled = self._reader.poll(timeout_ms=_POLL_MS, max_records=_RECORDS_AT_ONCE)
        except KafkaError:
            for (
                member
            ) in active:  # the client may have passed over records of one partition when it failed at another's
                member.positioned = False
            raise
        for at, records in polled.items():
            taken = [Record(record.offset, record.value or b"") for record in records]
            self.members[at.partition].join.take(names[at.topic], taken)

    def _step(self, member: Member, ends: dict[TopicPartition, int], as_of_ms: int) -> None:
        join = member.join
        offsets = join.offsets
        member.lag = {topic: max(0, ends[self._at(topic, member)] - offsets[topic]) for topic in offsets}
        now = time.monotonic()
        if join.taken < _BATCH_RECORDS and not join.busy and now - member.committed_at < self._max_wait_seconds:
            return
        try:
            join.step({topic: not lag for topic, lag in member.lag.items()}, as_of_ms, _TELL_EVERY_MS)
            member.committed_at = now
        except KafkaError as error:
            self._broken(member, error)

    def _at(self, topic: str, member: Member) -> TopicPartition:
        return TopicPartition(self._settings.topic(topic), member.partition)
