"""One partition's joiner that survives: state, transactions and recovery around the join core.

Synchronous and without input or output of its own. A batch of input is one transaction of the `Outlet`, whose metadata says
which it was. Every few seconds, after a transaction, the state goes to disk; so after a crash it is that of some transaction, and
what the later ones did to it is known by what they took, which is read again, and by what they put into `examples`. Only a
state that is not what another worker's transactions began from, or none, has to be rebuilt from all that may still matter.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from operator import ge
from typing import NamedTuple, Protocol

from streaming.join.core import Joiner
from streaming.join.state import Cut, Head, JoinState, Outgoing
from streaming.join.watermark import examples_records, watermark_of
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.records.events import encode
from streaming.records.examples import published_in

_INPUTS = (IMPRESSIONS, ENGAGEMENTS)
_CUTS = 64


class Committed(NamedTuple):
    """What the last transaction says: which it was, the inputs' next offsets, and what a rebuild has to read.

    Everything due by ``watermark`` is out; by ``due``, which is ahead of it while more is due than one batch takes, some. No event
    that was taken is later than ``newest``.
    """

    state_id: str
    sequence: int
    watermark: int
    due: int
    offsets: dict[str, int]
    lowest: Cut
    newest: int = 0


class ForgottenError(Exception):
    """The brokers no longer know what was committed, though it was something."""


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

    def close(self) -> None:
        """Let go of it at once; a transaction that is under way is settled by its successor."""


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
        write_every_ms: int = 5000,
        requests_at_once: int = 2000,
    ) -> None:
        """``keep_ms`` is how long after its event a record may matter to the state, in event time.

        The state goes to disk every ``write_every_ms``, or when its memory is full. A batch looks at up to ``requests_at_once``
        that are due.
        """
        self._state = state
        self._make_joiner = make_joiner
        self._outlet = outlet
        self._history = history
        self._new_id = new_id
        self._lateness_ms = lateness_ms
        self._keep_ms = keep_ms
        self._write_every_ms = write_every_ms
        self._requests_at_once = requests_at_once
        self.joiner = make_joiner(state)
        self._head = Head("", 0, 0, -1, {}, {}, [], 0)
        self._offsets: dict[str, int] = {}
        self._taken = 0
        self._examples_end = 0
        self._outbox: list[Outgoing] | None = None
        """What is in a transaction that is not known to be committed."""
        self._recovered = False
        self._written_at_ms = 0
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
        """Come to the state that belongs to what was committed; bounded work between two yields.

        Raises:
            ForgottenError: there is no telling what is in `examples` already; only people can end that.
        """
        committed = self._outlet.open()
        if self._recovered and committed and committed.state_id == self._head.state_id:
            if committed.sequence == self._head.sequence:
                self._outbox = None
                return
            if committed.sequence == self._head.sequence - 1:
                self._send()
                return
        self._recovered = False
        self._outbox = None
        self.gaps.clear()
        self._state.reload()
        self.joiner = self._make_joiner(self._state)
        head = self._state.head
        if head is not None and committed is not None and self._leads_to(head, committed):
            yield from self._go_on(head, committed)
        else:
            yield from self._rebuild(committed)
        self.joiner.counts.clear()
        self._taken = 0
        self._recovered = True

    def discard(self) -> None:
        """The state turned out to be damaged: `recover` makes it anew."""
        self._recovered = False
        self._state.discard()

    def _leads_to(self, head: Head, committed: Committed) -> bool:
        """Whether the state can be made that of the last transaction by what came after it."""
        if head.state_id != committed.state_id or not 0 <= head.sequence <= committed.sequence:
            return False
        if head.sequence == committed.sequence:
            return True
        starts = {**head.offsets, EXAMPLES: head.examples}
        needed = dict(zip((*_INPUTS, EXAMPLES), committed.lowest[1:], strict=True))
        return all(start >= max(needed[topic], self._history.beginning(topic)) for topic, start in starts.items())

    def _go_on(self, head: Head, committed: Committed) -> Generator[None]:
        """From the state of an earlier transaction, or of the last."""
        self._head = head
        self._offsets = dict(head.offsets)
        self._examples_end = head.examples
        self.joiner.newest.update(head.newest)
        if head.sequence < committed.sequence:
            lowest = committed.lowest  # what a rebuild has to read never grows again
            head.cuts = [lowest, *(cut for cut in head.cuts if all(map(ge, cut[1:], lowest[1:])))]
            yield from self._read_again(committed)
            return
        self.joiner.watermark = head.watermark
        self.busy = head.told < head.watermark
        if self._state.knows_emitted:
            self.joiner.known_emitted = self._state.known_emitted

    def _rebuild(self, committed: Committed | None) -> Generator[None]:
        """From what is kept: what was emitted from `examples`, the rest from the inputs up to what was committed."""
        lowest = Cut(-1, *(self._history.beginning(topic) for topic in (*_INPUTS, EXAMPLES)))
        if committed is None:
            if any(self._history.read(EXAMPLES, lowest.examples, self._history.end(EXAMPLES))):
                raise ForgottenError(
                    "no offsets are committed, but examples holds records, which joining would emit again; "
                    "to begin anew, empty examples or choose another kafka.prefix"
                )
            self._state.discard()
            self._begin(lowest, -1)
            return
        self._state.discard()
        needed = committed.lowest
        reached = (committed.offsets[IMPRESSIONS], committed.offsets[ENGAGEMENTS], lowest.examples)
        for topic, start, stop, end in zip((*_INPUTS, EXAMPLES), needed[1:], lowest[1:], reached, strict=True):
            if start < min(stop, end):
                self.gaps.append(Gap(topic, start, min(stop, end)))
        lowest = Cut(-1, *map(max, lowest[1:], needed[1:]))
        self._begin(lowest, committed.watermark)
        yield from self._read_again(committed)

    def _begin(self, lowest: Cut, told: int) -> None:
        self._head = Head(self._new_id(), 0, 0, told, {}, {}, [lowest], lowest.examples)
        self._offsets = {IMPRESSIONS: lowest.impressions, ENGAGEMENTS: lowest.engagements}
        self._examples_end = lowest.examples
        self.busy = False

    def _read_again(self, committed: Committed) -> Generator[None]:
        """Bring the state from where it is to the last transaction; what comes out of that was sent then."""
        state, joiner = self._state, self.joiner
        examples_end = self._history.end(EXAMPLES)
        for records in self._history.read(EXAMPLES, self._examples_end, examples_end):
            for record in records:
                state.note_emitted(published_in(record.value))
            yield
        joiner.watermark = committed.watermark
        joiner.known_emitted = state.known_emitted
        joiner.reads_again = True
        joiner.taken_until = committed.newest
        for topic in _INPUTS:
            for records in self._history.read(topic, self._offsets[topic], committed.offsets[topic]):
                self.take(topic, records)
                self._pass_over(committed)
                yield
        # What was due by the committed watermark and is not in `examples` was dropped by sampling.
        while not joiner.advance(committed.watermark, self._requests_at_once):
            self._pass_over(committed)
            yield
        joiner.drain()
        joiner.reads_again = False
        joiner.watermark = committed.due
        self.busy = committed.watermark < committed.due
        self._offsets = dict(committed.offsets)
        self._examples_end = max(self._examples_end, examples_end)
        self._head = self._head_of(committed.sequence, committed.watermark)
        self._write()

    def _pass_over(self, committed: Committed) -> None:
        """What comes out while records are read again was sent before."""
        self.joiner.drain()
        if self._state.is_full:
            self._head = self._head_of(self._head.sequence, committed.watermark)
            self._state.write(self._head)

    def _write(self) -> None:
        """The state of the last transaction goes to disk."""
        self._state.write(self._head)
        if self.joiner.known_emitted is not None and not self.busy:  # everything that it tells is in the state
            self.joiner.known_emitted = None
            self._state.forget_emitted()

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
        # All that was due by now is out, or was dropped by sampling without a word. Who reads again takes that for granted up to
        # what is told; so what came late goes out first, and no less than this is told.
        complete = self._head.told if self.busy else max(self._head.told, joiner.watermark)
        if self._taken:
            joiner.advance(complete)
        self.busy = not joiner.advance(watermark, self._requests_at_once)
        told = complete if self.busy else joiner.watermark
        output = joiner.drain()
        moved = told - self._head.told
        if not (self._taken or output.examples or output.dead_letters or self.busy) and moved < tell_every_ms:
            return
        examples = examples_records(joiner.format, output.examples, self._head.told, told)
        self._outbox = [Outgoing(EXAMPLES, record) for record in examples]
        self._outbox += [Outgoing(DEAD_LETTERS, encode(letter)) for letter in output.dead_letters]
        self._head = self._head_of(self._head.sequence + 1, told)
        self._taken = 0
        self._send()
        if self._state.is_full or not 0 <= as_of_ms - self._written_at_ms < self._write_every_ms:
            self._head.examples = self._examples_end
            self._write()
            self._written_at_ms = as_of_ms

    def _head_of(self, sequence: int, told: int) -> Head:
        """What the state is now."""
        head, newest, offsets = self._head, self.joiner.newest, self._offsets
        cuts = head.cuts
        while len(cuts) > 1 and cuts[1].newest < told - self._keep_ms:
            cuts = cuts[1:]
        at = max(newest.values())
        if at >= cuts[-1].newest + self._keep_ms // _CUTS and offsets.keys() == newest.keys():
            cuts = [*cuts, Cut(at, offsets[IMPRESSIONS], offsets[ENGAGEMENTS], self._examples_end)]
        if len(cuts) > 4 * _CUTS:  # one input is far ahead; with fewer cuts a rebuild reads a little more
            cuts = [cuts[0], *cuts[1::2]]
        return Head(
            head.state_id, sequence, self.joiner.watermark, told, dict(offsets), dict(newest), cuts, self._examples_end
        )

    def _send(self) -> None:
        """The outbox and the head, as one transaction."""
        assert self._outbox is not None
        head = self._head
        commit = Committed(
            head.state_id,
            head.sequence,
            head.told,
            max(head.watermark, head.told),
            dict(head.offsets),
            head.cuts[0],
            max(head.newest.values()),
        )
        self._examples_end = max(self._examples_end, self._outlet.send(self._outbox, commit))
        self._outbox = None
