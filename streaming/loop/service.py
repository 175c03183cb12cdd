"""The loop of services that work on partitions of a log: those that their group assigns to them.

One loop serves joiners and those who keep live features, on every log: it is given the `Brokers`, the clock and a function that
makes what works on a partition. Of each partition it keeps the recovery's progress and the lag; the partition itself knows where to
read on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from streaming.clock import Clock
from streaming.log import BrokerError, LostRange, NoLeaderError, Record
from streaming.loop.brokers import Brokers, History, InputPartition, Outlet, UnknownPlaceError
from streaming.loop.clocks import ClockCheck
from streaming.retry import Retry

_PAUSE_MS = 50
_RECOVERING_MS = 1
_RECOVER_MS = 2000
"""How long recoveries may take in a round; the last step may exceed it. The group and recovered partitions wait meanwhile."""
_BUSY_MS = 1000
"""How long the others wait for a partition where more is due than a batch takes; then they are read without it. To choose again
what is read costs the client what it has fetched ahead, and most partitions are done much sooner."""
_DONE = object()


class EndsEarlyError(BrokerError):
    """A topic ends before the records that were joined."""


class DamagedError(Exception):
    """Files of a partition's state are damaged or missing."""


class Work(Protocol):
    """What is done with one partition. `recover` comes first, then `take` for records and `step` to work on them and commit."""

    busy: bool
    """Whether more is due than one batch takes: `step` comes again before `take`."""
    gaps: list[LostRange]
    """Records that the recovery skipped; the caller reports them and clears the list."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """The next offset to take of each input."""

    @property
    def uncommitted(self) -> int:
        """Records taken since the last step."""

    @property
    def must_step(self) -> bool:
        """Whether there is enough for a transaction: `step` comes before `take`."""

    @property
    def max_ahead_ms(self) -> int:
        """By how much producers' clocks may be ahead of brokers'."""

    def recover(self) -> Generator[None]:
        """Restore what belongs to the last commit; bounded work between two yields."""

    def take(self, topic: str, records: Sequence[Record]) -> int:
        """Take records of an input, in order. Return how many were taken; the others come again."""

    def skip(self, gap: LostRange) -> None:
        """Skip records of an input, up to the end of a gap; those before it were taken."""

    def step(self, ended: Mapping[str, bool], as_of_ms: int, publish_every_ms: int) -> bool:
        """Commit what was taken. Return whether there was anything to commit."""

    def is_damage(self, error: Exception) -> bool:
        """Whether an error means that what is kept on disk is damaged and can be made again."""

    def discard(self) -> None:
        """Discard what is damaged; `recover` makes it again."""

    def close(self) -> None:
        """Close files; what was not committed is lost."""


W = TypeVar("W", bound=Work)


class Member(Generic[W]):
    """One of our partitions: what works on it, and its progress."""

    def __init__(self, partition: int, work: W, outlet: Outlet[Any], clock: Clock, log: logging.Logger) -> None:
        self.partition = partition
        self.work = work
        self.outlet = outlet
        self._log = log
        self.recovery: Generator[None] | None = None
        self.recovered = False
        self.positioned = False
        self.recovered_at_ms = 0
        """When its recovery last took a step, in elapsed time."""
        self.stepped_at_ms = 0
        """When it last committed, in elapsed time."""
        self.idle_at_ms = 0
        """When no more was due than a batch takes, in elapsed time."""
        self.retry = Retry(log, f"partition {partition}", clock)
        self.clocks = ClockCheck(partition, work.max_ahead_ms, log)
        self.lag: dict[str, int] = {}
        """Records of each input that were not taken yet; empty while that is unknown."""
        self.read_to: dict[str, int] = {}
        """Up to which offset each input was read; past the last record if transaction markers follow it."""
        self.lost = Counter[str]()
        """Records that were deleted before they were read, or that no client can read, by topic."""

    @property
    def caught_up(self) -> bool:
        """Whether everything before the ends that were last fetched is joined."""
        return self.positioned and not self.work.busy and not self.work.uncommitted and not any(self.lag.values())

    @property
    def waits(self) -> bool:
        """Whether something failed for it, and since then it has neither committed nor caught up."""
        return self.retry.failing

    def lose_place(self) -> None:
        """Note that it is unknown where to read on."""
        self.positioned = False
        self.lag.clear()

    def skip(self, gap: LostRange) -> None:
        """Skip records of an input; log and count them."""
        self._tell(gap)
        self.work.skip(gap)

    def tell_gaps(self) -> None:
        """Log and count what the recovery skipped."""
        for gap in self.work.gaps:
            self._tell(gap)
        self.work.gaps.clear()

    def _tell(self, gap: LostRange) -> None:
        self.lost[gap.topic] += gap.size
        self._log.error("%s", gap.told(self.partition))

    def close(self) -> None:
        """Close everything; the partition's next owner joins what was not committed."""
        if self.recovery is not None:
            self.recovery.close()
        self.outlet.close()
        self.work.close()


