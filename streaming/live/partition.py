"""What is kept of the keys of one partition of `interactions`, and published to `features`.

A transaction holds what is kept now of each key at which something happened, and how far `interactions` was read. So `features` as
committed is the state, each thing counted once whatever crashes when: a new owner reads it, and goes on from the committed offset.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from streaming.features.columns import Ids
from streaming.features.kinds import Feature
from streaming.live.core import FIRST_ACTION, SERVED, Happened
from streaming.live.interactions import Interactions
from streaming.live.published import Kept, published_keys, published_place
from streaming.live.spec import LiveSpec, fields_of
from streaming.log import FEATURES, INTERACTIONS, LostRange, Record
from streaming.loop.brokers import History, Outlet, OutputRecord
from streaming.records.events import BadRecord

_log = logging.getLogger("minutely.features")
_VERSION = 1
_KEYS_AT_ONCE = 50_000
"""Keys of a transaction, some 10 MB."""
_ANY_MS = 1 << 53
_MAX_AHEAD_MS = 5_000
"""Nothing counts as later than this after its broker took it, so that one fast clock does not make all that was before old."""


class Progress(msgspec.Struct, kw_only=True):
    """The commit of a transaction: whose it is, which of theirs, and the next offset of `interactions`."""

    version: int = _VERSION
    owner: str
    sequence: int
    offset: int


_progress_decoder = msgspec.json.Decoder(Progress)


def encode_progress(progress: Progress) -> str:
    """Encode a commit as a line of JSON."""
    return msgspec.json.encode(progress).decode()


def decode_progress(text: str) -> Progress | None:
    """Decode a commit; None for any other text, and for another version."""
    try:
        found = _progress_decoder.decode(text)
    except Exception:
        return None
    return found if found.version == _VERSION else None


class LivePartition:
    """`Work` on one partition of `interactions`."""

    def __init__(
        self,
        spec: LiveSpec,
        features: Mapping[str, Feature],
        outlet: Outlet[Progress],
        history: History,
        partition: int,
        *,
        new_id: Callable[[], str],
    ) -> None:
        self._spec = spec
        self._features = features
        self._outlet = outlet
        self._history = history
        self._partition = partition
        self._new_id = new_id
        self._identities = spec.identities(features)
        self._names = {identity: name for name, identity in self._identities.items()}
        self._fields = {name: len(fields_of(each)) for name, each in spec.settings.definitions()}
        self.kept = Kept(spec, features)
        self._progress = Progress(owner="", sequence=0, offset=0)
        self._offset = 0
        self._changed: dict[str, list[Ids]] = defaultdict(list)
        self._outbox: list[OutputRecord] | None = None
        """The records of a transaction that is not known to be committed."""
        self.happened = 0
        """Servings and actions at keys, counted since the partition is ours."""
        self.passed_over: Counter[str] = Counter()
        """Records and parts of them that were not counted, by why."""
        self.uncommitted = 0
        self.busy = False
        self.gaps: list[LostRange] = []

    @property
    def offsets(self) -> Mapping[str, int]:
        """The next offset to take."""
        return {INTERACTIONS: self._offset}

    @property
    def must_step(self) -> bool:
        """Whether so many keys changed that they fill a transaction."""
        return sum(len(each) for keys in self._changed.values() for each in keys) >= _KEYS_AT_ONCE

    @property
    def max_ahead_ms(self) -> int:
        """Any time: nothing here depends on our own clock."""
        return _ANY_MS

    def recover(self) -> Generator[None]:
        """Fence the previous owner, and read what is kept as of the last transaction; bounded work between two yields."""
        committed = self._outlet.open()
        if committed is not None and committed.owner == self._progress.owner:
            missing = self._progress.sequence - committed.sequence
            if missing == 0:
                self._outbox = None
                return
            if missing == 1 and self._outbox is not None:
                self._send()
                return
        self._outbox = None
        self._changed.clear()
        self.uncommitted = 0
        self._progress = Progress(owner="", sequence=0, offset=0)  # until all is read
        kept = Kept(self._spec, self._features)
        begin, end = self._history.beginning(FEATURES), self._history.end(FEATURES)
        for found in self._history.read(FEATURES, begin, end):
            if isinstance(found, LostRange):
                self.gaps.append(found)
            else:
                kept.fold(self._partition, [record.value for record in found])
            yield
        self.kept = kept
        place = kept.offsets.get(self._partition)
        self._offset = self._history.beginning(INTERACTIONS) if place is None else place
        self._progress = Progress(owner=self._new_id(), sequence=0, offset=self._offset)

    def take(self, topic: str, records: Sequence[Record]) -> int:
        """Count what happened. Return how many records were taken: all."""
        happened: dict[str, list[Happened]] = defaultdict(list)
        for record in records:
            try:
                found = Interactions(record.value)
            except BadRecord as bad:
                self.passed_over[bad.reason] += 1
                continue
            codes = self._codes_of(found.actions)
            self._count_totals(found.totals)
            for identity, each in found.happened:
                if (name := self._names.get(identity)) is None:
                    self.passed_over["of another config"] += len(each.keys)
                    continue
                what = codes[each.what]
                if not (what > 0).all() or each.ids.shape[1] != self._fields[name]:
                    self.passed_over["malformed"] += len(each.keys)  # an identity says which actions and ids there are
                    continue
                at = np.minimum(each.at, record.appended_at + _MAX_AHEAD_MS)
                happened[name].append(Happened(each.keys, what, at, np.minimum(each.counted_at, at), each.ids))
        for name, parts in happened.items():
            each = Happened(*map(np.concatenate, zip(*parts, strict=True)))
            self.kept.core.note(name, each)
            self.happened += len(each.keys)
            self._changed[name].append(np.unique(each.keys))
        self.uncommitted += len(records)
        self._offset = records[-1].offset + 1 if records else self._offset
        return len(records)

    def _codes_of(self, actions: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return our codes of what a record names; 0 for actions that we do not count."""
        ours = {action: FIRST_ACTION + at for at, action in enumerate(self.kept.actions)}
        return np.array([0, SERVED, *(ours.get(action, 0) for action in actions)], np.int32)

    def _count_totals(self, totals: Mapping[str | None, int]) -> None:
        if totals:
            counts = [totals.get(each, 0) for each in (None, *self.kept.actions)]
            self.kept.core.totals = self.kept.core.totals + np.array(counts, np.int64)

    def skip(self, gap: LostRange) -> None:
        """Skip records up to the end of a gap; those before it were taken."""
        self._offset = gap.stop

    def step(self, ended: Mapping[str, bool], as_of_ms: int, publish_every_ms: int) -> bool:
        """Publish what changed, and commit. Return whether there was anything to commit."""
        if self._offset == self._progress.offset:
            return False
        core = self.kept.core
        records = [published_place(self._offset, self.kept.actions, core.totals)]
        for name, parts in self._changed.items():
            keys = np.unique(np.concatenate(parts))
            records += published_keys(self._identities[name], keys, core.packed(name, keys))
        outbox = [OutputRecord(FEATURES, value, None, key) for key, value in records]
        self._changed.clear()
        self.uncommitted = 0
        before = self._progress
        self._progress = Progress(owner=before.owner, sequence=before.sequence + 1, offset=self._offset)
        self._outbox = outbox
        self._send()
        return True

    def _send(self) -> None:
        """Send the outbox as one transaction."""
        assert self._outbox is not None
        self._outlet.send(self._outbox, self._progress)
        self._outbox = None

    def is_damage(self, error: Exception) -> bool:
        """Return False: nothing is kept on disk."""
        return False

    def discard(self) -> None:
        """Forget everything; `recover` reads it again."""
        self._progress = Progress(owner="", sequence=0, offset=0)

    def close(self) -> None:
        """Do nothing: what was not committed is read again."""
