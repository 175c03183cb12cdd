"""The `features` topic: what is kept of each key of live features, the newest record of a key in place of all before it.

Format: docs/state-format.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from basis.decoding import why
from streaming.features.columns import Ids
from streaming.features.kinds import Feature
from streaming.live.core import LiveCore, Packed
from streaming.live.spec import LiveSpec
from streaming.records.events import BadRecord, Int64, bad_record, check_size

_VERSION = 1
_TOTALS = ""
_MOST = 1 << 48
"""More than this happens nowhere, and so many partitions' totals can be added."""


class _Published(msgspec.Struct, array_like=True, gc=False):
    """What is kept of a key of a definition, by its identity; without one, how often servings and ``actions`` happened, int64."""

    version: int
    definition: str
    key: Int64
    packed: bytes
    actions: list[str] = []


_decoder = msgspec.msgpack.Decoder(_Published)
_encoder = msgspec.msgpack.Encoder()


def published_keys(definition: str, keys: Ids, packed: Packed) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records of keys of a definition: each with the key that compaction goes by."""
    name = definition.encode()
    for key, words in zip(keys.tolist(), packed, strict=True):
        value = _encoder.encode(_Published(_VERSION, definition, key, words.tobytes()))
        yield name + key.to_bytes(8, "little", signed=True), value


def published_totals(actions: Sequence[str], totals: Ids) -> tuple[bytes, bytes]:
    """Return the record of a partition's totals, int64 [1 + actions], with its key."""
    return b"totals", _encoder.encode(_Published(_VERSION, _TOTALS, 0, totals.tobytes(), list(actions)))


class Said(NamedTuple):
    """What some records of a partition say: by definition keys int64 [k] with what is kept of each, and the partition's totals."""

    keys: Mapping[str, tuple[Ids, Packed]]
    totals: Ids | None


class Kept:
    """The ``core`` of a config, as records of `features` say it: those of one partition after another, each in its order.

    ``skipped`` counts records by why they were passed over: those of other configs' definitions are ``of another config``.
    """

    def __init__(self, spec: LiveSpec, features: Mapping[str, Feature]) -> None:
        self.actions = list(spec.windows)
        self.core = LiveCore(spec.settings, self.actions)
        self.skipped: Counter[str] = Counter()
        self._names = {identity: name for name, identity in spec.identities(features).items()}
        self._bytes = {identity: 8 * self.core.words(name) for identity, name in self._names.items()}
        self._totals: dict[int, Ids] = {}

    def fold(self, partition: int, payloads: Iterable[bytes]) -> None:
        """Take what records say, in their order."""
        self.put(partition, self.read(payloads))

    def read(self, payloads: Iterable[bytes]) -> Said:
        """Return what records say, in their order; the core is as before. An empty one says that its key was forgotten, as it is
        here by its time."""
        keys: dict[str, list[int]] = defaultdict(list)
        packed: dict[str, list[bytes]] = defaultdict(list)
        totals = None
        for payload in filter(None, payloads):
            try:
                found = _decoded(payload)
                if found.definition == _TOTALS:
                    totals = self._totals_of(found)
                elif found.definition in self._bytes:
                    _check_bytes(found, self._bytes[found.definition])
                    keys[found.definition].append(found.key)
                    packed[found.definition].append(found.packed)
                else:
                    self.skipped["of another config"] += 1
            except BadRecord as bad:
                self.skipped[bad.reason] += 1
        said = {}
        for definition in keys:
            name = self._names[definition]
            words = np.frombuffer(b"".join(packed[definition]), np.uint64).reshape(-1, self.core.words(name))
            sound = self.core.sound(name, words)
            if wrong := len(sound) - int(np.count_nonzero(sound)):
                self.skipped["malformed"] += wrong
            said[name] = np.array(keys[definition], np.int64)[sound], words[sound]
        return Said(said, totals)

    def put(self, partition: int, said: Said) -> None:
        """Take what records of a partition say."""
        for name, (keys, packed) in said.keys.items():
            self.core.put(name, keys, packed)
        if said.totals is not None:
            self._totals[partition] = said.totals
            self.core.totals = np.sum(list(self._totals.values()), axis=0, dtype=np.int64)

    def _totals_of(self, found: _Published) -> Ids:
        _check_bytes(found, 8 + 8 * len(found.actions))
        served, *done = np.frombuffer(found.packed, "<i8").tolist()
        if not all(0 <= each <= _MOST for each in (served, *done)):
            raise BadRecord("malformed", f"totals {served}, {done}; allowed: 0 to {_MOST}")
        counts = dict(zip(found.actions, done, strict=True))
        return np.array([served, *(counts.get(each, 0) for each in self.actions)], np.int64)


def _decoded(payload: bytes) -> _Published:
    check_size(len(payload))
    try:
        found = _decoder.decode(payload)
    except MemoryError:
        raise
    except Exception as error:
        raise bad_record(payload, why(error), _VERSION) from None
    if found.version != _VERSION:
        raise BadRecord("version", f"record version {found.version}; allowed: {_VERSION}")
    return found


def _check_bytes(found: _Published, allowed: int) -> None:
    if len(found.packed) != allowed:
        raise BadRecord("malformed", f"{len(found.packed)} bytes of {found.definition}; allowed: {allowed}")
