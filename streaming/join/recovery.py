"""Recovery of one partition's joiner: from what was committed, to the state that belongs to it.

The state on disk is that of some transaction. Where later ones began from it, what they took is read again, and what they sent is
read before: no example goes out twice, and what was refused stays refused, however it would be judged now. A state that is of no
such transaction, or none, is made anew from all that may still matter. Nothing is kept here between two recoveries.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import ge
from typing import NamedTuple

from streaming.clock import Clock
from streaming.join.brokers import History
from streaming.join.commit import Committed, ForgottenError, next_head, taken_on
from streaming.join.core import Joiner
from streaming.join.policy import NOTHING_SENT, InputPolicy, Recovered, Sent, SentAsTold
from streaming.join.spec import JoinSpec
from streaming.join.state import Head, JoinState, ReadFrom
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.records.events import BadRecord, DeadLetter, decode_letter
from streaming.records.examples import published_in

_INPUTS = (IMPRESSIONS, ENGAGEMENTS)
_DETAIL = 1000
"""Characters that are kept of what a letter says."""


class Gap(NamedTuple):
    """Records from ``start`` to before ``stop`` were needed, and are no longer kept."""

    topic: str
    start: int
    stop: int


@dataclass
class Restored:
    """How far a partition's joiner is."""

    joiner: Joiner
    head: Head
    offsets: dict[str, int]
    outputs: dict[str, int]
    """The offsets after what was sent, by topic; where that is not known, from which on it is."""
    busy: bool = False
    """Whether more was due than the last transaction took."""
    unwritten: bool = False
    """Whether the state on disk is an earlier one."""
    gaps: list[Gap] = field(default_factory=list)


