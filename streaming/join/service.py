"""The joiner as a service on Kafka: follows the partitions that its group gives it, and joins each.

A consumer that is no member of the group reads the inputs from where the joiner's own state says.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from typing import Any

from confluent_kafka import KafkaError, TopicPartition

from streaming.clock import Clock
from streaming.join.calibration import ServedCalibration
from streaming.join.partition import ForgottenError, JoinPartition
from streaming.join.state import JoinState
from streaming.join.store import is_damage
from streaming.kafka.client import begins_of, broker_error, check_leaders, ends_of, reader_of, telling
from streaming.kafka.history import KafkaHistory
from streaming.kafka.membership import Membership
from streaming.kafka.outlet import KafkaOutlet
from streaming.kafka.settings import KafkaSettings
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, BrokerError, NoLeaderError, Record
from streaming.patience import Patience

_log = logging.getLogger("minutely.join")
_GROUP = "minutely-joiner"
_RECORDS_AT_ONCE = 4000
_BATCH_RECORDS = 2000
_POLL_SECONDS = 0.05
_ENDS_SECONDS = 5
_TELL_EVERY_MS = 1000
_DONE = object()
_GAP = (
    "%s/%d: records from offset %d to %d were deleted before they were joined, up to %d of them are lost; "
    "make kafka.retention longer than joiners may be away"
)


class EndsEarlyError(BrokerError):
    """A topic ends before what was joined."""


class DamagedError(Exception):
    """Files of a partition's state are not what was written."""


class Member:
    """One of our partitions: its joiner, and what it is busy with."""

    def __init__(
        self, partition: int, state: JoinState, join: JoinPartition, outlet: KafkaOutlet, clock: Clock
    ) -> None:
        self.partition = partition
        self.state = state
        self.join = join
        self.outlet = outlet
        self.recovery: Generator[None] | None = None
        self.recovered = False
        self.positioned = False
        self.committed_at = 0.0
        self.patience = Patience(_log, f"partition {partition}", clock)
        self.lag = {IMPRESSIONS: 0, ENGAGEMENTS: 0}
        """Records that are in the topics and were not taken yet."""
        self.reached: dict[str, int] = {}
        """Up to where there was nothing to take; further than the last record where transactions left their marks."""
        self.lost = Counter[str]()
        """Records that were deleted before they were read, by topic."""

    def close(self) -> None:
        """Let go of everything; what was not committed is joined by whoever gets the partition."""
        if self.recovery is not None:
            self.recovery.close()
        self.outlet.close()
        self.state.close()


