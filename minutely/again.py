"""`minutely dead-letters --again`: what a fix has mended goes back to where it came from, once.

How far each reason was sent again is committed with the records, in one transaction: whatever ends it, and however often it is
started, nothing is sent twice. Requests go before the engagements of their partition, so that these find them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import msgspec

from basis.decoding import refusing
from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.dead_letters import letters_of
from minutely.service import stop_on_signal
from streaming.clock import WallClock
from streaming.kafka import waiting
from streaming.kafka.history import KafkaHistory
from streaming.kafka.outlet import Transactions
from streaming.kafka.topics import ensure_topics
from streaming.kafka.waiting import retrying, tolerating
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, IMPRESSIONS, BrokerError
from streaming.records.events import DeadLetter
from streaming.records.reasons import MENDABLE
from streaming.retry import Retry

_log = logging.getLogger("minutely.dead-letters")
_GROUP = "minutely-again"
_LETTERS_AT_ONCE = 500
_BYTES_AT_ONCE = 8 << 20
_TAKEN_OVER = ("FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH", "INVALID_PRODUCER_ID_MAPPING")


class Place(msgspec.Struct, frozen=True):
    """What is committed of a partition: by reason and topic, the first offset of `dead-letters` that was not sent again."""

    version: int
    sent: dict[str, int]


class SentAgain(NamedTuple):
    """What was sent, and what was passed over because no fix mends it; by reason."""

    sent: Counter[str]
    left: Counter[str]


_VERSION = 1
_decoder = msgspec.json.Decoder(Place)


def send_again(pipeline: Pipeline, reason: str | None) -> SentAgain:
    """Send what was refused for ``reason``, or else for one that a fix can mend, and was not sent again before. The joiner passes
    over what it knows already.

    Raises:
        Problems: the same command, started meanwhile elsewhere, took over.
    """
    found = SentAgain(Counter(), Counter())
    with stop_on_signal() as stop:
        retrying(_log, stop, partial(ensure_topics, pipeline.kafka), pipeline.kafka.asked, waiting.PERSON_SECONDS)
        for partition in range(pipeline.kafka.partitions):
            _Partition(pipeline, partition, MENDABLE if reason is None else {reason}, found).send(stop)
        if stop():
            raise KeyboardInterrupt
    return found


class _Partition:
    """One partition of `dead-letters`."""

    def __init__(
        self, pipeline: Pipeline, partition: int, reasons: frozenset[str] | set[str], found: SentAgain
    ) -> None:
        self._pipeline = pipeline
        self._partition = partition
        self._reasons = reasons
        self._found = found
        self._history = KafkaHistory(pipeline.kafka, partition)
        self._transactions = Transactions(pipeline.kafka, _GROUP, partition, [DEAD_LETTERS])
        self._place: Mapping[str, int] = {}
        self._counted = Counter[str]()
        """By topic, the offset up to which what is left was counted."""
        self._unsure: tuple[Mapping[str, int], Counter[str]] = {}, Counter()
        """The place and the letters of a transaction that is not known to be committed."""

    def send(self, stop: Callable[[], bool]) -> None:
        """Send what there is by now; while brokers are away it waits, until ``stop``."""
        brokers = Retry(_log, "brokers", WallClock(), self._pipeline.kafka.asked)
        end: int | None = None
        while not stop():
            with tolerating(brokers):
                end = self._history.end(DEAD_LETTERS) if end is None else end
                self._open()
                for topic in (IMPRESSIONS, ENGAGEMENTS):
                    self._send_all(topic, end, stop)
                self._transactions.close()
                return

    def _open(self) -> None:
        ((_, metadata),) = self._transactions.open()
        with refusing(self._foreign):
            place = _decoder.decode(metadata) if metadata else Place(_VERSION, {})
            if place.version != _VERSION:
                raise ValueError(f"version {place.version}; allowed: {_VERSION}")
        self._place = place.sent
        wanted, letters = self._unsure
        if letters and self._place == wanted:
            self._found.sent.update(letters)
        self._unsure = {}, Counter()

    def _foreign(self, why: str) -> Problems:
        allowed = "allowed: offsets that this command commits; delete the group to send everything again"
        return Problems([Problem("kafka", f"group {self._transactions.group}", why, allowed)])

    def _send_all(self, topic: str, end: int, stop: Callable[[], bool]) -> None:
        batch: list[DeadLetter] = []
        size, start = 0, min(self._place.get(_key(reason, topic), 0) for reason in self._reasons)
        for offset, letter in letters_of(self._history, self._partition, start, end, stop):
            if letter.topic == topic and letter.reason not in self._reasons and offset >= self._counted[topic]:
                self._found.left[letter.reason] += 1
                self._counted[topic] = offset + 1
            if letter.topic != topic or offset < self._place.get(_key(letter.reason, topic), 0):
                continue
            if letter.reason in self._reasons:
                batch.append(letter)
                size += len(letter.payload)
                if len(batch) == _LETTERS_AT_ONCE or size >= _BYTES_AT_ONCE:
                    self._send(topic, batch, offset + 1)
                    batch, size = [], 0
        if batch and not stop():
            self._send(topic, batch, end)

    def _send(self, topic: str, batch: list[DeadLetter], offset: int) -> None:
        """One transaction: letters, and that everything before ``offset`` was sent."""
        keys = [_key(reason, topic) for reason in self._reasons]
        place = {**self._place, **{key: max(offset, self._place.get(key, 0)) for key in keys}}  # one may be ahead
        letters = Counter(letter.reason for letter in batch)
        self._unsure = place, letters
        metadata = msgspec.json.encode(Place(_VERSION, place)).decode()
        try:
            self._transactions.send(self._records(batch), [min(place.values())], metadata)
        except BrokerError as error:
            if str(error).startswith(_TAKEN_OVER):
                allowed = "allowed: one at a time; everything that this one sent is kept"
                what = "the same command, started elsewhere, took over"
                raise Problems([Problem(self._pipeline.name, "--again", what, allowed)]) from None
            raise
        self._unsure = {}, Counter()
        self._place = place
        self._found.sent.update(letters)

    def _records(self, batch: list[DeadLetter]) -> Iterator[tuple[str, int, bytes]]:
        return ((letter.topic, letter.partition, letter.payload) for letter in batch)


def _key(reason: str, topic: str) -> str:
    return f"{reason}/{topic}"
