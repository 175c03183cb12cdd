"""The services in simulated processes: what ships, and of trainer and replicas the outermost loops."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.table import Table
from serving.replica import Replica
from streaming.join.commit import Committed, UnknownPlaceError
from streaming.join.partition import JoinPartition
from streaming.join.service import JoinService
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.loop.brokers import History, Outlet
from tests.simulation.brokers import BrokersOf, LogOf, OutletOf
from tests.simulation.counting import format_of, make_replica, make_trainer
from tests.simulation.disk import DiskOf
from tests.simulation.process import Process
from tests.simulation.store import Store, StoreFolder
from tests.simulation.traffic import LABELS, PARTITIONS, features
from trainer.online import OnlineTrainer

if TYPE_CHECKING:
    from tests.simulation.world import World

FOLDER = Path("deltas")
SPARSE_EVERY, DENSE_EVERY, KEEP_DELTAS = 60_000, 600_000, 4
_PUBLISH_EVERY = 40_000
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


class _Partition(JoinPartition):
    """One whose brokers are known to keep what was committed."""

    def recover(self) -> Generator[None]:
        try:
            yield from super().recover()
        except UnknownPlaceError as error:
            assert cast(OutletOf, self._outlet).is_fenced, f"offsets were committed: {error}"
            raise


class JoinerService:
    """`streaming.join.service.JoinService` on one machine, a round at a time."""

    def __init__(
        self, world: World, process: Process, clock: Clock, name: str, folders: dict[int, StoreFolder]
    ) -> None:
        self._world = world
        self._process = process
        self._clock = clock
        self._folders = folders
        self._lost: dict[int, int] = {}
        self._features = features(world.actors[name].size)
        self._settings = world.traffic.settings.model_copy(update={"emit": world.actors[name].emit})
        self.service = JoinService(
            BrokersOf(world.brokers, process, name),
            self._make,
            clock,
            max_wait_ms=world.rng.choice([0, 0, 20_000]),
            batch_records=world.rng.choice([1, 50, 2000]),
            publish_every_ms=_PUBLISH_EVERY,
        )
        self.service.start()

    def _make(self, partition: int, outlet: Outlet[Committed], history: History) -> JoinPartition:
        world, process = self._world, self._process
        folder = self._folders.setdefault(partition, StoreFolder())
        state = JoinState(FOLDER, world.rng.choice([2000, 6000, 1 << 20]), lambda _: Store(folder, process))
        return _Partition(
            JoinSpec(self._features, LABELS, self._settings, world.traffic.negatives, limits=world.limits),
            state,
            outlet,
            history,
            partition,
            new_id=world.new_id,
            write_every_ms=world.rng.choice([0, 60_000, 1 << 40]),
            requests_at_once=world.requests_at_once,
        )

    def step(self) -> None:
        self.service.round()
        lost = {at: member.lost.total() for at, member in self.service.members.items()}
        for at, member in self.service.members.items():
            is_fenced = cast(OutletOf, member.outlet).is_fenced  # others went on, and needed what is gone no more
            assert is_fenced or lost[at] <= self._lost.get(at, 0), f"retention took what {at} needs: {member.lost}"
        self._lost = lost

    def leave(self) -> None:
        """As a service does that is told to stop."""
        self.service.leave()

    @property
    def quiet(self) -> bool:
        """Whether everything that was sent is joined."""
        topics = self._world.brokers.topics
        return all(
            member.caught_up
            and all(
                max(offset, member.read_to.get(topic, 0)) == topics[topic, at].stable
                for topic, offset in member.work.offsets.items()
            )
            for at, member in self.service.members.items()
        )

    @property
    def published(self) -> dict[int, int]:
        return {at: member.work.published for at, member in self.service.members.items()}


class TrainService:
    """`minutely.services.train.TrainService`, a step at a time."""

    def __init__(self, world: World, process: Process, clock: Clock) -> None:
        self.world = world
        self.process = process
        files = LocalFiles(FOLDER, durable=True, system=DiskOf(world.disk, process))
        deltas = DeltaLog.resume(files, '{"form": 1}', KEEP_DELTAS)
        self._waits_since = world.now
        # The model has no use for the feature that configs differ in; of one that is resized, no trainer takes both kinds.
        example_format = format_of(0 if world.traffic.is_resized else world.actors["trainer"].size)
        self.online = OnlineTrainer(
            make_trainer(example_format),
            LogOf(world.brokers, process),
            range(PARTITIONS),
            example_format,
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
        self.world.checks.unreadable |= {(one.partition, one.offset) for one in self.online.take_refused()}
        if self.online.is_publication_due():
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
