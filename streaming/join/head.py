"""The head of a partition's state: which transaction it belongs to, and from where recovery reads on."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from streaming.join.configs import ConfigSince
from streaming.log import TOPICS
from streaming.records.schema import Schema

STATE_VERSION = 4

Offsets: TypeAlias = dict[str, int]
"""An offset in each of `TOPICS`: the next one to take of an input; of an output, from where on later transactions write."""


class RebuildPoint(NamedTuple):
    """Offsets from which a rebuild reads. No input record before them has an event time after ``newest`` (ms)."""

    newest: int
    offsets: Offsets


class Head(msgspec.Struct, array_like=True, kw_only=True):
    """Identifies a state: ``state_id`` is new at every rebuild, ``sequence`` counts transactions. Times in ms of event time.

    Everything due by ``published`` is emitted or dropped. While more is due than one batch takes, ``decided_until`` is ahead of it,
    and some of what is due by then is out. ``pending`` counts requests. A rebuild reads from the first of ``rebuild_points`` now,
    and may read from the others later. ``schemas`` has the schemas, by fingerprint, that requests may have been made under;
    ``configs`` says from which offset on, and what else decided when they were due, ours last. ``reached`` is how far records let
    the watermark move, ``newest`` the newest event time of any. ``prefix`` is `kafka.prefix`, which says whose topics these are.
    """

    version: int = STATE_VERSION
    state_id: str
    sequence: int = 0
    decided_until: int = 0
    published: int = -1
    offsets: Offsets
    reached: dict[str, int] = {}
    newest: int = 0
    rebuild_points: list[RebuildPoint]
    pending: int = 0
    schemas: dict[str, Schema] = {}
    configs: list[ConfigSince] = []
    prefix: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it has all that recovery goes on from."""
        offsets = [self.offsets, *(point.offsets for point in self.rebuild_points)]
        return all(each.keys() == set(TOPICS) for each in offsets) and bool(self.rebuild_points and self.configs)
