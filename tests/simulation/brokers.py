"""Brokers: partitions of records, transactions read committed, one group's members and offsets, fencing, and retention."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice

import msgspec

from basis.problems import GapError
from streaming.join.commit import Committed, decode_commit, encode_commit
from streaming.log import DEAD_LETTERS, INPUTS, TOPICS, BrokerError, NoLeaderError, Record
from streaming.loop.brokers import Fetched, InputPartition, OutputRecord
from streaming.records.events import DeadLetter
from tests.simulation.process import Process

JOINERS = ("a", "b")
_WAITS = 5
_letter = msgspec.msgpack.Decoder(DeadLetter)


class _Transaction:
    """``state``: open, decided (it will be committed, its marks are not written yet), committed or aborted."""

    def __init__(self, state: str = "open", commit: str | None = None) -> None:
        self.state = state
        self.commit = commit
        self.partitions: set[str] = set()


class _Entry:
    """A record, or the mark that a transaction leaves; ``appended_at`` is the brokers' time (ms)."""

    __slots__ = ("appended_at", "transaction", "value")

    def __init__(self, value: bytes | None, transaction: _Transaction | None, appended_at: int) -> None:
        self.value = value
        self.transaction = transaction
        self.appended_at = appended_at


class Partition:
    """One partition of a topic."""

    def __init__(self) -> None:
        self.base = 0
        self.entries: list[_Entry] = []
        self._stable = 0

    @property
    def stable(self) -> int:
        """The offset up to which every transaction has ended."""
        at = self._stable
        while at < len(self.entries):
            transaction = self.entries[at].transaction
            if transaction is not None and transaction.state in ("open", "decided"):
                break
            at += 1
        self._stable = at
        return at

    def committed(self, start: int, stop: int) -> Iterator[Record]:
        for at in range(start, min(stop, self.stable)):
            entry = self.entries[at]
            if entry.value is not None and (entry.transaction is None or entry.transaction.state == "committed"):
                yield Record(at, entry.value, entry.appended_at)


class Brokers:
    """``owners`` says which joiner the group gives each partition. ``away`` makes every call fail, ``leaderless`` those of some
    partitions; ``unsure`` is the chance that a transaction's sender does not learn how it ended."""

    def __init__(self, rng: random.Random, partitions: int, now_ms: Callable[[], int]) -> None:
        self.rng = rng
        self._now_ms = now_ms
        self.topics = {(topic, at): Partition() for topic in TOPICS for at in range(partitions)}
        self.groups: list[str | None] = [None] * partitions
        self.transactions: list[_Transaction | None] = [None] * partitions
        self.epochs = [0] * partitions
        self.owners = [rng.choice(JOINERS) for _ in range(partitions)]
        self.away = False
        self.leaderless: set[int] = set()
        self.unsure = 0.0
        self.held: list[tuple[InputPartition, _Transaction]] = []
        """Transactions of other producers that are open."""
        self.largest = 1 << 30
        """Bytes that a transaction may have."""

    def evict(self, name: str) -> None:
        """Give the partitions of a member that left, or timed out, to the other."""
        (other,) = set(JOINERS) - {name}
        self.owners[:] = [other] * len(self.owners)

    def append(self, topic: str, partition: int, value: bytes | None, transaction: _Transaction | None = None) -> int:
        """The offset after it."""
        entries = self.topics[topic, partition].entries
        entries.append(_Entry(value, transaction, self._now_ms()))
        return len(entries)

    def produce(self, topic: str, partition: int, value: bytes, attempts: int) -> None:
        """A record, as it is or in so many transactions, of which only the last is committed."""
        if not attempts:
            self.append(topic, partition, value)
        for attempt in range(1, attempts + 1):
            transaction = _Transaction("committed" if attempt == attempts else "aborted")
            self.append(topic, partition, value, transaction)
            self.append(topic, partition, None, transaction)

    def hold(self, topic: str, partition: int) -> None:
        """Another producer begins a transaction, and hides what comes after it until it ends."""
        transaction = _Transaction()
        self.append(topic, partition, b"of a producer that died", transaction)
        self.held.append(((topic, partition), transaction))

    def release(self) -> None:
        """Brokers abort the transactions of other producers."""
        for (topic, partition), transaction in self.held:
            transaction.state = "aborted"
            self.append(topic, partition, None, transaction)
        self.held.clear()

    def dead_letters(self, partition: int) -> list[DeadLetter]:
        log = self.topics[DEAD_LETTERS, partition]
        return [_letter.decode(record.value) for record in log.committed(0, len(log.entries))]

    def settle(self, partition: int) -> None:
        """End the transaction that is under way: what was decided is committed, the rest aborted."""
        transaction = self.transactions[partition]
        if transaction is None:
            return
        transaction.state = "committed" if transaction.state == "decided" else "aborted"
        for topic in sorted(transaction.partitions):  # the mark of its end takes an offset
            self.append(topic, partition, None, transaction)
        if transaction.state == "committed":
            self.groups[partition] = transaction.commit
        self.transactions[partition] = None

    def committed(self, partition: int) -> Committed | None:
        """What the group's offsets of a partition come with."""
        text = self.groups[partition]
        return None if text is None else decode_commit(text)

    def trim(self, topic: str, partition: int, offset: int) -> None:
        log = self.topics[topic, partition]
        log.base = max(log.base, min(offset, log.stable))

    def check(self, partitions: Collection[int] = ()) -> None:
        """What a client raises where nobody answers."""
        if self.away:
            raise BrokerError("brokers are away", "TRANSPORT")
        if missing := self.leaderless.intersection(partitions):
            raise NoLeaderError(f"nobody leads {sorted(missing)}", missing)


