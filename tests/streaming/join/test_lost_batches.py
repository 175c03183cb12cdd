"""A batch that no client can read is skipped once all before it is taken, and nothing else is."""

from __future__ import annotations

from collections.abc import Sequence

from streaming.log import IMPRESSIONS, LostRange, Record
from streaming.loop.brokers import Fetched
from tests.clocks import SetClock
from tests.streaming.join.test_turns import OneRecordARead, SlowPartition, service_of

BATCH = LostRange(IMPRESSIONS, 5, 25, "BAD_COMPRESSION")


class OneRecordATake(SlowPartition):
    """A partition that has room for one record; ``seen`` holds what it took and skipped."""

    def __init__(self, clock: SetClock) -> None:
        super().__init__(clock, 1, 0)
        self.seen: list[int | LostRange] = []

    def take(self, topic: str, records: Sequence[Record]) -> int:
        self.seen.append(records[0].offset)
        self.offsets[topic] += 1
        return 1

    def skip(self, gap: LostRange) -> None:
        self.seen.append(gap)
        self.offsets[gap.topic] = gap.stop


class UnreadableBatch(OneRecordARead):
    """Brokers with three records, two marks of transactions, `BATCH`, and more records."""

    def read(self) -> Fetched:
        place = (IMPRESSIONS, 0)
        offset = self._positions[place]
        if offset >= BATCH.stop:
            self._positions[place] += 1
            return Fetched({place: [Record(offset, b"")]}, {}, {})
        records = [Record(at, b"") for at in range(offset, 3)]
        return Fetched({place: records} if records else {}, {}, {}, {place: BATCH})


def test_what_comes_before_an_unreadable_batch_is_taken_first() -> None:
    clock = SetClock(1000, 0)
    partition = OneRecordATake(clock)
    service = service_of([partition], UnreadableBatch(1, clock), clock)
    while len(partition.seen) < 6:
        service.round()
    assert partition.seen == [0, 1, 2, BATCH, 25, 26]
    assert service.members[0].lost == {IMPRESSIONS: 20}
