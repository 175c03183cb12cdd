"""`minutely dead-letters --again`: what a fix has mended goes back to where it came from, once.

How far each reason was sent again is committed with the records, in one transaction: whatever ends it, and however often it is
started, nothing is sent twice. Requests go before the engagements of their partition, so that these find them. Brokers
forget what was committed long ago; then letters that may have been sent before are sent only if someone says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from basis.decoding import refusing
from basis.problems import Problem, Problems
from basis.settings import format_duration
from minutely.config import Pipeline
from minutely.ends import stop_on_signal
from minutely.services.dead_letters import letters_of
from minutely.services.service import wait_for_topics
from streaming.clock import WallClock
from streaming.kafka.history import KafkaHistory
from streaming.kafka.outlet import Transactions
from streaming.log import DEAD_LETTERS, INPUTS, BrokerError
from streaming.loop.brokers import OutputRecord
from streaming.records.events import DeadLetter
from streaming.records.reasons import MENDABLE
from streaming.retry import Retry
from streaming.waiting import tolerating

_log = logging.getLogger("minutely.dead-letters")
_GROUP = "minutely-again"
_LETTERS_AT_ONCE = 500
_BYTES_AT_ONCE = 8 << 20
_PLACE_KEPT_MS = 7 * 86_400_000
"""For how long brokers remember what was committed, unless `offsets.retention.minutes` says otherwise."""
_TAKEN_OVER = frozenset({"FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH", "INVALID_PRODUCER_ID_MAPPING"})


class Place(msgspec.Struct, frozen=True):
    """What is committed of a partition: by reason and topic, the first offset of `dead-letters` that was not sent again, since
    brokers knew nothing of it at ``begun_at`` (ms)."""

    version: int
    sent: dict[str, int]
    begun_at: int = 0


class SentAgain(NamedTuple):
    """What was sent, by reason; what was passed over because no fix mends it, or because the letter has only a part of it; and what
    was because the letter names a partition that is not there."""

    sent: Counter[str]
    left: Counter[str]
    astray: Counter[str]


_VERSION = 1
_decoder = msgspec.json.Decoder(Place)
_Result = TypeVar("_Result")


def send_again(pipeline: Pipeline, reason: str | None, since_ms: int | None = None) -> SentAgain:
    """Send what was refused for ``reason``, or else for one that a fix can mend, and was not sent again before. The joiner passes
    over what it knows already. ``since_ms``: only what was refused in that time up to now.

    Raises:
        Problems: the same command, started meanwhile elsewhere, took over; or, without ``since_ms``, brokers may have forgotten
            that letters were sent before. Then nothing is sent.
    """
    found, now_ms = SentAgain(Counter(), Counter(), Counter()), WallClock().now_ms()
    reasons = MENDABLE if reason is None else {reason}
    with stop_on_signal() as stop:
        wait_for_topics(pipeline, _log, stop)
        numbers = range(pipeline.kafka.partitions)
        partitions = [_Partition(pipeline, number, reasons, found, now_ms) for number in numbers]
        if since_ms is None:
            doubtful = sum(each.doubtful(stop) for each in partitions)
            if doubtful:
                raise Problems([_doubt(pipeline, doubtful)])
        for each in partitions:
            each.send(0 if since_ms is None else now_ms - since_ms, stop)
        if stop():
            raise KeyboardInterrupt
    return found


def _doubt(pipeline: Pipeline, count: int) -> Problem:
    kept = format_duration(_PLACE_KEPT_MS)
    return Problem(
        pipeline.name,
        "--again",
        f"{count} letters are older than {kept}, and brokers do not know whether they were sent again before: they forget that "
        f"after {kept} (offsets.retention.minutes)",
        f"allowed: --since {kept} leaves them out; a longer one sends them, though maybe again",
    )


class _Partition:
    """One partition of `dead-letters`."""

    def __init__(
        self,
        pipeline: Pipeline,
        partition: int,
        reasons: frozenset[str] | set[str],
        found: SentAgain,
        now_ms: int,
    ) -> None:
        self._pipeline = pipeline
        self._partition = partition
        self._reasons = reasons
        self._found = found
        self._history = KafkaHistory(pipeline.kafka, partition)
        self._transactions = Transactions(pipeline.kafka, _GROUP, partition, [DEAD_LETTERS])
        self._now_ms = self._begun_at = now_ms
        self._place: Mapping[str, int] = {}
        self._counted = Counter[str]()
        """By topic, the offset up to which what is left was counted."""
        self._unsure: tuple[Mapping[str, int], Counter[str]] = {}, Counter()
        """The place and the letters of a transaction that is not known to be committed."""

    def doubtful(self, stop: Callable[[], bool]) -> int:
        """Return how many letters would be sent of which brokers may have forgotten that they were sent before."""
        return self._with_brokers(lambda end: self._doubtful(end, stop), stop) or 0

    def send(self, since_ms: int, stop: Callable[[], bool]) -> None:
        """Send what there is by now, refused at that time or later."""
        self._with_brokers(lambda end: self._send_both(end, since_ms, stop), stop)

    def _with_brokers(self, do: Callable[[int], _Result], stop: Callable[[], bool]) -> _Result | None:
        """Open the transactions, and do something with what there is by now; while brokers are away it waits, until ``stop``."""
        brokers = Retry(_log, "brokers", WallClock(), self._pipeline.kafka.asked)
        end: int | None = None
        while not stop():
            with tolerating(brokers):
                end = self._history.end(DEAD_LETTERS) if end is None else end
                self._open()
                done = do(end)
                self._transactions.close()
                return done
        return None

    def _doubtful(self, end: int, stop: Callable[[], bool]) -> int:
        unknown = {_key(reason, topic) for reason in self._reasons for topic in INPUTS} - self._place.keys()
        before_ms = self._begun_at - _PLACE_KEPT_MS
        if not unknown or before_ms <= 0:
            return 0
        return sum(
            _key(letter.reason, letter.topic) in unknown and self._is_sent(letter) and record.appended_at < before_ms
            for record, letter in letters_of(self._history, self._partition, 0, end, stop)
        )

    def _send_both(self, end: int, since_ms: int, stop: Callable[[], bool]) -> None:
        for topic in INPUTS:
            self._send_all(topic, end, since_ms, stop)

    def _open(self) -> None:
        ((_, metadata),) = self._transactions.open()
        with refusing(self._foreign):
            place = _decoder.decode(metadata) if metadata else Place(_VERSION, {}, self._now_ms)
            if place.version != _VERSION:
                raise ValueError(f"version {place.version}; allowed: {_VERSION}")
        self._place, self._begun_at = place.sent, place.begun_at
        wanted, letters = self._unsure
        if letters and self._place == wanted:
            self._found.sent.update(letters)
        self._unsure = {}, Counter()

    def _foreign(self, why: str) -> Problems:
        allowed = "allowed: offsets that this command commits; delete the group to begin at the oldest letter"
        return Problems([Problem("kafka", f"group {self._transactions.group}", why, allowed)])

    def _send_all(self, topic: str, end: int, since_ms: int, stop: Callable[[], bool]) -> None:
        batch: list[DeadLetter] = []
        size, start = 0, min(self._place.get(_key(reason, topic), 0) for reason in self._reasons)
        for record, letter in letters_of(self._history, self._partition, start, end, stop):
            offset, is_sent = record.offset, self._is_sent(letter)
            if letter.topic == topic and not is_sent and offset >= self._counted[topic]:
                passed_over = self._found.left if self._is_there(letter) else self._found.astray
                passed_over[letter.reason] += 1
                self._counted[topic] = offset + 1
            if letter.topic != topic or offset < self._place.get(_key(letter.reason, topic), 0):
                continue
            if is_sent and record.appended_at >= since_ms:
                batch.append(letter)
                size += len(letter.payload)
                if len(batch) == _LETTERS_AT_ONCE or size >= _BYTES_AT_ONCE:
                    self._send(topic, batch, offset + 1)
                    batch, size = [], 0
        if not stop():
            self._send(topic, batch, end)

    def _is_sent(self, letter: DeadLetter) -> bool:
        return letter.reason in self._reasons and not letter.cut_from and self._is_there(letter)

    def _is_there(self, letter: DeadLetter) -> bool:
        return 0 <= letter.partition < self._pipeline.kafka.partitions

    def _send(self, topic: str, batch: list[DeadLetter], offset: int) -> None:
        """One transaction: letters, if any, and that everything before ``offset`` was sent, unless that is known."""
        keys = [_key(reason, topic) for reason in self._reasons]
        place = {**self._place, **{key: max(offset, self._place.get(key, 0)) for key in keys}}  # one may be ahead
        if not batch and place == self._place:
            return
        letters = Counter(letter.reason for letter in batch)
        self._unsure = place, letters
        metadata = msgspec.json.encode(Place(_VERSION, place, self._begun_at)).decode()
        try:
            self._transactions.send(self._records(batch), [min(place.values())], metadata)
        except BrokerError as error:
            if error.name in _TAKEN_OVER:
                allowed = "allowed: one at a time; everything that this one sent is kept"
                what = "the same command, started elsewhere, took over"
                raise Problems([Problem(self._pipeline.name, "--again", what, allowed)]) from None
            raise
        self._unsure = {}, Counter()
        self._place = place
        self._found.sent.update(letters)

    def _records(self, batch: list[DeadLetter]) -> Iterator[OutputRecord]:
        return (OutputRecord(letter.topic, letter.payload, letter.partition) for letter in batch)


def _key(reason: str, topic: str) -> str:
    return f"{reason}/{topic}"
