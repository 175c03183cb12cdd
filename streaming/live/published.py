"""The `features` topic: what is kept of each key of live features, the newest record of a key in place of all before it.

Format: docs/state-format.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import msgspec
import numpy as np

from basis.decoding import refusing
from streaming.features.columns import Ids
from streaming.features.kinds import Feature
from streaming.live.core import LiveCore, Packed, are_totals
from streaming.live.spec import LiveSpec
from streaming.records.events import BadRecord, bad_record, check_size

_VERSION = 1
_PLACE = ""


class _Published(msgspec.Struct, array_like=True, gc=False):
    """What is kept of a key of a definition, by its identity. Without one, the place of the partition: ``key`` is the next offset
    of `interactions`, ``packed`` how often servings and ``actions`` happened, int64."""

    version: int
    definition: str
    key: int
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
        keys: dict[str, list[int]] = defaultdict(list)
        packed: dict[str, list[bytes]] = defaultdict(list)
        for payload in payloads:
            try:
                found = self._found(payload)
            except BadRecord as bad:
                self.skipped[bad.reason] += 1
                continue
            if found.definition == _PLACE:
                self._fold_place(partition, found)
            elif found.definition not in self._names:
                self.skipped["of another config"] += 1
            else:
                keys[found.definition].append(found.key)
                packed[found.definition].append(found.packed)
        for definition, name in self._names.items():
            if definition in keys:
                words = np.frombuffer(b"".join(packed[definition]), np.uint64).reshape(-1, self.core.words(name))
                if wrong := self.core.put(name, np.array(keys[definition], np.int64), words):
                    self.skipped["malformed"] += wrong

    def _found(self, payload: bytes) -> _Published:
        check_size(len(payload))
        with refusing(partial(bad_record, payload, allowed=_VERSION)):
            found = _decoder.decode(payload)
        if found.version != _VERSION:
            raise BadRecord("version", f"record version {found.version}; allowed: {_VERSION}")
        wanted = self._bytes.get(found.definition, 8 + 8 * len(found.actions))
        if (found.definition in self._bytes or found.definition == _PLACE) and len(found.packed) != wanted:
            raise BadRecord("malformed", f"{len(found.packed)} bytes of a key; allowed: {wanted}")
        if found.definition == _PLACE and not are_totals(np.frombuffer(found.packed, "<i8")):
            raise BadRecord("malformed", "totals; allowed: 0 to 2^53")
        if not -(2**63) <= found.key < 2**63:
            raise BadRecord("malformed", f"key {found.key}; allowed: 64 bits")
        return found

    def _fold_place(self, partition: int, found: _Published) -> None:
        self.offsets[partition] = found.key
        counts = dict(zip(found.actions, np.frombuffer(found.packed, "<i8")[1:].tolist(), strict=True))
        served = int.from_bytes(found.packed[:8], "little", signed=True)
        self._totals[partition] = np.array([served, *(counts.get(each, 0) for each in self.actions)], np.int64)
        self.core.totals = np.sum(list(self._totals.values()), axis=0, dtype=np.int64)