class JoinService:
    """`run` joins until told to stop. ``make_partition`` makes the joiner of one partition over its folder's state;
    ``served`` is what all of them compare scores and labels by."""

    def __init__(
        self,
        settings: KafkaSettings,
        make_partition: Callable[[int, KafkaOutlet, KafkaHistory], tuple[JoinState, JoinPartition]],
        clock: Clock,
        max_wait_ms: int,
        served: ServedCalibration | None = None,
    ) -> None:
        self._settings = settings
        self._make_partition = make_partition
        self._clock = clock
        self.served = served
        self._max_wait_seconds = max_wait_ms / 1000
        self._names = {settings.topic(topic): topic for topic in (IMPRESSIONS, ENGAGEMENTS)}
        self._reader = reader_of(settings, name_ends=True)
        self._reading: set[int] = set()
        """Partitions that `_reader` goes on with where their joiners are."""
        self._asker = reader_of(settings)  # the reader's own connection is taken while it waits for records
        self._group = Membership(settings, _GROUP, IMPRESSIONS)
        self._broker = Patience(_log, "brokers", clock, settings.asked)
        self.members: dict[int, Member] = {}
        """Our partitions by number."""

    def run(self, stop: Callable[[], bool]) -> None:
        """Join until ``stop`` says so; then leave the group, so that others take over at once."""
        with ExitStack() as leaving:
            for last_first in (self._asker.close, self._reader.close, self._group.leave, self._lose_all):
                leaving.callback(last_first)
            self._group.start()
            while not stop():
                self.round()

    def round(self) -> None:
        """Follow the group, read, and join once; bounded in time and memory."""
        self._follow()
        # Who failed last comes last, so that none that fails keeps the others from their turn.
        for member in sorted(self.members.values(), key=lambda member: member.patience.not_before_ms):
            if not self._recover(member):
                break  # brokers may be away, and each try takes long: the group waits for our next round
        self._assign()
        active = [member for member in self.members.values() if member.positioned]
        if not active:
            recovering = any(member.recovery for member in self.members.values())
            time.sleep(0.001 if recovering else _POLL_SECONDS)
            return
        as_of_ms = self._clock.now_ms()
        try:
            ats = [at for member in active for at in self._ats(member)]
            ends = ends_of(self._asker, ats, _ENDS_SECONDS)
            if not any(member.join.busy for member in active):
                self._take()
        except BrokerError as error:
            if isinstance(error, NoLeaderError) and self._leave_out():
                return
            self._reading = set()  # what was read and not taken is read again
            self._asker.poll(0)  # its callback says where brokers refused us
            self._broker.failed(error)
            time.sleep(_POLL_SECONDS)
            return
        self._broker.worked()
        for member in active:
            if member.positioned and not self._step(member, ends, as_of_ms):
                break  # the brokers are away, most likely: look before others wait as long

    def _follow(self) -> None:
        """Take what the group gave us, leave what it took.

        Who gets a partition fences us before it begins, so between the group's word and ours nothing is committed; one that slept
        through both sees by the state's id that the last transaction is another's.
        """
        self._group.poll()
        ours = self._group.partitions
        self._lose(self.members.keys() - ours)
        self._gain(ours - self.members.keys())

    def _gain(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            outlet = KafkaOutlet(self._settings, partition)
            state, join = self._make_partition(partition, outlet, KafkaHistory(self._settings, partition))
            self.members[partition] = Member(partition, state, join, outlet, self._clock)
            _log.info("partition %d is ours", partition)

    def _lose_all(self) -> None:
        self._lose(list(self.members))

    def _lose(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self.members.pop(partition).close()
            _log.info("partition %d is another's", partition)

    def _recover(self, member: Member) -> bool:
        """One bounded step towards the state that belongs to what was committed; whether brokers answered."""
        if member.positioned or not member.patience.ready:
            return True
        try:
            if not member.recovered:
                if member.recovery is None:
                    self._check_leaders(member)
                    member.recovery = member.join.recover()
                member.recovered = next(member.recovery, _DONE) is _DONE
            if member.recovered:
                member.recovery = None
                self._position(member)
        except NoLeaderError as error:
            member.recovery = None
            self._lose_place(member, error)  # that was told at once: others need not wait for the next round
        except (BrokerError, ForgottenError) as error:
            self._broken(member, error)
            return False
        except Exception as error:
            self._damaged(member, error)
        return True

    def _position(self, member: Member) -> None:
        """Read on where the joiner is, or where the records that are still kept begin."""
        ats = self._ats(member)
        self._check_leaders(member)
        begins, ends = begins_of(self._asker, ats, _ENDS_SECONDS), ends_of(self._asker, ats, _ENDS_SECONDS)
        for at in ats:
            place, topic = (at.topic, at.partition), self._names[at.topic]
            begin, end, offset = begins[place], ends[place], member.join.offsets[topic]
            if offset > end:  # of a broker that is not whole yet, or has lost what it had promised to keep
                what = f"{topic} ends at offset {end}, records before {offset} were joined"
                raise EndsEarlyError(what)
            if offset < begin:
                member.join.skip(topic, begin)
        for gap in member.join.gaps:
            member.lost[gap.topic] += gap.stop - gap.start
            _log.error(_GAP, gap.topic, member.partition, gap.start, gap.stop, gap.stop - gap.start)
        member.join.gaps.clear()
        member.reached.clear()
        member.positioned = True
        member.committed_at = time.monotonic()
        self._reading.discard(member.partition)

    def _check_leaders(self, member: Member) -> None:
        """Offsets of a partition without a leader are waited for in vain, and so are transactions that wrote or write to one."""
        check_leaders(self._asker, self._everything(member), _ENDS_SECONDS)

    def _broken(self, member: Member, error: Exception) -> None:
        """A transaction came to no known end, or another worker has the partition: settle that by recovering anew."""
        member.recovery = None
        member.recovered = member.positioned = False
        member.patience.failed(error)

    def _damaged(self, member: Member, error: Exception) -> None:
        """Files of a state may be found damaged long after they were opened; whatever else it is, is raised."""
        if not is_damage(error):
            raise error
        error.__traceback__ = None  # its frames hold cursors, and they the files, which would not open again
        member.join.discard()
        self._broken(member, DamagedError(f"{error}; the state is made anew, from what Kafka keeps"))

    def _assign(self) -> None:
        """Read those that have a place, and no others, each from there on."""
        wanted = {member.partition for member in self.members.values() if member.positioned}
        if wanted != self._reading:
            self._reader.assign([at for partition in sorted(wanted) for at in self._ats(self.members[partition])])
            self._reading = wanted

    @telling
    def _take(self) -> None:
        """Read once, all partitions together."""
        found: dict[tuple[str, int], list[Record]] = {}
        ends: dict[tuple[str, int], int] = {}
        messages: list[Any] = self._reader.consume(_RECORDS_AT_ONCE, _POLL_SECONDS)
        for message in messages:
            place = (message.topic(), message.partition())
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                ends[place] = message.offset()
            elif error is not None:
                self._misplaced(*place, error)
            elif place in found:
                found[place].append(Record(message.offset(), message.value() or b""))
            else:
                found[place] = [Record(message.offset(), message.value() or b"")]
        for (topic, partition), records in found.items():
            member = self.members.get(partition)
            if member is not None and member.positioned:
                offset = member.join.offsets[self._names[topic]]
                if records[0].offset < offset:  # what was on its way when it was placed anew
                    records = [record for record in records if record.offset >= offset]
                try:
                    member.join.take(self._names[topic], records)
                except Exception as error:
                    self._damaged(member, error)
        for (topic, partition), offset in ends.items():
            member = self.members.get(partition)
            if member is not None and member.positioned:
                member.reached[self._names[topic]] = offset

    def _misplaced(self, topic: str, partition: int, error: KafkaError) -> None:
        """The client stopped reading a partition, mostly since its next record is gone: find out where to read on."""
        member = self.members.get(partition) if topic in self._names else None
        if member is None:
            self._broker.failed(broker_error(error))
        else:
            self._lose_place(member, broker_error(error))

    def _leave_out(self) -> bool:
        """Others go on without members that miss a leader, of what they write as well; whether there are such."""
        active = [member for member in self.members.values() if member.positioned]
        try:
            check_leaders(self._asker, [at for member in active for at in self._everything(member)], _ENDS_SECONDS)
        except NoLeaderError as error:
            for member in active:
                if member.partition in error.partitions:
                    self._lose_place(member, error)
            return True
        except BrokerError:  # nobody answers, which is no news
            pass
        return False

    def _lose_place(self, member: Member, error: BrokerError) -> None:
        """Others go on without it, until it is known again where to read."""
        member.positioned = False
        member.patience.failed(error)

    def _step(self, member: Member, ends: dict[tuple[str, int], int], as_of_ms: int) -> bool:
        """Whether nothing failed."""
        join = member.join
        ats = self._ats(member)
        for at in ats:
            topic = self._names[at.topic]
            reached = max(at.offset, member.reached.get(topic, 0))
            member.lag[topic] = max(0, ends[at.topic, at.partition] - reached)
        now = time.monotonic()
        if join.taken < _BATCH_RECORDS and not join.busy and now - member.committed_at < self._max_wait_seconds:
            return True
        try:
            join.step({topic: not lag for topic, lag in member.lag.items()}, as_of_ms, _TELL_EVERY_MS)
            member.committed_at = now
        except BrokerError as error:
            self._broken(member, error)
            self._leave_out()
            return False
        except Exception as error:
            self._damaged(member, error)
            return True
        member.patience.worked()
        return True

    def _everything(self, member: Member) -> list[TopicPartition]:
        """A partition's places in all topics, read and written."""
        names = (IMPRESSIONS, ENGAGEMENTS, EXAMPLES, DEAD_LETTERS)
        return [TopicPartition(self._settings.topic(name), member.partition) for name in names]

    def _ats(self, member: Member) -> list[TopicPartition]:
        """Where a partition's joiner reads on, in both inputs."""
        offsets = member.join.offsets
        return [TopicPartition(name, member.partition, offsets[topic]) for name, topic in self._names.items()]
