"""The outermost loops of the services, as on Kafka but in simulated processes: everything inside them is what ships."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.table import Table
from serving.replica import Replica
from streaming.join.commit import ForgottenError
from streaming.join.partition import JoinPartition
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from tests.simulation.brokers import HistoryOf, LogError, LogOf, OutletOf
from tests.simulation.counting import FORMAT, make_replica, make_trainer
from tests.simulation.disk import DiskOf
from tests.simulation.process import Process
from tests.simulation.store import Store, StoreFolder
from tests.simulation.traffic import FEATURES, LABELS, PARTITIONS
from trainer.online import OnlineTrainer

if TYPE_CHECKING:
    from tests.simulation.world import World

FOLDER = Path("deltas")
SPARSE_EVERY, DENSE_EVERY, KEEP_DELTAS = 60_000, 600_000, 4
_TELL_EVERY = 40_000
_OFF = 1.05


class Clock:
    """The time as one machine believes it to be."""

    def __init__(self, world: World, seed: str) -> None:
        self._world = world
        self.ahead = 0
        self.pace = random.Random(seed).uniform(1 / _OFF, _OFF)

    def now_ms(self) -> int:
        return self._world.now + self.ahead

    def elapsed_ms(self) -> int:
        """By an oscillator that is a little off."""
        return int(self._world.now * self.pace)


class _Member:
    """One partition at a joiner; see `streaming.join.service.Member`."""

    def __init__(self, joining: JoinerService, partition: int) -> None:
        world, process = joining.world, joining.process
        folder = joining.folders.setdefault(partition, StoreFolder())
        memory = world.rng.choice([2000, 6000, 1 << 20])
        state = JoinState(FOLDER, memory, lambda _: Store(folder, process))
        self.outlet = OutletOf(world.brokers, process, partition)
        history = HistoryOf(world.brokers, process, partition)
        self.join = JoinPartition(
            JoinSpec(FEATURES, LABELS, world.traffic.settings, world.traffic.negatives),
            state,
            self.outlet,
            history,
            joining.clock,
            partition,
            new_id=world.new_id,
            write_every_ms=world.rng.choice([0, 60_000, 1 << 40]),
            requests_at_once=world.requests_at_once,
        )
        self.recovery: Generator[None] | None = None
        self.positioned = False
        self.reached: dict[str, int] = {}

    def read_until(self, topic: str) -> int:
        """The offset before which there is nothing left to take."""
        return max(self.join.offsets[topic], self.reached.get(topic, 0))


class JoinerService:
    """`streaming.join.service.JoinService`, a round at a time."""

    def __init__(
        self, world: World, process: Process, clock: Clock, name: str, folders: dict[int, StoreFolder]
    ) -> None:
        self.world = world
        self.process = process
        self.clock = clock
        self.name = name
        self.folders = folders
        self._log = LogOf(world.brokers, process)
        self._members: dict[int, _Member] = {}

    def step(self) -> None:
        self._follow()
        for member in self._members.values():
            self._recover(member)
        active = {at: member for at, member in self._members.items() if member.positioned}
        as_of_ms = self.clock.now_ms()
        try:
            ends = {at: {topic: self._log.end(topic, at) for topic in (IMPRESSIONS, ENGAGEMENTS)} for at in active}
            if not any(member.join.busy for member in active.values()):
                self._take(active)
        except LogError:
            return
        for at, member in active.items():
            if member.positioned:
                self._step(member, ends[at], as_of_ms)

    def _follow(self) -> None:
        if self._members and self.world.rng.random() < 0.3:  # the group's word comes late
            return
        ours = {at for at in range(PARTITIONS) if self.world.assigned[at] == self.name}
        for partition in self._members.keys() - ours:
            del self._members[partition]
        for partition in sorted(ours - self._members.keys()):
            self._members[partition] = _Member(self, partition)

    def _recover(self, member: _Member) -> None:
        if member.positioned:
            return
        try:
            if member.recovery is None:
                member.recovery = member.join.recover()
            next(member.recovery)
        except StopIteration:
            member.recovery = None
            member.positioned = True
            member.reached.clear()
            assert not member.join.gaps, f"retention took what a rebuild needs: {member.join.gaps}"
        except ForgottenError:
            assert member.outlet.is_fenced, "offsets were committed"  # by whoever got the partition while we slept
            member.recovery = None
        except LogError:
            member.recovery = None

    def _take(self, active: Mapping[int, _Member]) -> None:
        rng = self.world.rng
        for at, member in active.items():
            for topic in rng.sample((IMPRESSIONS, ENGAGEMENTS), rng.choice([1, 2, 2, 2])):
                limit = rng.choice([1, 5, 30])
                if member.outlet.is_fenced and member.join.offsets[topic] < self._log.begin(topic, at):
                    member.positioned = False  # others went on and needed what is gone no more
                    break
                records, member.reached[topic] = self._log.read_on(topic, at, member.join.offsets[topic], limit)
                member.join.take(topic, records)

    def _step(self, member: _Member, ends: Mapping[str, int], as_of_ms: int) -> None:
        join = member.join
        if not join.busy and self.world.rng.random() < 0.2:  # more is awaited, to be sent together
            return
        try:
            join.step({topic: member.read_until(topic) >= ends[topic] for topic in ends}, as_of_ms, _TELL_EVERY)
        except LogError:
            member.recovery = None
            member.positioned = False

    def leave(self) -> list[int]:
        """As a service does that is told to stop; the partitions that others take over at once."""
        left = list(self._members)
        self._members.clear()
        return left

    @property
    def quiet(self) -> bool:
        """Whether everything that was sent is joined."""
        topics = self.world.brokers.topics
        return all(
            member.positioned
            and not member.join.busy
            and not member.join.taken
            and all(member.read_until(topic) == topics[topic, at].stable for topic in (IMPRESSIONS, ENGAGEMENTS))
            for at, member in self._members.items()
        )

    @property
    def told(self) -> dict[int, int]:
        return {at: member.join.told for at, member in self._members.items()}


class TrainService:
    """`minutely.train.TrainService`, a step at a time."""

    def __init__(self, world: World, process: Process, clock: Clock) -> None:
        self.world = world
        self.process = process
        files = LocalFiles(FOLDER, durable=True, system=DiskOf(world.disk, process))
        deltas = DeltaLog.resume(files, '{"form": 1}', KEEP_DELTAS)
        self._waits_since = world.now
        self.online = OnlineTrainer(
            make_trainer(),
            LogOf(world.brokers, process),
            range(PARTITIONS),
            FORMAT,
            files,
            deltas,
            clock,
            sparse_every=SPARSE_EVERY,
            dense_every=DENSE_EVERY,
        )
        world.checks.trainer_began(self.online)

    def step(self) -> None:
        if self.world.brokers.away:
            return
        self.online.step()
        if self.online.due():
            self._waits_since = self.world.now
            self.publish()
            return
        waits = self.world.now - self._waits_since
        assert waits <= _OFF * SPARSE_EVERY + 1, f"nothing was published for {waits} ms, whatever the clock was set to"

    def publish(self) -> None:
        self.world.checks.before_publication(self.online)
        try:
            manifest = self.online.publish()
        except OSError as error:
            if self.world.rng.random() < 0.5:
                raise
            self.world.note("trainer", f"goes on, will publish later: {error}")
            return
        if manifest is not None:
            self.world.checks.published(manifest)


class ReplicaService:
    """Pulls, and scores what it is asked."""

    def __init__(self, world: World, process: Process, clock: Clock, name: str) -> None:
        self.world = world
        self.process = process
        self.clock = clock
        self.name = name
        self.disk = DiskOf(world.disk, process)
        self.disk.flaky = world.flaky
        self.replica: Replica = make_replica(LocalFiles(FOLDER, durable=True, system=self.disk))

    @property
    def tables(self) -> Mapping[str, Table]:
        return self.replica.tables

    def step(self) -> None:
        self.disk.failed = False
        self.world.checks.pull(self)
