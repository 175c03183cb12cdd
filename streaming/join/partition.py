"""One partition's joiner that survives crashes: state, transactions and recovery around the join core.

It is synchronous and does no I/O of its own. A batch of input is one transaction of the `Outlet`, whose metadata names it. Every
few seconds, after a transaction, the state is written to disk. So after a crash, the state is that of some transaction. Recovery
re-reads what the later ones took and what they sent. Only without a state, or if another worker's transactions did not begin from
it, the state is rebuilt from all records that may still matter.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from streaming.join.calibration import ServedCalibration
from streaming.join.commit import Committed, commit_of
from streaming.join.core import Joiner
from streaming.join.following import following
from streaming.join.head import Head, Offsets
from streaming.join.output import examples_records
from streaming.join.recovery import Recovery, log_lost
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.log import DEAD_LETTERS, EXAMPLES, INPUTS, INTERACTIONS, TOPICS, LostRange, Record
from streaming.loop.brokers import History, Outlet, OutputRecord
from streaming.records.events import DeadLetter, encode


class JoinPartition:
    """One partition's joiner. Call `recover` first, then `take` for records and `step` to join them."""

    def __init__(
        self,
        spec: JoinSpec,
        state: JoinState,
        outlet: Outlet[Committed],
        history: History,
        partition: int,
        *,
        new_id: Callable[[], str],
        prefix: str = "",
        served: ServedCalibration | None = None,
        refused: Callable[[Sequence[DeadLetter]], None] | None = None,
        write_every_ms: int = 5000,
        requests_at_once: int | None = 2000,
    ) -> None:
        """The state is written every ``write_every_ms``, and when its memory is full. A batch looks at up to ``requests_at_once``
        due requests (None: all). ``new_id`` returns the id of a rebuilt state; ``refused`` is told of the dead letters sent. A
        state of topics with another ``prefix`` is not ours."""
        self._spec = spec
        self.state = state
        self._outlet = outlet
        self._partition = partition
        self._refused = refused or (lambda letters: None)
        self._recovery = Recovery(
            spec, state, outlet, history, served, partition, new_id, prefix, requests_at_once, self._refused
        )
        self._write_every_ms = write_every_ms
        self._requests_at_once = requests_at_once
        self.joiner = Joiner(spec, state, partition, served)
        self._head = Head(state_id="", offsets={}, rebuild_points=[])
        self._offsets: Offsets = {}
        """Of outputs, after the records sent."""
        self._uncommitted = self._uncommitted_bytes = 0
        self._outbox: list[OutputRecord] | None = None
        """The records of a transaction that is not known to be committed."""
        self._restored = False
        self._announced = False
        """Whether `examples` has our schema behind each place from which a rebuild may read: the commit only names schemas."""
        self._written_at_ms = 0
        self.busy = False
        """Whether more is due than one batch takes: call `step` again before `take`."""
        self.gaps: list[LostRange] = []
        """Records that the recovery skipped; the caller reports them and clears the list."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """The next offset to take of each input."""
        return {topic: offset for topic, offset in self._offsets.items() if topic in INPUTS}

    @property
    def published(self) -> int:
        """The watermark (ms) up to which everything due is emitted or dropped; it goes back where late records need several
        transactions."""
        return self._head.published

    @property
    def pending(self) -> int:
        """Requests in the state."""
        return len(self.state)

    @property
    def uncommitted(self) -> int:
        """Records taken since the last step."""
        return self._uncommitted

    @property
    def max_ahead_ms(self) -> int:
        """By how much producers' clocks may be ahead of brokers', see `JoinSettings`."""
        return self._spec.settings.max_ahead

    @property
    def must_step(self) -> bool:
        """Whether there is enough for a transaction: call `step` before `take`."""
        return (
            self.joiner.output_is_full
            or self.state.memory_is_full
            or self._uncommitted_bytes >= self._spec.limits.taken_bytes
        )

    def recover(self) -> Generator[None]:
        """Restore the state that belongs to the last commit; bounded work between two yields.

        Raises:
            UnknownPlaceError: it is unknown what is in `examples` already; only a person can resolve that.
        """
        committed = self._outlet.open()
        if self._restored and committed and committed.state_id == self._head.state_id:
            missing = self._head.sequence - committed.sequence
            if missing == 0:
                self._outbox = None
                return
            if missing == 1 and self._outbox is not None:
                self._send()
                return
            log_lost(self._partition, missing - (self._outbox is not None))
        self._restored = False
        self._outbox = None
        self.gaps.clear()
        restored = yield from self._recovery.restore(committed)
        self.joiner, self._head, self._offsets = restored.joiner, restored.head, restored.offsets
        self.busy = restored.busy
        self.gaps += restored.gaps
        if restored.unwritten:
            self._write()
        self._uncommitted = self._uncommitted_bytes = 0
        self._announced = False
        self._restored = True

    def is_damage(self, error: Exception) -> bool:
        """Whether an error means that the state is damaged and can be rebuilt."""
        return self.state.is_damage(error)

    def close(self) -> None:
        """Close the state."""
        self.state.close()

    def discard(self) -> None:
        """Discard a damaged state; `recover` rebuilds it."""
        self._restored = False
        self.state.discard()

    def _write(self) -> None:
        """Write the state of the last transaction to disk."""
        self.state.write(self._head)
        self.state.sent.forget()  # the entries have it since the recovery

    def take(self, topic: str, records: Sequence[Record]) -> int:
        """Join records of an input, in order, until their output fills a transaction. Return how many were taken."""
        count = self.joiner.take(topic, records)
        if count:
            self._offsets[topic] = records[count - 1].offset + 1
            self._uncommitted += count
            self._uncommitted_bytes += sum(len(record.value) for record in records[:count])
        return count

    def skip(self, gap: LostRange) -> None:
        """Skip records of an input, up to the end of a gap; those before it were taken."""
        self._offsets[gap.topic] = gap.stop

    def step(self, ended: Mapping[str, bool], as_of_ms: int, publish_every_ms: int) -> bool:
        """Emit what is due, and commit what was taken. Return whether there was anything to commit.

        ``ended`` says which inputs were read to their end as of ``as_of_ms``. Without anything else to commit, the watermark is
        published once it has moved by ``publish_every_ms``.
        """
        joiner = self.joiner
        watermark = joiner.reached.watermark(ended, as_of_ms)
        # Everything due by the published watermark is emitted or dropped. A rebuild relies on that, so late arrivals go out before
        # it moves.
        complete = self._head.published if self.busy else max(self._head.published, joiner.watermark)
        if self._uncommitted and not joiner.advance(complete):
            self.busy = True  # late arrivals exceed a transaction: publish no later watermark than theirs
            published = min(complete, joiner.next_due())
        else:
            self.busy = not joiner.advance(watermark, self._requests_at_once)
            published = complete if self.busy else joiner.watermark
        output = joiner.drain()
        moved = published - self._head.published
        news = self._uncommitted or output.examples or output.dead_letters or self.busy or self.state.must_write
        if not news and moved < publish_every_ms:
            return False
        before = self._head.published
        points = self._head.rebuild_points
        self._head = self._head_of(self._head.sequence + 1, published)
        announce = not self._announced or self._head.rebuild_points[-1] != points[-1]
        examples = examples_records(joiner.format, output.examples, before, max(before, published), announce)
        self._announced = True
        self._outbox = [OutputRecord(EXAMPLES, record) for record in examples]
        self._outbox += [OutputRecord(DEAD_LETTERS, encode(letter)) for letter in output.dead_letters]
        self._outbox += [OutputRecord(INTERACTIONS, value, to) for to, value in output.interactions]
        self._uncommitted = self._uncommitted_bytes = 0
        self._send()
        if output.dead_letters:
            self._refused(output.dead_letters)
        # While it is busy, nothing is taken, and what is emitted need not be written.
        must_write = self.state.memory_is_full if self.busy else self.state.must_write
        if must_write or not 0 <= as_of_ms - self._written_at_ms < self._write_every_ms:
            self._head.offsets = dict(self._offsets)
            self._write()
            self._written_at_ms = as_of_ms
        return True

    def _head_of(self, sequence: int, published: int) -> Head:
        """Return the head of the current state."""
        return following(self._head, self._spec, self.joiner, self._offsets, sequence, published)

    def _send(self) -> None:
        """Send the outbox and the head as one transaction."""
        assert self._outbox is not None
        ends = self._outlet.send(self._outbox, commit_of(self._head))
        self._offsets |= {topic: end for topic, end in ends.items() if topic in TOPICS}
        self._outbox = None