class PartitionService(Generic[W]):
    """`run` works until told to stop; a caller with a loop of its own calls `start`, `round` and `leave`.

    ``make_partition`` makes what works on one partition. A partition commits after ``batch_records``, or ``max_wait_ms`` after its
    last commit; if only its watermark moved, once it has moved by ``publish_every_ms``. ``asked`` names the brokers in messages.
    ``assigned`` is told how many partitions are ours before they are made.
    """

    def __init__(
        self,
        brokers: Brokers,
        make_partition: Callable[[int, Outlet[Any], History], W],
        clock: Clock,
        log: logging.Logger,
        *,
        max_wait_ms: int,
        batch_records: int = 2000,
        publish_every_ms: int = 1000,
        asked: str | None = None,
        assigned: Callable[[int], None] = lambda partitions: None,
    ) -> None:
        self._log = log
        self._assigned = assigned
        self._brokers = brokers
        self._make_partition = make_partition
        self._clock = clock
        self._max_wait_ms = max_wait_ms
        self._batch_records = batch_records
        self._publish_every_ms = publish_every_ms
        self._reading: set[int] = set()
        """Partitions that are being read, each from its own offsets."""
        self._retry = Retry(log, "brokers", clock, asked)
        self.members: dict[int, Member[W]] = {}
        """Our partitions by number."""
        self.caught_up = False
        """Whether the last `round` left nothing to do: all that our partitions' inputs held before it is joined and committed."""

    def run(self, stop: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> None:
        """Join until ``stop`` returns true; then leave the group, so that others take over at once."""
        try:
            self.start()
            while not stop():
                pause_ms = self.round()
                if pause_ms:
                    sleep(pause_ms / 1000)
        finally:
            self.leave()

    def start(self) -> None:
        """Join the group."""
        self._brokers.join()

    def leave(self) -> None:
        """Close all partitions and leave the group; others take over at once."""
        try:
            self._revoke(list(self.members))
        finally:
            self._brokers.leave()

    def round(self) -> int:
        """Follow the group, read, and join once; bounded in time and memory. Return how long (ms) the next round may wait."""
        self.caught_up = False
        self._follow()
        # A member that failed comes after the others, so that it does not keep them from their turn.
        until_ms = self._clock.elapsed_ms() + _RECOVER_MS
        for member in sorted(self.members.values(), key=lambda each: (each.retry.not_before_ms, each.recovered_at_ms)):
            if not self._recover(member) or self._clock.elapsed_ms() >= until_ms:
                break  # brokers may be down, and each try takes long: the group waits for our next round
        active = [member for member in self.members.values() if member.positioned]
        as_of_ms = self._clock.now_ms()
        try:
            reading = [member for member in active if not self._holds_up(member)] or active
            self._read_on(reading)
            if not active:
                return _RECOVERING_MS if any(member.recovery for member in self.members.values()) else _PAUSE_MS
            ends = self._brokers.ends([member.partition for member in active])
            if not any(member.work.busy for member in reading):
                self._take()
        except BrokerError as error:
            if isinstance(error, NoLeaderError) and self._leave_out(active):
                return 0
            self._reading = set()  # what was read but not taken is re-read
            self._retry.failed(error)
            return _PAUSE_MS
        self._retry.worked()
        for member in active:
            if member.positioned and not self._step(member, ends, as_of_ms):
                break  # brokers are probably down: check before others wait as long
        else:
            self.caught_up = all(member.caught_up for member in self.members.values())
        return 0

    def _follow(self) -> None:
        """Take the partitions that the group assigned to us, and close those it revoked.

        The new owner of a partition fences us before it starts, so we commit nothing after that. A member that was paused during a
        change of owner finds a different state id in the last transaction.
        """
        ours = self._brokers.assigned()
        if ours != self.members.keys():
            self._assigned(len(ours))
        self._revoke(self.members.keys() - ours)
        for partition in sorted(ours - self.members.keys()):
            outlet = self._brokers.outlet(partition)
            work = self._make_partition(partition, outlet, self._brokers.history(partition))
            self.members[partition] = Member(partition, work, outlet, self._clock, self._log)
            self._log.info("partition %d assigned", partition)

    def _revoke(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.members.pop(partition).close()
            self._log.info("partition %d revoked", partition)

    def _recover(self, member: Member[W]) -> bool:
        """Take one bounded step of the recovery; return whether brokers answered."""
        if member.positioned or not member.retry.ready:
            return True
        try:
            member.recovered_at_ms = self._clock.elapsed_ms()
            if not member.recovered:
                if member.recovery is None:
                    self._brokers.check_leaders([member.partition])
                    member.recovery = member.work.recover()
                member.recovered = next(member.recovery, _DONE) is _DONE
            if member.recovered:
                member.recovery = None
                self._position(member)
        except NoLeaderError as error:
            member.recovery = None
            self._lose_place(member, error)  # brokers said so at once: the others need not wait for the next round
        except (BrokerError, UnknownPlaceError) as error:
            self._broken(member, error)
            return False
        except Exception as error:
            self._damaged(member, error)
        return True

    def _position(self, member: Member[W]) -> None:
        """Read on at the joiner's offsets, or at the first records that are still kept."""
        work, partition = member.work, member.partition
        self._brokers.check_leaders([partition])
        begins, ends = self._brokers.begins([partition]), self._brokers.ends([partition])
        member.tell_gaps()
        for topic in self._brokers.inputs:
            begin, end, offset = begins[topic, partition], ends[topic, partition], work.offsets[topic]
            if offset > end:  # the broker is still recovering, or has lost acknowledged records
                raise EndsEarlyError(f"{topic} ends at offset {end}, records before {offset} were joined")
            if offset < begin:
                member.skip(LostRange(topic, offset, begin))
        member.read_to.clear()
        member.clocks.forget()
        member.positioned = True
        member.stepped_at_ms = member.idle_at_ms = self._clock.elapsed_ms()
        self._reading.discard(partition)

    def _broken(self, member: Member[W], error: Exception) -> None:
        """Recover again: a transaction's outcome is unknown, or another worker owns the partition."""
        member.recovery = None
        member.recovered = False
        member.lose_place()
        member.retry.failed(error)

    def _damaged(self, member: Member[W], error: Exception) -> None:
        """Discard a state whose files turn out to be damaged, maybe long after they were opened; raise any other error."""
        if not member.work.is_damage(error):
            raise error
        error.__traceback__ = None  # its frames hold cursors, which hold the files, which could then not be reopened
        member.work.discard()
        self._broken(member, DamagedError(f"{error}; the state is rebuilt from the log"))

    def _lose_place(self, member: Member[W], error: BrokerError) -> None:
        """Stop reading for a member until it is known again where to read on; the others continue."""
        member.lose_place()
        member.retry.failed(error)

    def _leave_out(self, active: Collection[Member[W]]) -> bool:
        """Stop reading for members without a leader, also of a topic that they write; return whether there are any."""
        try:
            self._brokers.check_leaders([member.partition for member in active])
        except NoLeaderError as error:
            for member in active:
                if member.partition in error.partitions:
                    self._lose_place(member, error)
            return True
        except BrokerError:  # no broker answers, which is known already
            pass
        return False

    def _holds_up(self, member: Member[W]) -> bool:
        """Whether others have waited for a member long enough."""
        return member.work.busy and self._clock.elapsed_ms() - member.idle_at_ms >= _BUSY_MS

    def _read_on(self, active: Collection[Member[W]]) -> None:
        """Read for these members and no others, each from its offsets."""
        wanted = {member.partition for member in active}
        if wanted != self._reading:
            self._brokers.read_on(
                {
                    (topic, member.partition): member.work.offsets[topic]
                    for member in active
                    for topic in self._brokers.inputs
                }
            )
            self._reading = wanted

    def _take(self) -> None:
        """Read all partitions once, and take the records."""
        fetched = self._brokers.read()
        for (_, partition), failed in fetched.failed.items():
            if (member := self._positioned(partition)) is not None:
                self._lose_place(member, failed)  # find out where to read on
        now_ms, left = self._clock.now_ms(), set()
        for (topic, partition), records in fetched.records.items():
            if (member := self._positioned(partition)) is not None:
                offset = member.work.offsets[topic]
                if records[0].offset < offset:  # records that were on their way when the position changed
                    records = [record for record in records if record.offset >= offset]
                if records:
                    member.clocks.came(topic, records[0].appended_at, now_ms)
                try:
                    if member.work.take(topic, records) < len(records):
                        left.add((topic, partition))
                except Exception as error:
                    self._damaged(member, error)
        for (topic, partition), offset in fetched.read_to.items():
            if (member := self._positioned(partition)) is not None and (topic, partition) not in left:
                member.read_to[topic] = offset
        for (topic, partition), gap in fetched.lost.items():
            member = self._positioned(partition)
            if member is not None and (topic, partition) not in left and gap.stop > member.work.offsets[topic]:
                member.skip(gap._replace(start=max(gap.start, member.work.offsets[topic])))
        if left or fetched.lost:
            self._reading = set()  # what did not fit is re-read after the step that makes room

    def _positioned(self, partition: int) -> Member[W] | None:
        """Return our member of a partition if it is being read."""
        member = self.members.get(partition)
        return member if member is not None and member.positioned else None

    def _step(self, member: Member[W], ends: Mapping[InputPartition, int], as_of_ms: int) -> bool:
        """Join what was taken, if it is time; return whether brokers did not fail."""
        work = member.work
        for topic, offset in work.offsets.items():
            read_to = max(offset, member.read_to.get(topic, 0))
            member.lag[topic] = max(0, ends[topic, member.partition] - read_to)
            if not member.lag[topic]:
                member.clocks.saw_end(topic, as_of_ms)
        now_ms = self._clock.elapsed_ms()
        if not work.busy:
            member.idle_at_ms = now_ms
        waits = work.uncommitted < self._batch_records and now_ms - member.stepped_at_ms < self._max_wait_ms
        if waits and not (work.busy or work.must_step):
            return True
        try:
            ended = {topic: not lag for topic, lag in member.lag.items()}
            committed = work.step(ended, as_of_ms, self._publish_every_ms)
            member.stepped_at_ms = now_ms
        except BrokerError as error:
            self._broken(member, error)
            self._leave_out([each for each in self.members.values() if each.positioned])
            return False
        except Exception as error:
            self._damaged(member, error)
            return True
        if committed or member.caught_up:  # else it is not known whether what failed works again
            member.retry.worked()
        return True