class LogOf:
    """`LogReader` of one process."""

    def __init__(self, brokers: Brokers, process: Process) -> None:
        self._brokers = brokers
        self._process = process

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        self._process.touch(f"read {topic}/{partition} from {offset}")
        self._brokers.check()
        log = self._brokers.topics[topic, partition]
        if offset < log.base:
            raise GapError(f"{topic}/{partition}: offset {offset} is wanted, retention left those from {log.base}")
        if partition in self._brokers.leaderless:
            return []
        return list(islice(log.committed(offset, len(log.entries)), limit))

    def begin(self, topic: str, partition: int) -> int:
        self._process.touch(f"begin of {topic}/{partition}")
        self._brokers.check([partition])
        return self._brokers.topics[topic, partition].base


class HistoryOf:
    """`History` of one partition."""

    def __init__(self, brokers: Brokers, process: Process, partition: int) -> None:
        self._log = LogOf(brokers, process)
        self._brokers = brokers
        self._process = process
        self._partition = partition

    def beginning(self, topic: str) -> int:
        return self._log.begin(topic, self._partition)

    def end(self, topic: str) -> int:
        self._process.touch(f"end of {topic}/{self._partition}")
        self._brokers.check([self._partition])
        return len(self._brokers.topics[topic, self._partition].entries)

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        log, waits = self._brokers.topics[topic, self._partition], 0
        while start < stop:
            self._process.touch(f"read back {topic}/{self._partition} from {start}")
            self._brokers.check([self._partition])
            if start < log.base:
                # Others have moved on meanwhile; where it is still needed, recovering anew finds a gap.
                raise BrokerError(f"{topic}/{self._partition}: {start} is read back, retention left {log.base}")
            until = min(stop, start + self._brokers.rng.randint(1, 40), max(start, log.stable))
            waits = waits + 1 if until == start else 0
            if waits > _WAITS:
                raise BrokerError(f"{topic}/{self._partition}: nothing after offset {start}", "TIMED_OUT")
            yield list(log.committed(start, until))
            start = until


class OutletOf:
    """`Outlet` of one process for one partition."""

    def __init__(self, brokers: Brokers, process: Process, partition: int) -> None:
        self._brokers = brokers
        self._process = process
        self._partition = partition
        self._epoch = -1

    def open(self) -> Committed | None:
        brokers, at = self._brokers, self._partition
        self._process.touch(f"fence {at}")
        brokers.check([at])
        brokers.epochs[at] += 1
        self._epoch = brokers.epochs[at]
        brokers.settle(at)
        self._process.touch(f"read the group's offsets of {at}")
        self._check()
        return brokers.committed(at)

    def send(self, outbox: Sequence[OutputRecord], commit: Committed) -> dict[str, int]:
        brokers, at = self._brokers, self._partition
        self._process.touch(f"begin a transaction of {at}")
        self._check()
        size = sum(len(item.value) for item in outbox)
        assert size <= brokers.largest, f"a transaction of {size} bytes; allowed: {brokers.largest}"
        transaction = brokers.transactions[at] = _Transaction(commit=encode_commit(commit))
        ends: dict[str, int] = {}
        for number, item in enumerate(outbox):
            if number < 3:
                self._process.touch(f"send to {item.topic}/{at}")
                self._check()
            ends[item.topic] = brokers.append(item.topic, at, item.value, transaction)
            transaction.partitions.add(item.topic)
        self._process.touch(f"commit the transaction of {at}")
        self._check()
        self._doubt("whether the transaction was committed: it was not")
        transaction.state = "decided"
        self._doubt("whether the transaction was committed: it will be")
        self._process.touch(f"wait for the commit of {at}")
        self._check()
        brokers.settle(at)
        self._doubt("whether the transaction was committed: it was")
        return ends

    def close(self) -> None:
        self._process.touch(f"let go of the transactions of {self._partition}")

    @property
    def is_fenced(self) -> bool:
        """Whether another one has the partition."""
        return self._epoch != self._brokers.epochs[self._partition]

    def _check(self) -> None:
        self._brokers.check([self._partition])
        if self.is_fenced:
            raise BrokerError("another one has the partition", "FENCED")

    def _doubt(self, what: str) -> None:
        if self._brokers.unsure and self._brokers.rng.random() < self._brokers.unsure:
            raise BrokerError(f"unknown {what}", "TIMED_OUT")


