"""What must hold in every run, whatever breaks: looked at while it runs and once it is quiet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from basis.problems import BadFile
from paramserver.manifest import Manifest
from paramserver.table import Table
from streaming.log import EXAMPLES
from streaming.records.events import DeadLetter, encode
from tests.simulation.brokers import Brokers
from tests.simulation.conservation import check_conservation
from tests.simulation.counting import EXPIRE_SECONDS, STEP_SECONDS, format_of
from tests.simulation.traffic import LATENESS, PARTITIONS, WINDOW, Emit, Traffic
from trainer.online import OnlineTrainer

if TYPE_CHECKING:
    from tests.simulation.services import ReplicaService


class Content(NamedTuple):
    """Rows as replicas hold them, and which examples and users have one."""

    tables: dict[str, tuple[bytes, bytes, bytes]]
    examples: frozenset[int]
    users: frozenset[int]


def content_of(tables: Mapping[str, Table]) -> Content:
    rows = {name: table.export() for name, table in tables.items()}
    return Content(
        {
            name: (part.ids.tobytes(), part.embeddings.tobytes(), part.default_embedding.tobytes())
            for name, part in rows.items()
        },
        frozenset(rows["example"].ids.tolist()),
        frozenset(rows["user"].ids.tolist()),
    )


class Checks:
    """``versions`` is what the trainer's tables held when a version was cut, by its number."""

    def __init__(self, traffic: Traffic, emits: Collection[Emit]) -> None:
        self._traffic = traffic
        expected = traffic.expected.values()
        self._first = {one.number: one.decided_at if "decided" in emits else one.closes_at for one in expected}
        """When each example is due at the earliest, and at the latest: joiners may begin with the other `join.emit`."""
        self._last = {one.number: one.closes_at if "window" in emits else one.decided_at for one in expected}
        self._by_last = sorted(expected, key=lambda one: self._last[one.number])
        self.versions: dict[int, Content] = {}
        self._states: dict[int, tuple[bytes, dict[str, tuple[bytes, ...]]]] = {}
        self._published = 0
        self._watermark = 0
        self.trained: dict[str, int] = {}
        """The offsets of the newest version that was published for certain."""
        self._pulled: dict[str, tuple[int, int]] = {}
        self.unreadable: set[tuple[int, int]] = set()
        """Partitions and offsets of `examples` that the trainer made dead letters of."""
        self.splits = False
        """Whether transactions are so small that late arrivals may not fit into one: the watermark goes back to theirs."""

    def trainer_began(self, online: OnlineTrainer) -> None:
        version = online.deltas.version
        assert version >= self._published, f"version {self._published} was published, the trainer goes on at {version}"
        if version:
            assert _everything(online) == self._states[version], f"version {version} was recovered as it never was"

    def before_publication(self, online: OnlineTrainer) -> None:
        """Nothing is trained between this and the seal."""
        following = online.deltas.version + (1 if online._waiting is None else 2)
        self.versions[following] = content_of(online.trainer.tables)
        self._states[following] = _everything(online)

    def published(self, manifest: Manifest) -> None:
        assert manifest.version > self._published
        assert manifest.watermark >= self._watermark, f"the watermark went back to {manifest.watermark}"
        self._published, self._watermark = manifest.version, manifest.watermark
        self.trained = manifest.offsets
        self._fresh_at_most(manifest.watermark, self.versions[manifest.version])

    def _fresh_at_most(self, watermark: int, content: Content) -> None:
        """Everything that was due before the watermark is in the rows, and of the users those whose time is not over."""
        newest: dict[int, tuple[int, int]] = {}
        for one in self._by_last:
            first, last = self._first[one.number], self._last[one.number]
            if one.number in content.examples:
                newest[one.user] = max(newest.get(one.user, (0, 0))[0], first), last
            else:
                assert last >= watermark, f"watermark {watermark}: example {one.number} of before is missing"
        for user, (first, last) in newest.items():
            if user in content.users:
                age, allowed = watermark // 1000 - last // 1000, EXPIRE_SECONDS + STEP_SECONDS
                assert age <= allowed or user in self._traffic.possible_users, f"user {user} should be gone for {age} s"
            else:
                age = watermark // 1000 - first // 1000
                assert age >= EXPIRE_SECONDS, f"user {user} is gone {age} s after its last example"

    def pull(self, service: ReplicaService) -> None:
        replica = service.replica
        try:
            replica.pull()
        except (OSError, BadFile) as error:
            if not service.disk.failed:
                raise AssertionError(f"{service.name} cannot pull: {type(error).__name__}: {error}") from error
            return
        manifest = replica.manifest
        if manifest is None:
            return
        version, watermark = self._pulled.get(service.name, (0, 0))
        assert manifest.version >= version, f"{service.name} went back from version {version} to {manifest.version}"
        assert manifest.watermark >= watermark, f"{service.name}'s watermark went back to {manifest.watermark}"
        if manifest.version == version:
            return
        self._pulled[service.name] = (manifest.version, manifest.watermark)
        content = content_of(replica.tables)
        assert content == self.versions[manifest.version], f"{service.name}: version {manifest.version} has other rows"
        if manifest.version > self._published:  # its trainer died before it knew
            self._fresh_at_most(manifest.watermark, content)

    def replica_died_with_its_machine(self, name: str) -> None:
        """It may have seen a version that was not durable yet, and forgets it with everything else."""
        self._pulled.pop(name, None)

    def at_the_end(self, brokers: Brokers, online: OnlineTrainer, replicas: list[ReplicaService]) -> None:
        times, labels = self._examples(brokers)
        letters = [brokers.dead_letters(partition) for partition in range(PARTITIONS)]
        self._dead_letters(brokers, letters)
        check_conservation(brokers, self._traffic, letters, labels)
        rows = online.trainer.tables["example"].export()
        counts = dict(zip(rows.ids.tolist(), rows.counts.tolist(), strict=True))
        assert counts == dict(times), f"trained and emitted differ: {_differences(counts, times)}"
        newest = content_of(online.trainer.tables)
        for service in replicas:
            replica = service.replica
            assert replica.sparse_version == online.deltas.version, f"{service.name} is behind"
            assert content_of(replica.tables) == newest, f"{service.name} differs from the trainer"

    def _examples(self, brokers: Brokers) -> tuple[Counter[int], dict[int, tuple[float, ...]]]:
        """Each once a revision, with its name and label, and none of before a watermark after it. How often each is there, and
        what its last label is."""
        expected, names = self._traffic.expected, self._traffic.names
        times: Counter[int] = Counter()
        last: dict[int, tuple[float, ...]] = {}
        unreadable: set[tuple[int, int]] = set()
        formats = [format_of(size) for size in self._traffic.sizes]
        for partition in range(PARTITIONS):
            due = [one for one in self._by_last if one.partition == partition]
            at, told = 0, -1
            log = brokers.topics[EXAMPLES, partition]
            for record in log.committed(0, len(log.entries)):
                if record.value in self._traffic.unreadable:
                    unreadable.add((partition, record.offset))
                    continue
                (form,) = {one for one in formats if one.made_under.fingerprint.encode() in record.value}
                batch, watermark = form.decode(record.value)
                numbers, ids = (batch.column(name).to_pylist() for name in ("feature.example", "example_id"))
                labels, revisions = form.label_values(batch).tolist(), batch.column("revision").to_pylist()
                if "extra" in form.features:
                    extra = [number + 1.0 if number in self._traffic.extra else 0.0 for number in numbers]
                    found = form.columns(batch)["extra"]
                    assert np.all(found == np.reshape(extra, (-1, 1))), f"{numbers} have {found}, not {extra}"
                for number, name, values, revision in zip(numbers, ids, labels, revisions, strict=True):
                    assert name == names[number], f"example {number} is named {name}, not {names[number]}"
                    assert revision == times[number], f"emitted twice: revision {revision} of {number} after {times}"
                    times[number] += 1
                    last[number] = tuple(values)
                    known = expected.get(number)
                    if known is not None:
                        assert last[number] == known.labels, f"example {number}: {values}, by hand {known.labels}"
                        assert revision == 0, f"example {number} was corrected without need"
                    else:
                        assert number in self._traffic.possible, f"example {number} was never to be"
                # What could still be taken at a watermark is from at most so long before it.
                lowest = told - (WINDOW + LATENESS if self.splits else 0)
                assert watermark >= lowest, f"{EXAMPLES}/{partition}: the watermark went back at {record.offset}"
                told = max(told, watermark)
                while at < len(due) and self._last[due[at].number] < watermark:
                    assert due[at].number in times, f"watermark {watermark} was told before example {due[at].number}"
                    at += 1
        assert self.unreadable == unreadable, f"{self.unreadable} could not be read, and {unreadable} are unreadable"
        assert not (missing := expected.keys() - times.keys()), f"never emitted: {sorted(missing)}"
        return times, last

    def _dead_letters(self, brokers: Brokers, letters: list[list[DeadLetter]]) -> None:
        """What must be refused is, once for each record and as it was sent; nothing else that was in order and in time."""
        found: Counter[tuple[str, int, int]] = Counter()
        payloads: Counter[tuple[int, bytes]] = Counter()
        for partition, each in enumerate(letters):
            for letter in each:
                found[letter.topic, letter.partition, letter.offset] += 1
                sent = brokers.topics[letter.topic, partition].entries[letter.offset].value or b""
                payloads[partition, sent] += 1
                assert sent in self._traffic.refusable, f"refused without need: {letter}"
                is_same = letter.payload == sent or _outdated(letter.payload) == _outdated(sent)
                assert is_same, f"not what was sent: {letter}"
        assert not (twice := [place for place, count in found.items() if count > 1]), f"dead letters twice: {twice}"
        for place in self._traffic.refused:
            assert payloads[place] > 0, f"{place} is {payloads[place]} times among the dead letters"


def _outdated(payload: bytes) -> bytes:
    """A request but for the schema that it was taken under."""
    request: dict[str, Any] = msgspec.msgpack.decode(payload)
    return encode({**request, "schema": "", "columns": ""})


def _everything(online: OnlineTrainer) -> tuple[bytes, dict[str, tuple[bytes, ...]]]:
    """Dense weights and optimizer, and rows with all that recovery needs."""
    trainer = online.trainer
    rows = {name: table.export() for name, table in trainer.tables.items()}
    columns = ("ids", "embeddings", "last_seen_seconds", "counts")
    return trainer.state(), {
        name: tuple(getattr(part, column).tobytes() for column in columns) for name, part in rows.items()
    }


def _differences(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    pairs = {at: (one.get(at, 0), other.get(at, 0)) for at in one.keys() | other.keys()}
    return {at: pair for at, pair in sorted(pairs.items()) if pair[0] != pair[1]}
