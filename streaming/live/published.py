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
from streaming.live.core import LiveCore, Packed, are_totals
from streaming.live.spec import LiveSpec
from streaming.records.events import BadRecord, Int64, bad_record, check_size

_VERSION = 1
_PLACE = ""


class _Published(msgspec.Struct, array_like=True, gc=False):
    """What is kept of a key of a definition, by its identity. Without one, the place of the partition: ``key`` is the next offset
    of `interactions`, ``packed`` how often servings and ``actions`` happened, int64."""

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


def published_place(offset: int, actions: Sequence[str], totals: Ids) -> tuple[bytes, bytes]:
    """Return the record of a partition's place, with its key: the next offset of `interactions`, and int64 [1 + actions] totals."""
    return b"place", _encoder.encode(_Published(_VERSION, _PLACE, offset, totals.tobytes(), list(actions)))


class Place(NamedTuple):
    """Up to which offset of `interactions` a partition is counted, and its totals, int64 [1 + actions]."""

    offset: int
    totals: Ids


class Said(NamedTuple):
    """What some records of a partition say: by definition keys int64 [k] with what is kept of each, and the partition's place."""

    keys: Mapping[str, tuple[Ids, Packed]]
    place: Place | None


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
        self.offsets: dict[int, int] = {}
        """The next offset of `interactions` in each partition that has a place."""

    def fold(self, partition: int, payloads: Iterable[bytes]) -> None:
        """Take what records say, in their order."""
        self.put(partition, self.read(payloads))

    def read(self, payloads: Iterable[bytes]) -> Said:
        """Return what records say, in their order; the core is as before. An empty one says that its key was forgotten, as it is
        here by its time."""
        keys: dict[str, list[int]] = defaultdict(list)
        packed: dict[str, list[bytes]] = defaultdict(list)
        place = None
        for payload in filter(None, payloads):
            try:
                found = _decoded(payload)
                if found.definition == _PLACE:
                    place = self._place_in(found)
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
        return Said(said, place)

    def put(self, partition: int, said: Said) -> None:
        """Take what records of a partition say."""
        for name, (keys, packed) in said.keys.items():
            self.core.put(name, keys, packed)
        if said.place is not None:
            self.offsets[partition], self._totals[partition] = said.place
            self.core.totals = np.sum(list(self._totals.values()), axis=0, dtype=np.int64)

    def _place_in(self, found: _Published) -> Place:
        _check_bytes(found, 8 + 8 * len(found.actions))
        counts = np.frombuffer(found.packed, "<i8")
        if not are_totals(counts):
            raise BadRecord("malformed", f"totals {counts.tolist()}; allowed: 0 to 2^48")
        served, *done = counts.tolist()
        of_action = dict(zip(found.actions, done, strict=True))
        return Place(found.key, np.array([served, *(of_action.get(each, 0) for each in self.actions)], np.int64))


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
