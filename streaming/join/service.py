"""The joiners' service: follows the partitions that its group gives it, and joins each.

One loop for all logs: it is told the `Brokers`, the clock and how a partition's joiner is made. What it keeps of a partition is how
its recovery stands and how far behind it is; where to read on is the partition's own to say.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping

from streaming.clock import Clock
from streaming.join.brokers import Brokers, History, Outlet, Place
from streaming.join.calibration import ServedCalibration
from streaming.join.commit import ForgottenError
from streaming.join.memory import MemoryShare
from streaming.join.partition import JoinPartition
from streaming.join.state import JoinState
from streaming.log import ENGAGEMENTS, IMPRESSIONS, BrokerError, NoLeaderError
from streaming.patience import Patience

_log = logging.getLogger("minutely.join")
_INPUTS = (IMPRESSIONS, ENGAGEMENTS)
_PAUSE_MS = 50
_RECOVERING_MS = 1
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
    """One of our partitions: its joiner, and how far it is."""

    def __init__(self, partition: int, state: JoinState, join: JoinPartition, outlet: Outlet, clock: Clock) -> None:
        self.partition = partition
        self.state = state
        self.join = join
        self.outlet = outlet
        self.recovery: Generator[None] | None = None
        self.recovered = False
        self.positioned = False
        self.stepped_at_ms = 0
        """When it last committed, in elapsed time."""
        self.patience = Patience(_log, f"partition {partition}", clock)
        self.lag = dict.fromkeys(_INPUTS, 0)
        """Records that are in the topics and were not taken yet."""
        self.reached: dict[str, int] = {}
        """Up to where there was nothing to take; further than the last record where transactions left their marks."""
        self.lost = Counter[str]()
        """Records that were deleted before they were read, by topic."""

    @property
    def caught_up(self) -> bool:
        """Whether everything that was there when its ends were last named is joined."""
        return self.positioned and not self.join.busy and not self.join.taken and not any(self.lag.values())

    def close(self) -> None:
        """Let go of everything; what was not committed is joined by the next owner of the partition."""
        if self.recovery is not None:
            self.recovery.close()
        self.outlet.close()
        self.state.close()


class JoinService:
    """`run` joins until told to stop; a caller with a loop of its own calls `start`, `round` and `leave`.

    ``make_partition`` makes the joiner of one partition over its state. A partition commits when it took ``batch_records``, or
    ``max_wait_ms`` after it last did; where only its watermark moved, that is told when it moved by ``tell_every_ms``. ``asked``
    names the brokers in messages. ``served`` is what all joiners compare scores and labels by, ``memory`` what they share.
    """

    def __init__(
        self,
        brokers: Brokers,
        make_partition: Callable[[int, Outlet, History], tuple[JoinState, JoinPartition]],
        clock: Clock,
        *,
        max_wait_ms: int,
        batch_records: int = 2000,
        tell_every_ms: int = 1000,
        asked: str | None = None,
        served: ServedCalibration | None = None,
        memory: MemoryShare | None = None,
    ) -> None:
        self._memory = memory
        self._brokers = brokers
        self._make_partition = make_partition
        self._clock = clock
        self._max_wait_ms = max_wait_ms
        self._batch_records = batch_records
        self._tell_every_ms = tell_every_ms
        self.served = served
        self._reading: set[int] = set()
        """Partitions that are read where their joiners are."""
        self._patience = Patience(_log, "brokers", clock, asked)
        self.members: dict[int, Member] = {}
        """Our partitions by number."""
        self.caught_up = False
        """Whether the last `round` left nothing to do: all that our partitions' inputs held before it is joined and committed."""

    def run(self, stop: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> None:
        """Join until ``stop`` says so; then leave the group, so that others take over at once."""
        try:
            self.start()
            while not stop():
                pause_ms = self.round()
                if pause_ms:
                    sleep(pause_ms / 1000)
        finally:
            self.leave()

    def start(self) -> None:
        """Become a member of the group."""
        self._brokers.join()

    def leave(self) -> None:
        """Let go of all partitions and of the group; others take over at once."""
        try:
            self._revoke(list(self.members))
        finally:
            self._brokers.leave()

    def round(self) -> int:
        """Follow the group, read, and join once; bounded in time and memory. How long (ms) the next round may wait."""
        self.caught_up = False
        self._follow()
        # Who failed last comes last, so that none that fails keeps the others from their turn.
        for member in sorted(self.members.values(), key=lambda member: member.patience.not_before_ms):
            if not self._recover(member):
                break  # brokers may be away, and each try takes long: the group waits for our next round
        active = [member for member in self.members.values() if member.positioned]
        as_of_ms = self._clock.now_ms()
        try:
            self._read_on(active)
            if not active:
                return _RECOVERING_MS if any(member.recovery for member in self.members.values()) else _PAUSE_MS
            ends = self._brokers.ends([member.partition for member in active])
            if not any(member.join.busy for member in active):
                self._take()
        except BrokerError as error:
            if isinstance(error, NoLeaderError) and self._leave_out(active):
                return 0
            self._reading = set()  # what was read and not taken is read again
            self._patience.failed(error)
            return _PAUSE_MS
        self._patience.worked()
        for member in active:
            if member.positioned and not self._step(member, ends, as_of_ms):
                break  # the brokers are away, most likely: look before others wait as long
        else:
            self.caught_up = all(member.caught_up for member in self.members.values())
        return 0

    def _follow(self) -> None:
        """Take the partitions that the group assigned to us, let go of those it revoked.

        The new owner of a partition fences us before it begins, so nothing of ours is committed after that. A member that slept
        through a change of owner sees by the state's id that the last transaction is not its own.
        """
        ours = self._brokers.assigned()
        if ours != self.members.keys() and self._memory is not None:
            self._memory.divide(len(ours))
        self._revoke(self.members.keys() - ours)
        for partition in sorted(ours - self.members.keys()):
            outlet = self._brokers.outlet(partition)
            state, join = self._make_partition(partition, outlet, self._brokers.history(partition))
            self.members[partition] = Member(partition, state, join, outlet, self._clock)
            _log.info("partition %d assigned", partition)

    def _revoke(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.members.pop(partition).close()
            _log.info("partition %d revoked", partition)

    def _recover(self, member: Member) -> bool:
        """One bounded step towards the state that belongs to what was committed; whether brokers answered."""
        if member.positioned or not member.patience.ready:
            return True
        try:
            if not member.recovered:
                if member.recovery is None:
                    self._brokers.check_leaders([member.partition])
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
        join, partition = member.join, member.partition
        self._brokers.check_leaders([partition])
        begins, ends = self._brokers.begins([partition]), self._brokers.ends([partition])
        for topic in _INPUTS:
            begin, end, offset = begins[topic, partition], ends[topic, partition], join.offsets[topic]
            if offset > end:  # of a broker that is not whole yet, or has lost what it had promised to keep
                raise EndsEarlyError(f"{topic} ends at offset {end}, records before {offset} were joined")
            if offset < begin:
                join.skip(topic, begin)
        for gap in join.gaps:
            member.lost[gap.topic] += gap.stop - gap.start
            _log.error(_GAP, gap.topic, partition, gap.start, gap.stop, gap.stop - gap.start)
        join.gaps.clear()
        member.reached.clear()
        member.positioned = True
        member.stepped_at_ms = self._clock.elapsed_ms()
        self._reading.discard(partition)

    def _broken(self, member: Member, error: Exception) -> None:
        """A transaction came to no known end, or another worker has the partition: settle that by recovering again."""
        member.recovery = None
        member.recovered = member.positioned = False
        member.patience.failed(error)

    def _damaged(self, member: Member, error: Exception) -> None:
        """Files of a state may be found damaged long after they were opened; whatever else it is, is raised."""
        if not member.state.is_damage(error):
            raise error
        error.__traceback__ = None  # its frames hold cursors, and they the files, which would not open again
        member.join.discard()
        self._broken(member, DamagedError(f"{error}; the state is rebuilt from what the log keeps"))

    def _lose_place(self, member: Member, error: BrokerError) -> None:
        """Others go on without it, until it is known again where to read."""
        member.positioned = False
        member.patience.failed(error)

    def _leave_out(self, active: Collection[Member]) -> bool:
        """Others go on without members that miss a leader, of what they write as well; whether there are such."""
        try:
            self._brokers.check_leaders([member.partition for member in active])
        except NoLeaderError as error:
            for member in active:
                if member.partition in error.partitions:
                    self._lose_place(member, error)
            return True
        except BrokerError:  # nobody answers, which is no news
            pass
        return False

    def _read_on(self, active: Collection[Member]) -> None:
        """Read those that have a place, and no others, each from there on."""
        wanted = {member.partition for member in active}
        if wanted != self._reading:
            self._brokers.read_on(
                {(topic, member.partition): member.join.offsets[topic] for member in active for topic in _INPUTS}
            )
            self._reading = wanted

    def _take(self) -> None:
        """Read once, all partitions together."""
        fetched = self._brokers.read()
        for (_, partition), failed in fetched.failed.items():
            if (member := self._positioned(partition)) is not None:
                self._lose_place(member, failed)  # find out where to read on
        left = set()
        for (topic, partition), records in fetched.records.items():
            if (member := self._positioned(partition)) is not None:
                offset = member.join.offsets[topic]
                if records[0].offset < offset:  # what was on its way when it got a new position
                    records = [record for record in records if record.offset >= offset]
                try:
                    if member.join.take(topic, records) < len(records):
                        left.add((topic, partition))
                except Exception as error:
                    self._damaged(member, error)
        for (topic, partition), offset in fetched.reached.items():
            if (member := self._positioned(partition)) is not None and (topic, partition) not in left:
                member.reached[topic] = offset
        if left:
            self._reading = set()  # what did not fit is read again, after the step that makes room

    def _positioned(self, partition: int) -> Member | None:
        """Our member of a partition, where it reads."""
        member = self.members.get(partition)
        return member if member is not None and member.positioned else None

    def _step(self, member: Member, ends: Mapping[Place, int], as_of_ms: int) -> bool:
        """Join what was taken, if it is time; whether nothing failed."""
        join = member.join
        for topic, offset in join.offsets.items():
            reached = max(offset, member.reached.get(topic, 0))
            member.lag[topic] = max(0, ends[topic, member.partition] - reached)
        now_ms = self._clock.elapsed_ms()
        waits = join.taken < self._batch_records and now_ms - member.stepped_at_ms < self._max_wait_ms
        if waits and not (join.busy or join.is_full):
            return True
        try:
            join.step({topic: not lag for topic, lag in member.lag.items()}, as_of_ms, self._tell_every_ms)
            member.stepped_at_ms = now_ms
        except BrokerError as error:
            self._broken(member, error)
            self._leave_out([each for each in self.members.values() if each.positioned])
            return False
        except Exception as error:
            self._damaged(member, error)
            return True
        member.patience.worked()
        return True