class BrokersOf:
    """`Brokers` as the joiner of one process sees them: the group's word comes late, and a read gives any part of what there is."""

    inputs = INPUTS

    def __init__(self, brokers: Brokers, process: Process, name: str) -> None:
        self._brokers = brokers
        self._process = process
        self._name = name
        self._assigned: frozenset[int] | None = None
        self._positions: dict[InputPartition, int] = {}

    def join(self) -> None:
        self._process.touch("join the group")

    def assigned(self) -> frozenset[int]:
        self._process.touch("follow the group")
        if self._assigned is None or self._brokers.rng.random() >= 0.3:
            self._assigned = frozenset(at for at, owner in enumerate(self._brokers.owners) if owner == self._name)
        return self._assigned

    def leave(self) -> None:
        self._process.touch("leave the group")
        self._brokers.evict(self._name)

    def outlet(self, partition: int) -> OutletOf:
        return OutletOf(self._brokers, self._process, partition)

    def history(self, partition: int) -> HistoryOf:
        return HistoryOf(self._brokers, self._process, partition)

    def check_leaders(self, partitions: Collection[int]) -> None:
        self._process.touch(f"look for leaders of {partitions}")
        self._brokers.check(partitions)

    def begins(self, partitions: Collection[int]) -> dict[InputPartition, int]:
        self._process.touch(f"begins of {partitions}")
        self._brokers.check(partitions)
        return {(topic, at): self._brokers.topics[topic, at].base for at in partitions for topic in INPUTS}

    def ends(self, partitions: Collection[int]) -> dict[InputPartition, int]:
        self._process.touch(f"ends of {partitions}")
        self._brokers.check(partitions)
        return {(topic, at): len(self._brokers.topics[topic, at].entries) for at in partitions for topic in INPUTS}

    def read_on(self, positions: Mapping[InputPartition, int]) -> None:
        """With what was on its way, which may come from before a position."""
        self._process.touch("choose where to read")
        rng, topics = self._brokers.rng, self._brokers.topics
        back = rng.choice([0, 0, 0, rng.randint(1, 9)])
        self._positions = {
            place: max(offset - back, min(offset, topics[place].base)) for place, offset in positions.items()
        }

    def read(self) -> Fetched:
        self._process.touch("read the inputs")
        brokers, rng = self._brokers, self._brokers.rng
        brokers.check()
        records: dict[InputPartition, list[Record]] = {}
        read_to: dict[InputPartition, int] = {}
        failed: dict[InputPartition, BrokerError] = {}
        silent = rng.choice([*INPUTS, *[""] * 6])
        for place in rng.sample(list(self._positions), len(self._positions)):
            topic, partition = place
            offset = self._positions[place]
            log = brokers.topics[place]
            if topic == silent or partition in brokers.leaderless:
                continue
            if offset < log.base:
                failed[place] = BrokerError(f"{offset} is read, retention left {log.base}", "OFFSET_OUT_OF_RANGE")
                continue
            limit = rng.choice([1, 5, 30])
            found = list(islice(log.committed(offset, len(log.entries)), limit))
            if found:
                records[place] = found
            if len(found) < limit:
                self._positions[place] = read_to[place] = log.stable
            else:
                self._positions[place] = found[-1].offset + 1
        return Fetched(records, read_to, failed)
