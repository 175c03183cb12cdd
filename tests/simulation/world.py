"""One run of the whole loop under one seed: simulated time, users, brokers, disks, and everything that breaks.

Components take turns at random. Each may crash or be suspended, while the others go on, before any step that others can see;
which kinds of fault a run has, and how often, is drawn from its seed too.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from streaming.join.limits import Limits
from streaming.log import DEAD_LETTERS, EXAMPLES, INPUTS, BrokerError
from tests.simulation.brokers import JOINERS, Brokers
from tests.simulation.checks import Checks
from tests.simulation.disk import Disk
from tests.simulation.process import Crash, Process
from tests.simulation.services import Clock, JoinerService, ReplicaService, TrainService
from tests.simulation.store import StoreFolder
from tests.simulation.traffic import (
    HOUR,
    LATENESS,
    LONGEST_DELAY,
    MINUTE,
    PARTITIONS,
    START,
    WAITING_BYTES,
    WINDOW,
    Arrival,
    Emit,
    Traffic,
    make_traffic,
)

Service: TypeAlias = JoinerService | TrainService | ReplicaService

FAULTS = (
    "crash", "suspend", "power", "lose state", "rebalance", "brokers away", "no leader", "unsure", "disk full", "clock",
    "retention", "flaky reads", "pause", "stop",
    "open transaction",
)  # fmt: skip
_TRACE = 44
_DEEPEST = 2
_QUIET_TURNS = 100
"""What a trainer or replica may need to catch up once faults end; it needs up to 11."""


class Actor:
    """A component over all its lives."""

    def __init__(self, name: str, world: World, begin: Callable[[Process, Clock], Service]) -> None:
        self.name = name
        self.clock = Clock(world, f"{world.seed} {name}")
        self.folders: dict[int, StoreFolder] = {}
        self.service: Service | None = None
        self.process: Process | None = None
        self.busy = False
        self.paused_until = 0
        self.size = world.traffic.sizes[0]
        """Which of the two configs it has; `join.emit` changes by itself."""
        self.emit = world.emits[0]
        self.begin = begin


class World:
    """``traffic`` is drawn from the seed unless it is given; ``trace`` holds what happened last."""

    def __init__(self, seed: int, traffic: Traffic | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.now = START
        self.trace: deque[tuple[int, str, str]] = deque(maxlen=_TRACE)
        self.traffic = traffic or make_traffic(rng)
        self.brokers = Brokers(rng, PARTITIONS, lambda: self.now)
        self.disk = Disk(rng)
        emit = self.traffic.settings.emit
        changes = random.Random(f"{seed} emit").random() < 0.2
        self.emits: list[Emit] = [emit, "window" if emit == "decided" else "decided"] if changes else [emit]
        self.checks = Checks(self.traffic, self.emits)
        self.faults = {name for name in FAULTS if rng.random() < 0.5}
        self.rate = rng.choice([0.03, 0.08, 0.2])
        self.flaky = 0.0
        self.turns = 0
        self._arrived = 0
        self._held_back: list[Arrival] = []
        self._ids = 0
        self._depth = 0
        self._calm = False
        self.actors = {
            "a": self._joiner("a"),
            "b": self._joiner("b"),
            "trainer": Actor("trainer", self, lambda process, clock: TrainService(self, process, clock)),
            "replica 1": self._replica("replica 1"),
            "replica 2": self._replica("replica 2"),
        }
        self._order = [self.actors[name] for name in ("a", "b", "trainer", *self.actors)]
        self.requests_at_once = rng.choice([1, 3, 2000])
        batch_bytes = random.Random(f"{seed} limits").choice([Limits().batch_bytes, Limits().batch_bytes, 4000, 1500])
        self.limits = Limits(batch_bytes=batch_bytes, waiting_bytes=WAITING_BYTES)
        self.checks.splits = batch_bytes != Limits().batch_bytes
        self.brokers.largest = 8 * batch_bytes + 40_000  # a record of a few rows is mostly its columns' names

    def _joiner(self, name: str) -> Actor:
        def begin(process: Process, clock: Clock) -> Service:
            return JoinerService(self, process, clock, name, self.actors[name].folders)

        return Actor(name, self, begin)

    def _replica(self, name: str) -> Actor:
        return Actor(name, self, lambda process, clock: ReplicaService(self, process, clock, name))

    def new_id(self) -> str:
        self._ids += 1
        return f"s{self._ids}"

    def note(self, who: str, what: str) -> None:
        self.trace.append((self.now, who, what))

    def run(self) -> None:
        """Everything that happens, then quiet, then what must hold."""
        pace = self.rng.choice([4_000, 8_000])
        while self.now < self.traffic.until + LATENESS:
            self.turn(int(self.rng.expovariate(1 / pace)))
        self._end_faults()
        for names, is_quiet, most in (
            (("a", "b"), self._is_joined, self._joining_turns()),
            (("trainer",), self._is_published, _QUIET_TURNS),
            (("replica 1", "replica 2"), self._is_pulled, _QUIET_TURNS),
        ):
            self._order = [self.actors[name] for name in names]
            turns = 0
            while not is_quiet():
                self.turn(int(self.rng.expovariate(1 / 120_000)))
                turns += 1
                assert turns < most, f"no end in sight for {names} after {most} turns"
        self.checks.at_the_end(self.brokers, self._trainer().online, self._replicas())

    def _joining_turns(self) -> int:
        """What joiners may need once faults end. Where transactions are small each record or example may take one, and every
        second turn may be of the joiner without the partition; else they need some 170 and wait for time to pass in most."""
        records = len(self.traffic.arrivals) + len(self.traffic.names)
        return 3 * records if self.checks.splits else 500 + records // 4

    def _trainer(self) -> TrainService:
        service = self.actors["trainer"].service
        assert isinstance(service, TrainService)
        return service

    def _replicas(self) -> list[ReplicaService]:
        return [one.service for one in self.actors.values() if isinstance(one.service, ReplicaService)]

    def turn(self, passes: int) -> None:
        """Time goes on, records arrive, something may break, and one component takes its turn."""
        self.turns += 1
        self.now += passes
        if not self._calm:
            self._break_something()
        if not self.brokers.away:
            self._arrive()
        ready = [actor for actor in self._order if not actor.busy and actor.paused_until <= self.now]
        if ready:
            self._take_turn(self.rng.choice(ready))

    def _arrive(self) -> None:
        """Producers send what is due; each waits for a leader of its own partition.

        What was held back is stamped when it is sent, by which all of it may be late. So each of them ends the windows of those
        after it that claim less than it does: that is outside of what is promised. They are sent in the order of what they would
        have claimed on arrival, by which none claims less than one before it but for the delay that the lateness covers.
        """
        arrivals, due = self.traffic.arrivals, self._held_back
        self._held_back = []
        while self._arrived < len(arrivals) and arrivals[self._arrived].at <= self.now:
            due.append(arrivals[self._arrived])
            self._arrived += 1
        for one in sorted(due, key=lambda one: one.at + one.ahead):
            # Joiners refuse to begin where somebody else has written examples already.
            too_early = one.topic == EXAMPLES and self.brokers.groups[one.partition] is None
            if too_early or one.partition in self.brokers.leaderless:
                self._held_back.append(one)
            else:
                self.brokers.produce(one.topic, one.partition, one.value, one.attempts)

    def _take_turn(self, actor: Actor) -> None:
        rng = self.rng
        if actor.process is None:
            actor.process = Process(actor.name, self._meanwhile)
        process = actor.process
        if not self._calm:
            if "crash" in self.faults and rng.random() < self.rate:
                process.crash_in = rng.randint(1, rng.choice([6, 60]))
            if "suspend" in self.faults and rng.random() < 2 * self.rate:
                process.suspend_in = rng.randint(1, rng.choice([6, 20]))

        def step() -> None:
            if actor.service is None:
                if rng.random() < 0.2:
                    actor.size = sum(self.traffic.sizes) - actor.size
                if len(self.emits) > 1:
                    actor.emit = rng.choice(self.emits)
                actor.service = actor.begin(process, actor.clock)
                self.note(actor.name, f"begins, size {actor.size}")
            actor.service.step()

        self._run(actor, process, step)

    def _run(self, actor: Actor, process: Process, step: Callable[[], None]) -> None:
        """Something that a component does, of which it may die."""
        actor.busy = True
        try:
            step()
        except Crash:
            self.note(actor.name, f"died: {process.last}")
            self._kill(actor)
        except BrokerError as error:
            assert actor.name == "trainer", f"{actor.name} ends where brokers fail: {error}"
            self.note(actor.name, f"could not begin: {error}")
            actor.service = None
        except OSError as error:
            assert not self._calm, error
            self.note(actor.name, f"ended: {error}")
            self._kill(actor)
        finally:
            actor.busy = False

    def _kill(self, actor: Actor) -> None:
        if actor.process is not None:
            actor.process.alive = False
        actor.process = None
        actor.service = None

    def _meanwhile(self, process: Process) -> None:
        """``process`` is suspended; the others go on for a moment, or for long."""
        if self._depth >= _DEEPEST or self._calm:
            return
        self._depth += 1
        rng, brokers = self.rng, self.brokers
        long = rng.random() < 0.1
        self.note(process.name, f"suspended: {process.last}")
        owners, committed = list(brokers.owners), list(brokers.groups)
        is_missed = process.name in JOINERS and "rebalance" in self.faults and rng.random() < 0.3
        if is_missed:
            brokers.evict(process.name)
        for _ in range(rng.randint(1, 80 if is_missed else 25 if long else 4)):
            self.turn(rng.randrange(5 * MINUTE if long else 2_000))
            if is_missed and brokers.groups != committed:  # another has done its work, once
                break
        if is_missed and rng.random() < 0.5:  # it is a member again before it knew of that
            brokers.owners[:] = owners
        self.note(process.name, "goes on")
        self._depth -= 1

    def _break_something(self) -> None:
        rng = self.rng
        if rng.random() < 0.1:
            self._settle_what_was_left()
        if self.brokers.away and rng.random() < 0.2:
            self.brokers.away = False
            self.note("brokers", "back")
        if self.brokers.leaderless and rng.random() < 0.2:
            self.brokers.leaderless.clear()
            self.note("brokers", "lead all partitions again")
        if self.brokers.held and rng.random() < 0.02:
            self.brokers.release()
            self.note("brokers", "aborted transactions of producers that died")
        if self.disk.full and rng.random() < 0.1:
            self.disk.full = False
            self.note("disk", "has room again")
        if rng.random() > self.rate:
            return
        fault = rng.choice(FAULTS)
        if fault in self.faults:
            self._inject(fault)

    def _settle_what_was_left(self) -> None:
        """Brokers complete what was decided, and abort what is open for too long."""
        at = self.rng.randrange(PARTITIONS)
        transaction = self.brokers.transactions[at]
        if transaction is not None and transaction.state == "decided":
            self.brokers.settle(at)
        elif transaction is not None and self.rng.random() < 0.1:
            self.brokers.epochs[at] += 1
            self.brokers.settle(at)
            self.note("brokers", f"aborted the transaction of {at}")

    def _inject(self, fault: str) -> None:
        rng = self.rng
        match fault:
            case "power":
                self._lose_power(rng.choice(["a", "b", "trainer"]))
            case "lose state":
                folders = self.actors[rng.choice(JOINERS)].folders
                self.note("state", "lost")
                folders.clear()
            case "rebalance":
                self.brokers.owners[rng.randrange(PARTITIONS)] = rng.choice(JOINERS)
                self.note("group", f"partitions go to {self.brokers.owners}")
            case "brokers away":
                self.brokers.away = True
                self.note("brokers", "away")
            case "no leader":
                self.brokers.leaderless.add(rng.randrange(PARTITIONS))
                self.note("brokers", f"nobody leads {sorted(self.brokers.leaderless)}")
            case "unsure":
                self.brokers.unsure = rng.choice([0, 0.1, 0.3])
            case "open transaction":
                at, topics = rng.randrange(PARTITIONS), rng.sample([*INPUTS, EXAMPLES, DEAD_LETTERS], rng.randint(1, 4))
                for topic in topics:
                    self.brokers.hold(topic, at)
                self.note("brokers", f"a producer left a transaction open in {at} of {topics}")
            case "disk full":
                self.disk.full = True
                self.note("disk", "full")
            case "clock":
                for actor in rng.sample(self._order, rng.randint(1, len(self._order))):  # as a wrong time server does
                    self._move_clock(actor)
            case "retention":
                self._retain()
            case "flaky reads":
                self._set_flaky(rng.choice([0, 0.02, 0.2]))
            case "pause":
                actor = rng.choice(self._order)
                actor.paused_until = self.now + rng.choice([MINUTE, 10 * MINUTE, HOUR])
                self.note(actor.name, f"paused for {(actor.paused_until - self.now) // MINUTE} min")
            case "stop":
                self._stop(rng.choice(JOINERS))

    def _stop(self, name: str) -> None:
        """A joiner leaves its group in order, and comes back later."""
        actor = self.actors[name]
        if actor.busy or actor.process is None or not isinstance(actor.service, JoinerService):
            return
        self._run(actor, actor.process, actor.service.leave)
        self._kill(actor)
        actor.paused_until = self.now + self.rng.choice([0, MINUTE, HOUR])
        self.note(name, f"stopped; partitions go to {self.brokers.owners}")

    def _lose_power(self, name: str) -> None:
        """A joiner's machine, or the one of the trainer and its replicas."""
        self.note(name, "its machine loses power")
        if name == "trainer":
            for one in ("trainer", "replica 1", "replica 2"):
                self._kill(self.actors[one])
                self.checks.replica_died_with_its_machine(one)
            self.disk.lose_power()
            return
        self._kill(self.actors[name])
        for folder in self.actors[name].folders.values():
            folder.lose_power(self.rng)

    def _move_clock(self, actor: Actor) -> None:
        """A joiner's may go ahead by what lateness leaves; a trainer's or a replica's may say anything."""
        latest = LATENESS - LONGEST_DELAY if isinstance(actor.service, JoinerService) or actor.name in JOINERS else HOUR
        actor.clock.ahead = self.rng.choice([0, self.rng.randint(-HOUR, latest)])
        self.note(actor.name, f"clock {actor.clock.ahead} ms ahead")

    def _retain(self) -> None:
        """Brokers delete what nobody needs: what a rebuild reads is in the metadata, what a trainer reads in its version."""
        for at in range(PARTITIONS):
            committed = self.brokers.committed(at)
            if committed is None:
                continue
            trained = self.checks.trained.get(f"{EXAMPLES}/{at}", 0)
            for topic, lowest in committed.lowest.items():
                self.brokers.trim(topic, at, min(lowest, trained) if topic == EXAMPLES else lowest)
        self.note("retention", "deleted what nobody needs")

    def _set_flaky(self, chance: float) -> None:
        self.flaky = chance
        for service in self._replicas():
            service.disk.flaky = chance

    def _end_faults(self) -> None:
        self._calm = True
        self.brokers.away = self.disk.full = False
        self.brokers.leaderless.clear()
        self.brokers.unsure = 0.0
        self.brokers.release()
        self._set_flaky(0.0)
        for actor in self._order:
            actor.paused_until = 0
            if actor.process is not None:
                actor.process.crash_in = actor.process.suspend_in = 0
        for at in range(PARTITIONS):  # what a dead producer left open ends with its time
            if self.actors[self.brokers.owners[at]].service is None and self.brokers.transactions[at] is not None:
                self.brokers.epochs[at] += 1
                self.brokers.settle(at)
        self.note("world", "faults end")

    def _is_joined(self) -> bool:
        """Whether everything was read, and every window and marker is over."""
        if self._arrived < len(self.traffic.arrivals) or self._held_back:
            return False
        services = [self.actors[name].service for name in JOINERS]
        joiners = [service for service in services if isinstance(service, JoinerService)]
        published = {at: one for service in joiners for at, one in service.published.items()}
        over = self.traffic.until + 2 * (WINDOW + LATENESS)
        return all(one.quiet for one in joiners) and len(published) == PARTITIONS and min(published.values()) > over

    def _is_published(self) -> bool:
        if self.actors["trainer"].service is None:
            return False
        online = self._trainer().online
        for worker in online.workers:
            log = self.brokers.topics[EXAMPLES, worker.partition]
            if any(log.committed(worker.offset, len(log.entries))):
                return False
        offsets = {f"{EXAMPLES}/{worker.partition}": worker.offset for worker in online.workers}
        return online.deltas.newest is not None and online.deltas.newest.offsets == offsets

    def _is_pulled(self) -> bool:
        versions = [service.replica.sparse_version for service in self._replicas()]
        return versions == [self._trainer().online.deltas.version] * 2
