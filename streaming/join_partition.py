"""One partition's joiner that survives: state, transactions and recovery around the join core.

Synchronous and without input or output of its own. A batch of input is one write batch of `JoinState`, then one transaction
of the `Outlet`; the outlet's committed metadata says which write batch was the last, so after any crash exactly one of
these holds: the state is that one; it is one ahead, and its outbox is sent again; it is something else, and is rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from streaming.events import encode
from streaming.examples import example_revisions
from streaming.join_state import Cut, Head, JoinState, Outgoing
from streaming.join_worker import examples_records, watermark_of
from streaming.joiner import Joiner
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record

_INPUTS = (IMPRESSIONS, ENGAGEMENTS)
_REQUESTS_AT_ONCE = 2000
_CUTS = 64


class Committed(NamedTuple):
    """What the last transaction says: which write batch it was, the inputs' next offsets, and what a rebuild has to read.

    Everything due by ``watermark`` is out; by ``due``, which is ahead of it while more is due than one batch takes, some.
    """

    state_id: str
    sequence: int
    watermark: int
    due: int
    offsets: dict[str, int]
    lowest: Cut


class Gap(NamedTuple):
    """Records from ``start`` to before ``stop`` were needed, and are no longer kept."""

    topic: str
    start: int
    stop: int


class Outlet(Protocol):
    """Where a partition's transactions go."""

    def open(self) -> Committed | None:
        """Fence and settle a predecessor, then read what it committed; None where there is nothing yet."""

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> int:
        """One transaction. The offset after its last record in `examples`, 0 where it holds none."""


class History(Protocol):
    """Records of the partition that are still kept."""

    def beginning(self, topic: str) -> int:
        """The first offset that is kept."""

    def end(self, topic: str) -> int:
        """The offset after the last committed record."""

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        """The records from ``start`` to before ``stop``, in bounded lists; an empty list where there is nothing yet."""


