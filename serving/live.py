"""The live features of requests: one thread folds in what is kept of keys, others read values of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np

from streaming.clock import Clock
from streaming.features.columns import Column, Ids
from streaming.features.kinds import Feature
from streaming.live.columns import keys_of, live_features
from streaming.live.core import KeysKept
from streaming.live.published import Kept
from streaming.live.spec import LiveSpec
from streaming.log import Record


class LiveValues:
    """Values of live features, by what `features` says.

    The thread that folds says when it begins, and when it has `caught_up` with what there was then. Others read what was folded
    since; until then what they read before, if anything. They read nothing where nothing was `heard` for ``within_ms``.
    """

    def __init__(self, spec: LiveSpec, features: Mapping[str, Feature], clock: Clock, within_ms: int) -> None:
        self.features = live_features(spec, features)
        self._spec = spec
        self._all = features
        self._clock = clock
        self._within_ms = within_ms
        self._parts = {name: each.key for name, each in spec.settings.definitions()}
        self._lock = Lock()
        self._coming = Kept(spec, features)
        self._kept: Kept | None = None
        self._heard_at = 0
        self._newest_at: int | None = None
        self.read = 0
        """Records that came."""
        self.unreadable = 0
        """Records that could not be read."""
        self.lag: int | None = None
        """Offsets that were not read yet; None before that is known."""
        self.problem: str | None = None
        """Why nothing is heard; None where something is."""

    @classmethod
    def of(cls, spec: LiveSpec, features: Mapping[str, Feature], clock: Clock, within_ms: int) -> LiveValues | None:
        """Values of a config's live features; None where it has none."""
        return cls(spec, features, clock, within_ms) if live_features(spec, features) else None

    def begin(self) -> None:
        """Fold from the beginning on what comes from now on."""
        self._coming = Kept(self._spec, self._all)

    def fold(self, partition: int, records: Sequence[Record]) -> None:
        """Take records of a partition, in their order."""
        said = self._coming.read(record.value for record in records)
        with self._lock:
            self._coming.put(partition, said)
        self.read += len(records)
        self._newest_at = max(self._newest_at or 0, *(record.appended_at for record in records))

    def caught_up(self) -> None:
        """Read from now on what was folded since `begin`."""
        self._kept = self._coming

    def heard(self, lag: int | None) -> None:
        """Everything up to now is folded in, but for ``lag`` offsets."""
        self.lag, self.problem = lag, None
        self._heard_at = self._clock.elapsed_ms()

    @property
    def is_there(self) -> bool:
        """Whether it has caught up once."""
        return self._kept is not None

    @property
    def skipped(self) -> Counter[str]:
        """Records that were passed over, by reason."""
        return self._coming.skipped + Counter(unreadable=self.unreadable)

    def age_seconds(self) -> float | None:
        """How long ago brokers took the newest record; None where there is none."""
        return None if self._newest_at is None else max(0, self._clock.now_ms() - self._newest_at) / 1000

    def kept(self) -> dict[str, KeysKept]:
        """How many keys each definition has, and what they cost."""
        with self._lock:
            return self._coming.core.kept()

    def values(self, made: Mapping[str, Column], at_ms: int) -> dict[str, Column] | None:
        """The columns of all live features at a time, by those of other features: of one row where all parts of the key have one.
        None where nothing may be read."""
        kept = self._kept
        if kept is None or self._clock.elapsed_ms() - self._heard_at > self._within_ms:
            return None
        keys = {name: keys_of([_ids(made[part]) for part in parts]) for name, parts in self._parts.items()}
        with self._lock:
            found = kept.core.read(keys, at_ms)
        return {name: each.column(found) for name, each in self.features.items()}


def _ids(column: Column) -> Ids:
    assert isinstance(column, np.ndarray), "keys are of features of one id each"
    return np.ascontiguousarray(column.view(np.int64))
