"""Partitions of one joiner take turns: none keeps the others, or the group, waiting for long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import Any

from streaming.join.service import JoinService
from streaming.log import INPUTS, Record
from streaming.loop.brokers import Fetched, InputPartition
from tests.clocks import SetClock

ROUNDS, STEPS = 60, 10


class SlowPartition:
    """A partition each of whose steps takes ``slow_ms``, and more is due in it than ``due`` steps take."""

    def __init__(self, clock: SetClock, slow_ms: int, due: int) -> None:
        self._clock = clock
        self._slow_ms = slow_ms
        self.due = due
        self.offsets = dict.fromkeys(INPUTS, 0)
        self.recovered = self.uncommitted = self.published = 0
        self.gaps: list[Any] = []
        self.must_step, self.max_ahead_ms = False, 5000

    @property
    def busy(self) -> bool:
        return self.due > 0

    def recover(self) -> Generator[None]:
        for _ in range(STEPS):
            self._clock.elapsed += self._slow_ms
            self.recovered += 1
            yield

    def take(self, topic: str, records: Sequence[Record]) -> int:
        assert not self.busy
        self.offsets[topic] += len(records)
        return len(records)

    def step(self, ended: Mapping[str, bool], as_of_ms: int, publish_every_ms: int) -> None:
        self._clock.elapsed += self._slow_ms
        self.due = max(0, self.due - 1)

    def close(self) -> None:
        """As an outlet, and as a state."""


class OneRecordARead:
    """`Brokers` of so many partitions, each of which gets a record whenever it is read."""

    def __init__(self, partitions: int, clock: SetClock) -> None:
        self.inputs = INPUTS
        self._partitions = frozenset(range(partitions))
        self._clock = clock
        self._positions: dict[InputPartition, int] = {}
        self.polled_at: list[int] = []
        self.chosen = 0

    def assigned(self) -> frozenset[int]:
        self.polled_at.append(self._clock.elapsed)
        return self._partitions

    def outlet(self, partition: int) -> None: ...

    def history(self, partition: int) -> None: ...

    def check_leaders(self, partitions: Collection[int]) -> None: ...

    def begins(self, partitions: Collection[int]) -> dict[InputPartition, int]:
        return {(topic, at): 0 for at in partitions for topic in INPUTS}

    def ends(self, partitions: Collection[int]) -> dict[InputPartition, int]:
        return {(topic, at): 1 << 40 for at in partitions for topic in INPUTS}

    def read_on(self, positions: Mapping[InputPartition, int]) -> None:
        self.chosen += 1
        self._positions = dict(positions)

    def read(self) -> Fetched:
        found = {place: [Record(offset, b"")] for place, offset in self._positions.items()}
        self._positions = {place: offset + 1 for place, offset in self._positions.items()}
        return Fetched(found, {}, {})


def service_of(partitions: list[SlowPartition], brokers: OneRecordARead, clock: SetClock) -> JoinService:
    def make(number: int, outlet: Any, history: Any) -> Any:
        return partitions[number]

    service = JoinService(brokers, make, clock, max_wait_ms=0)  # type: ignore[arg-type]
    service._brokers.outlet = lambda number: partitions[number]  # type: ignore[method-assign, assignment, return-value]
    return service


def test_the_group_hears_of_a_joiner_whose_many_recoveries_are_slow() -> None:
    clock = SetClock(1000, 0)
    partitions = [SlowPartition(clock, 1500, 0) for _ in range(40)]
    brokers = OneRecordARead(len(partitions), clock)
    service = service_of(partitions, brokers, clock)
    seen = Counter[int]()
    while not all(member.positioned for member in service.members.values()) or not service.members:
        service.round()
        if not seen:
            seen = Counter(partition.recovered for partition in partitions)
        recovered = [partition.recovered for partition in partitions if partition.recovered < STEPS]
        assert not recovered or max(recovered) - min(recovered) <= 1, "each has its turn"
        if any(partition.offsets["impressions"] for partition in partitions):
            break
    assert seen == {0: 38, 1: 2}
    pauses = [later - at for at, later in zip(brokers.polled_at, brokers.polled_at[1:], strict=False)]
    assert max(pauses) <= 2 * 1500


def test_a_partition_in_which_much_is_due_does_not_stop_the_others() -> None:
    clock = SetClock(1000, 0)
    busy, *others = partitions = [SlowPartition(clock, 20, due) for due in (ROUNDS, 0, 0)]
    brokers = OneRecordARead(len(partitions), clock)
    service = service_of(partitions, brokers, clock)
    while not busy.recovered or any(member.recovery for member in service.members.values()):
        service.round()
    began, chosen = clock.elapsed, brokers.chosen
    while busy.due:
        assert not all(other.offsets["impressions"] for other in others) or clock.elapsed - began >= 1000
        service.round()
    assert all(other.offsets["impressions"] > 20 for other in others)
    assert not busy.offsets["impressions"]
    assert brokers.chosen == chosen + 1, "to choose anew costs what was fetched ahead"
    service.round()
    assert busy.offsets["impressions"] == 1, "from where it was"