class JoinPartition:
    """Recovers by `recover`, then takes records by `take` and joins by `step`."""

    def __init__(
        self,
        state: JoinState,
        make_joiner: Callable[[JoinState], Joiner],
        outlet: Outlet,
        history: History,
        new_id: Callable[[], str],
        lateness_ms: int,
        keep_ms: int,
    ) -> None:
        """``keep_ms`` is how long after its event a record may matter to the state, in event time."""
        self._state = state
        self._make_joiner = make_joiner
        self._outlet = outlet
        self._history = history
        self._new_id = new_id
        self._lateness_ms = lateness_ms
        self._keep_ms = keep_ms
        self.joiner = make_joiner(state)
        self._head = Head("", 0, 0, -1, {}, {}, [])
        self._offsets: dict[str, int] = {}
        self._taken = 0
        self._examples_end = 0
        self.busy = False
        """Whether more is due than one batch takes: `step` again before anything is taken."""
        self.gaps: list[Gap] = []
        """What was passed over; whoever tells people of it takes it out."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """The next offset to take of each input."""
        return self._offsets

    @property
    def told(self) -> int:
        """The watermark (ms) that `examples` was told."""
        return self._head.told

    @property
    def pending(self) -> int:
        """Requests in the state."""
        return len(self._state)

    @property
    def taken(self) -> int:
        """Records taken since the last step."""
        return self._taken

    def recover(self) -> Generator[None]:
        """Come to the state that belongs to what was committed; bounded work between two yields."""
        committed = self._outlet.open()
        head = self._state.head
        ahead = head.sequence - committed.sequence if head and committed and head.state_id == committed.state_id else -1
        if head is not None and ahead in (0, 1):
            self._resume(head)
            if ahead == 1:
                self._send(self._state.outbox)
            self.busy = head.told < head.watermark
            return
        yield from self._rebuild(committed)

    def _resume(self, head: Head) -> None:
        self._head = head
        self._offsets = dict(head.offsets)
        self.joiner.watermark = head.watermark
        self.joiner.newest.update(head.newest)
        self._examples_end = head.cuts[-1].examples

    def _rebuild(self, committed: Committed | None) -> Generator[None]:
        """From what is kept: what was emitted from `examples`, the rest from the inputs up to what was committed."""
        state = self._state
        state.discard()
        self.joiner = joiner = self._make_joiner(state)
        lowest = Cut(-1, *(self._history.beginning(topic) for topic in (*_INPUTS, EXAMPLES)))
        if committed is None:
            self._begin(lowest, 0, -1)
            self._offsets = {IMPRESSIONS: lowest.impressions, ENGAGEMENTS: lowest.engagements}
            return
        needed = committed.lowest
        reached = (committed.offsets[IMPRESSIONS], committed.offsets[ENGAGEMENTS], lowest.examples)
        for topic, start, stop, end in zip((*_INPUTS, EXAMPLES), needed[1:], lowest[1:], reached, strict=True):
            if start < min(stop, end):
                self.gaps.append(Gap(topic, start, min(stop, end)))
        lowest = Cut(-1, *map(max, lowest[1:], needed[1:]))
        self._begin(lowest, committed.watermark, committed.watermark)
        for records in self._history.read(EXAMPLES, lowest.examples, self._history.end(EXAMPLES)):
            for record in records:
                state.note_emitted(example_revisions(record.value))
            yield
        joiner.watermark = committed.watermark
        joiner.known_emitted = state.known_emitted
        starts = {IMPRESSIONS: lowest.impressions, ENGAGEMENTS: lowest.engagements}
        for topic in _INPUTS:
            for records in self._history.read(topic, starts[topic], committed.offsets[topic]):
                self.take(topic, records)
                self._write_unsent()
                yield
        # What was due by the committed watermark and is not in `examples` was dropped by sampling.
        while not joiner.advance(committed.watermark, _REQUESTS_AT_ONCE):
            self._write_unsent()
            yield
        joiner.known_emitted = None
        state.forget_emitted()
        joiner.watermark = committed.due
        self.busy = committed.watermark < committed.due
        self._offsets = dict(committed.offsets)
        self._write_unsent()
        joiner.counts.clear()
        self._taken = 0

    def _begin(self, lowest: Cut, watermark: int, told: int) -> None:
        self._head = Head(self._new_id(), 0, watermark, told, {}, {}, [lowest])
        self._offsets = {}
        self._examples_end = lowest.examples

    def _write_unsent(self) -> None:
        """What comes out while state is rebuilt was sent before."""
        self.joiner.drain()
        self._state.write(self._next_head(self._head.told), [])

    def take(self, topic: str, records: Sequence[Record]) -> None:
        """Join a bounded number of records of an input, in order."""
        take = self.joiner.add_request if topic == IMPRESSIONS else self.joiner.add_engagement
        for record in records:
            take(record.offset, record.value)
        if records:
            self._offsets[topic] = records[-1].offset + 1
            self._taken += len(records)

    def skip(self, topic: str, offset: int) -> None:
        """Records of an input before ``offset`` are gone, untaken."""
        self.gaps.append(Gap(topic, self._offsets[topic], offset))
        self._offsets[topic] = offset

    def step(self, ended: Mapping[str, bool], as_of_ms: int, tell_every_ms: int) -> None:
        """Emit what is due, and commit what was taken.

        ``ended`` says which inputs were read to their end as of ``as_of_ms``. Where nothing else is to be said, the watermark is
        told when it moved by ``tell_every_ms``.
        """
        joiner = self.joiner
        watermark = watermark_of(joiner.newest, ended, as_of_ms, self._lateness_ms)
        if (
            self._taken
        ):  # what came late may be due by the watermark that was told, by which a rebuild takes all to be out
            joiner.advance(self._head.told)
        self.busy = not joiner.advance(watermark, _REQUESTS_AT_ONCE)
        told = self._head.told if self.busy else joiner.watermark
        output = joiner.drain()
        moved = told - self._head.told
        if not (self._taken or output.examples or output.dead_letters or self.busy) and moved < tell_every_ms:
            return
        examples = examples_records(joiner.format, output.examples, self._head.told, told)
        outbox = [Outgoing(EXAMPLES, record) for record in examples]
        outbox += [Outgoing(DEAD_LETTERS, encode(letter)) for letter in output.dead_letters]
        self._state.write(self._next_head(told), outbox)
        self._taken = 0
        self._send(outbox)

    def _next_head(self, told: int) -> Head:
        """The head of the next write batch."""
        head, newest, offsets = self._head, self.joiner.newest, self._offsets
        cuts = head.cuts
        while len(cuts) > 1 and cuts[1].newest < told - self._keep_ms:
            cuts = cuts[1:]
        at = max(newest.values())
        if at >= cuts[-1].newest + self._keep_ms // _CUTS and offsets.keys() == newest.keys():
            cuts = [*cuts, Cut(at, offsets[IMPRESSIONS], offsets[ENGAGEMENTS], self._examples_end)]
        if len(cuts) > 4 * _CUTS:  # one input is far ahead; with fewer cuts a rebuild reads a little more
            cuts = [cuts[0], *cuts[1::2]]
        self._head = Head(
            head.state_id, head.sequence + 1, self.joiner.watermark, told, dict(offsets), dict(newest), cuts
        )
        return self._head

    def _send(self, outbox: Sequence[Outgoing]) -> None:
        head = self._head
        offsets = dict(head.offsets)
        commit = Committed(
            head.state_id, head.sequence, head.told, max(head.watermark, head.told), offsets, head.cuts[0]
        )
        self._examples_end = max(self._examples_end, self._outlet.send(outbox, commit))