class Recovery:
    """What recovering one partition needs; ``living`` makes the policy for records that follow."""

    def __init__(
        self,
        spec: JoinSpec,
        state: JoinState,
        history: History,
        living: Callable[[Sent], InputPolicy],
        clock: Clock,
        partition: int,
        new_id: Callable[[], str],
        requests_at_once: int | None,
    ) -> None:
        self._spec = spec
        self._state = state
        self._history = history
        self._living = living
        self._clock = clock
        self._partition = partition
        self._new_id = new_id
        self._requests_at_once = requests_at_once

    def restore(self, committed: Committed | None) -> Generator[None, None, Restored]:
        """Come to the state that belongs to what was committed; bounded work between two yields.

        Raises:
            ForgottenError: there is no telling what is in `examples` already.
        """
        self._state.reload()
        head = self._state.head
        if head is not None and committed is not None and self._leads_to(head, committed):
            restored = yield from self._go_on(head, committed)
        else:
            restored = yield from self._rebuild(committed)
        taken = () if committed is None else committed.taken_under
        restored.head.taken_under = taken_on(taken, self._spec, restored.offsets[IMPRESSIONS])
        return restored

    def _leads_to(self, head: Head, committed: Committed) -> bool:
        """Whether the state can be made that of the last transaction by what came after it."""
        if head.state_id != committed.state_id or not 0 <= head.sequence <= committed.sequence:
            return False
        if head.sequence == committed.sequence:
            return True
        starts = {**head.offsets, EXAMPLES: head.examples}
        # Dead letters are kept for longer than what they are about, so there is no gap among them.
        needed = dict(zip((*_INPUTS, EXAMPLES), committed.lowest[1:4], strict=True))
        return all(start >= max(needed[topic], self._history.beginning(topic)) for topic, start in starts.items())

    def _go_on(self, head: Head, committed: Committed) -> Generator[None, None, Restored]:
        """From the state of an earlier transaction, or of the last."""
        restored = self._begin(head, head.offsets, {EXAMPLES: head.examples, DEAD_LETTERS: head.dead_letters})
        joiner = restored.joiner
        joiner.newest.update(head.newest)
        if head.sequence < committed.sequence:
            lowest = committed.lowest  # what a rebuild has to read never grows again
            head.cuts = [lowest, *(cut for cut in head.cuts if all(map(ge, cut[1:], lowest[1:])))]
            yield from self._read_again(restored, committed)
            return restored
        joiner.watermark = head.watermark
        restored.busy = head.told < head.watermark
        if self._state.knows_emitted:
            joiner.policy = self._living(SentAsTold(self._state))
        return restored

    def _rebuild(self, committed: Committed | None) -> Generator[None, None, Restored]:
        """From what is kept: what was emitted from `examples`, the rest from the inputs up to what was committed."""
        kept = ReadFrom(-1, *(self._history.beginning(topic) for topic in (*_INPUTS, EXAMPLES, DEAD_LETTERS)))
        if committed is None:
            if any(self._history.read(EXAMPLES, kept.examples, self._history.end(EXAMPLES))):
                raise ForgottenError(
                    "no offsets are committed, but examples holds records, which joining would emit again; "
                    "to begin anew, empty examples or choose another kafka.prefix"
                )
            return self._begin_anew(kept._replace(dead_letters=self._history.end(DEAD_LETTERS)), -1)
        needed = committed.lowest
        restored = self._begin_anew(ReadFrom(-1, *map(max, kept[1:], needed[1:])), committed.watermark)
        reached = (committed.offsets[IMPRESSIONS], committed.offsets[ENGAGEMENTS], kept.examples)
        for topic, start, stop, end in zip((*_INPUTS, EXAMPLES), needed[1:4], kept[1:4], reached, strict=True):
            if start < min(stop, end):
                restored.gaps.append(Gap(topic, start, min(stop, end)))
        yield from self._read_again(restored, committed)
        return restored

    def _begin(self, head: Head, offsets: Mapping[str, int], outputs: dict[str, int]) -> Restored:
        joiner = Joiner(self._spec, self._state, self._living(NOTHING_SENT), self._partition)
        joiner.upgrades.know(head.schemas.values())
        return Restored(joiner, head, dict(offsets), outputs)

    def _begin_anew(self, lowest: ReadFrom, told: int) -> Restored:
        """With an empty state of a new id."""
        known = {} if self._state.head is None else self._state.head.schemas  # which are what they say, in any state
        self._state.discard()
        head = Head(self._new_id(), 0, 0, told, {}, {}, [lowest], lowest.examples)
        head.dead_letters, head.schemas = lowest.dead_letters, known
        offsets = {IMPRESSIONS: lowest.impressions, ENGAGEMENTS: lowest.engagements}
        return self._begin(head, offsets, {EXAMPLES: lowest.examples, DEAD_LETTERS: lowest.dead_letters})

    def _read_again(self, restored: Restored, committed: Committed) -> Generator[None]:
        """Bring the state from where it is to the last transaction; what comes out of that was sent then."""
        state, joiner, history = self._state, restored.joiner, self._history
        ends = {topic: history.end(topic) for topic in (EXAMPLES, DEAD_LETTERS)}
        for records in history.read(EXAMPLES, restored.outputs[EXAMPLES], ends[EXAMPLES]):
            for record in records:
                published = published_in(record.value)
                state.note_emitted(published)
                if published.made_under is not None:
                    joiner.upgrades.know([published.made_under])
            yield
        begin = max(restored.outputs[DEAD_LETTERS], history.beginning(DEAD_LETTERS))
        for records in history.read(DEAD_LETTERS, begin, ends[DEAD_LETTERS]):
            letters = list(_letters_in(records, self._partition))
            state.note_refused([(letter.topic, letter.offset, _outdated(letter)) for letter in letters])
            for letter in filter(_outdated, letters):
                joiner.note_outdated(letter)
            yield
        sent = SentAsTold(state)
        joiner.watermark = committed.watermark
        joiner.policy = Recovered(self._spec, self._clock, sent, committed.newest, committed.taken_under)
        for topic in _INPUTS:
            for records in history.read(topic, restored.offsets[topic], committed.offsets[topic]):
                refused = state.known_refused(topic, [record.offset for record in records])
                left = [record for record in records if refused.get(record.offset) != ""]  # else it is a marker now
                while left:
                    count = joiner.take(topic, left)
                    restored.offsets[topic] = left[count - 1].offset + 1
                    left = left[count:]
                    self._pass_over(restored, committed)
                if records:
                    restored.offsets[topic] = records[-1].offset + 1
                yield
        # What was due by the committed watermark and is not in `examples` was dropped by sampling, but for what another schema
        # waited for longer: that stays pending.
        while not joiner.advance(committed.watermark, self._requests_at_once):
            self._pass_over(restored, committed)
            yield
        joiner.drain()
        joiner.policy = self._living(sent)
        joiner.watermark = committed.due
        restored.busy = committed.watermark < committed.due
        restored.offsets = dict(committed.offsets)
        restored.outputs = {topic: max(end, restored.outputs[topic]) for topic, end in ends.items()}
        restored.head = self._head_of(restored, committed.sequence, committed.watermark)
        restored.unwritten = True

    def _pass_over(self, restored: Restored, committed: Committed) -> None:
        """What comes out while records are read again was sent before."""
        restored.joiner.drain()
        if self._state.is_full:
            restored.head = self._head_of(restored, restored.head.sequence, committed.watermark)
            self._state.write(restored.head)

    def _head_of(self, restored: Restored, sequence: int, told: int) -> Head:
        return next_head(restored.head, self._spec, restored.joiner, restored.offsets, restored.outputs, sequence, told)


def _letters_in(records: Sequence[Record], partition: int) -> Iterator[DeadLetter]:
    """The letters that are about the partition's inputs. What is no letter, no joiner wrote."""
    for record in records:
        try:
            letter = decode_letter(record.value)
        except BadRecord:
            continue
        if letter.topic in _INPUTS and letter.partition == partition and 0 <= letter.offset < 1 << 63:
            yield letter


def _outdated(letter: DeadLetter) -> str:
    """What is said of a request that may have been taken before it became a dead letter; empty of all other records."""
    is_outdated = letter.topic == IMPRESSIONS and letter.reason == "schema"
    return letter.detail[:_DETAIL] or letter.reason if is_outdated else ""
