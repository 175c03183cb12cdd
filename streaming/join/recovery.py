"""Recovery of one partition's joiner: from what was committed, to the state that belongs to it.

The state on disk is that of some transaction. If later ones began from it, recovery first reads what they sent, and then re-reads
what they took: no example is emitted twice, and refused records stay refused, however they would be judged now. Otherwise it
rebuilds the state from all records that may still matter. It keeps nothing between two recoveries.

All that it sends are dead letters of requests that were accepted once and that today's config cannot read. With them it commits
again what was committed, so a recovery after one that was cut off passes over those that were sent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

from streaming.join.calibration import ServedCalibration
from streaming.join.commit import Committed
from streaming.join.configs import ConfigSince, followed_by
from streaming.join.core import Joiner
from streaming.join.following import following
from streaming.join.head import Head, Offsets, RebuildPoint
from streaming.join.noted import note_examples, note_letter
from streaming.join.policy import Living, Rereading
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, INPUTS, TOPICS, LostRange, Record
from streaming.loop.brokers import History, Outlet, OutputRecord, UnknownPlaceError
from streaming.records.events import BadRecord, DeadLetter, decode_letter, encode
from streaming.records.examples import published_in

_log = logging.getLogger("minutely.join")


@dataclass
class Restored:
    """A restored joiner and how far it is."""

    joiner: Joiner
    head: Head
    offsets: Offsets
    """Of outputs, after the records sent; if that is unknown, the first offset where they may be."""
    busy: bool = False
    """Whether more was due than the last transaction took."""
    unwritten: bool = False
    """Whether the state on disk is older."""
    gaps: list[LostRange] = field(default_factory=list)


def log_lost(partition: int, transactions: int) -> None:
    """Say how many of our last transactions are not there any more, if any."""
    if transactions > 0:
        _log.error(
            "partition %d: brokers have lost %d transactions that they had acknowledged; joining again what these took",
            partition,
            transactions,
        )


class Recovery:
    """Recovers one partition."""

    def __init__(
        self,
        spec: JoinSpec,
        state: JoinState,
        outlet: Outlet[Committed],
        history: History,
        served: ServedCalibration | None,
        partition: int,
        new_id: Callable[[], str],
        prefix: str,
        requests_at_once: int | None,
        tell: Callable[[Sequence[DeadLetter]], None],
    ) -> None:
        """``new_id`` returns the id of a rebuilt state; ``tell`` is told of the dead letters sent. States of topics with another
        ``prefix`` say nothing of ours."""
        self._spec = spec
        self._state = state
        self._outlet = outlet
        self._history = history
        self._served = served
        self._partition = partition
        self._new_id = new_id
        self._prefix = prefix
        self._requests_at_once = requests_at_once
        self._tell = tell
        self._refused = Counter[str]()
        """The dead letters sent since the last recovery that came to its end, by reason."""

    def restore(self, committed: Committed | None) -> Generator[None, None, Restored]:
        """Restore the state that belongs to the last commit; bounded work between two yields.

        Raises:
            UnknownPlaceError: it is unknown what is in `examples` already.
        """
        self._state.reload()
        head = self._own_head
        if head is not None and committed is not None and head.state_id == committed.state_id:
            log_lost(self._partition, head.sequence - committed.sequence)
        if head is not None and committed is not None and self._leads_to(head, committed):
            restored = yield from self._go_on(head, committed)
        else:
            restored = yield from self._rebuild(committed)
        head, joiner = restored.head, restored.joiner
        if committed is None:
            at = restored.offsets[IMPRESSIONS]
            head.configs = followed_by((), self._spec, at, head.published, joiner.watermark, 0)
        else:
            head.configs = self._configs(committed, joiner)
        joiner.follow(head.configs)
        return restored

    @property
    def _own_head(self) -> Head | None:
        """The head of the state on disk; None where there is none, or it is of other topics, which stays until a rebuild."""
        head = self._state.head
        return head if head is not None and head.prefix == self._prefix else None

    def _configs(self, committed: Committed, joiner: Joiner) -> list[ConfigSince]:
        """Return what was in force, and now is: a state that is written on the way is ours alone."""
        return followed_by(
            committed.configs,
            self._spec,
            committed.offsets[IMPRESSIONS],
            committed.published,
            committed.decided_until,
            joiner.reached.inputs[ENGAGEMENTS],
        )

    def _leads_to(self, head: Head, committed: Committed) -> bool:
        """Whether re-reading what came after a state leads to that of the last transaction."""
        if head.state_id != committed.state_id or not 0 <= head.sequence <= committed.sequence or not head.is_whole:
            return False
        if head.configs[-1] not in committed.configs:
            return False  # a config recovered it in its own way, and committed nothing that says so
        if head.sequence == committed.sequence:
            return True
        # Dead letters are kept for longer than the records they are about, so they have no gap.
        return all(
            head.offsets[topic] >= max(committed.lowest[topic], self._history.beginning(topic))
            for topic in (*INPUTS, EXAMPLES)
        )

    def _go_on(self, head: Head, committed: Committed) -> Generator[None, None, Restored]:
        """Restore from the state of the last transaction or of an earlier one."""
        restored = self._begin(head, head.offsets)
        joiner = restored.joiner
        joiner.reached.resume(head.reached, head.newest)
        if head.sequence < committed.sequence:
            lowest = committed.lowest  # a rebuild never has to read more again
            points = (each for each in head.rebuild_points if all(each.offsets[at] >= lowest[at] for at in TOPICS))
            head.rebuild_points = [RebuildPoint(-1, lowest), *points]
            head.configs = self._configs(committed, joiner)
            yield from self._read_again(restored, committed)
            return restored
        joiner.resume(Living(self._spec), head.decided_until)
        restored.busy = head.published < head.decided_until
        return restored

    def _rebuild(self, committed: Committed | None) -> Generator[None, None, Restored]:
        """Rebuild: read what was emitted from `examples`, the rest from the inputs up to the committed offsets."""
        kept = {topic: self._history.beginning(topic) for topic in TOPICS}
        if committed is None:
            self._check_new(kept[EXAMPLES])
            return self._begin_anew(kept | {DEAD_LETTERS: self._history.end(DEAD_LETTERS)}, -1)
        needed = committed.lowest
        restored = self._begin_anew({at: max(kept[at], needed[at]) for at in TOPICS}, committed.published)
        restored.head.configs = self._configs(committed, restored.joiner)
        for topic in (*INPUTS, EXAMPLES):
            stop = min(kept[topic], committed.offsets.get(topic, kept[topic]))
            if needed[topic] < stop:
                restored.gaps.append(LostRange(topic, needed[topic], stop))
        yield from self._read_again(restored, committed)
        return restored

    def _check_new(self, examples_begin: int) -> None:
        """Refuse to begin where somebody joined before, since all that the inputs hold would be emitted again."""
        if any(self._history.read(EXAMPLES, examples_begin, self._history.end(EXAMPLES))):
            raise UnknownPlaceError(
                "no offsets are committed, but examples holds records, which joining would emit again; "
                "to start over, empty examples and delete the joiners' folders, or choose another kafka.prefix"
            )
        if self._own_head is not None:
            raise UnknownPlaceError(
                "no offsets are committed, but this joiner's folder is of one that committed some: brokers forgot them "
                "(offsets.retention.minutes), and joining would emit again what the inputs hold; "
                "to start over, delete the folder too, or choose another kafka.prefix"
            )
        if examples_begin:
            _log.warning(
                "partition %d: examples is empty, held records up to offset %d once, and no offsets are committed: joining all "
                "that the inputs hold; what was joined before comes a second time",
                self._partition,
                examples_begin,
            )

    def _begin(self, head: Head, offsets: Offsets) -> Restored:
        joiner = Joiner(self._spec, self._state, self._partition, self._served)
        joiner.upgrades.know(head.schemas.values())
        return Restored(joiner, head, dict(offsets))

    def _begin_anew(self, lowest: Offsets, published: int) -> Restored:
        """Start with an empty state and a new id."""
        head, own = self._state.head, self._own_head
        if head is not None and own is None:
            _log.warning(
                "partition %d: its folder holds a state of topics with kafka.prefix %r, and ours is %r: discarding that state",
                self._partition,
                head.prefix,
                self._prefix,
            )
        known = {} if own is None else own.schemas  # schemas stay valid in any state
        self._state.discard()
        point = RebuildPoint(-1, lowest)
        head = Head(
            state_id=self._new_id(),
            published=published,
            offsets=dict(lowest),
            rebuild_points=[point],
            schemas=known,
            prefix=self._prefix,
        )
        return self._begin(head, lowest)

    def _read_again(self, restored: Restored, committed: Committed) -> Generator[None]:
        """Bring the state up to the last transaction. The output on the way was sent before."""
        state, joiner, history = self._state, restored.joiner, self._history
        ends = {topic: history.end(topic) for topic in (EXAMPLES, DEAD_LETTERS)}
        for records in self._kept(restored, EXAMPLES, restored.offsets[EXAMPLES], ends[EXAMPLES]):
            for record in records:
                published = published_in(record.value)
                state.sent.note_emitted(published)
                note_examples(state, published)
                if published.made_under is not None:
                    joiner.upgrades.know([published.made_under])
            self._pass_over(restored, committed)
            yield
        begin = max(restored.offsets[DEAD_LETTERS], history.beginning(DEAD_LETTERS))
        for records in self._kept(restored, DEAD_LETTERS, begin, ends[DEAD_LETTERS]):
            letters = list(_letters_in(records, self._partition))
            state.sent.note_letters(letters)
            for letter in letters:
                note_letter(state, letter)
            self._pass_over(restored, committed)
            yield
        joiner.resume(Rereading(self._spec, state, committed.configs), committed.published)
        for topic in INPUTS:
            for records in self._kept(restored, topic, restored.offsets[topic], committed.offsets[topic]):
                known = state.sent.letters(topic, [record.offset for record in records])
                refused = {offset for offset, outdated in known.items() if outdated is None}
                left = [record for record in records if record.offset not in refused]
                while left:
                    count = joiner.take(topic, left)
                    restored.offsets[topic] = left[count - 1].offset + 1
                    left = left[count:]
                    self._pass_over(restored, committed)
                if records:
                    restored.offsets[topic] = records[-1].offset + 1
                yield
        # Impressions that were due by the committed watermark and are not in `examples` were dropped by sampling. Those that stay
        # open longer under their own schema stay pending.
        while not joiner.advance(committed.published, self._requests_at_once):
            self._pass_over(restored, committed)
            yield
        self._pass_over(restored, committed)
        joiner.resume(Living(self._spec), committed.decided_until, self._refused)
        self._refused.clear()
        restored.busy = committed.published < committed.decided_until
        restored.offsets = committed.offsets | ends
        restored.head = self._head_of(restored, committed.sequence, committed.published)
        restored.unwritten = True

    def _kept(self, restored: Restored, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        """Yield the records that can be read, and note the others."""
        for records in self._history.read(topic, start, stop):
            if isinstance(records, LostRange):
                restored.gaps.append(records)
            else:
                yield records

    def _pass_over(self, restored: Restored, committed: Committed) -> None:
        """Discard output, which was sent before; write the state if it is full.

        Engagements are refused where their requests are before what is re-read. A request that was refused before is passed over,
        so one that is refused now was accepted, and its letter is news.
        """
        letters = [letter for letter in restored.joiner.drain().dead_letters if letter.topic == IMPRESSIONS]
        if letters:
            for letter in letters:
                letter.accepted = True
            self._outlet.send([OutputRecord(DEAD_LETTERS, encode(letter)) for letter in letters], committed)
            self._refused.update(letter.reason for letter in letters)
            self._tell(letters)
        if self._state.must_write:
            restored.head = self._head_of(restored, restored.head.sequence, committed.published)
            self._state.write(restored.head)

    def _head_of(self, restored: Restored, sequence: int, published: int) -> Head:
        return following(restored.head, self._spec, restored.joiner, restored.offsets, sequence, published)


def _letters_in(records: Sequence[Record], partition: int) -> Iterator[DeadLetter]:
    """Yield the letters about the partition's inputs. Other records were not written by a joiner."""
    for record in records:
        try:
            letter = decode_letter(record.value)
        except BadRecord:
            continue
        if letter.topic in INPUTS and letter.partition == partition and 0 <= letter.offset < 1 << 63:
            yield letter
