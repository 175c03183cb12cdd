"""Learned default rows: what an id without a row reads as, trained on the impressions that were served with it.

An id reads as its table's default row from its first impression until it has a row, so what the default row has to stand for are
the impressions served up to then: all of them, whenever their labels were decided. An id's first *examples* would be others: the
first to be decided are those with an action, so a row trained on them would take nearly every newcomer for a success.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paramserver.table import Table
from paramserver.tables import BatchIds

_MOST_IDS = 1 << 18
Times = npt.NDArray[np.int64]


class Newcomers:
    """Which ids of a table got their row so lately that impressions served before it may still become examples.

    Kept for ``wait_ms`` of event time, at most 262,144 ids (4 MiB), of which the oldest go first.
    """

    def __init__(self, wait_ms: int) -> None:
        self._wait_ms = wait_ms
        self._ids = np.empty(0, np.int64)  # ascending
        self._since = np.empty(0, np.int64)

    def admit(self, ids: npt.NDArray[np.int64], now_ms: int) -> None:
        """Ids int64 [n], some of them more than once, have a row from now on."""
        new = np.unique(ids)
        kept = (self._since > now_ms - self._wait_ms) & ~np.isin(self._ids, new, assume_unique=True)
        all_ids = np.concatenate((self._ids[kept], new))
        since = np.concatenate((self._since[kept], np.full(len(new), now_ms)))
        if len(all_ids) > _MOST_IDS:
            newest = np.argsort(since, kind="stable")[-_MOST_IDS:]
            all_ids, since = all_ids[newest], since[newest]
        order = np.argsort(all_ids)
        self._ids, self._since = all_ids[order], since[order]

    def were_new(self, ids: npt.NDArray[np.int64], served_at: Times) -> npt.NDArray[np.bool_]:
        """Which of the ids int64 [n] got their row only after the impression in which they were served at, int64 [n] (ms)."""
        if not len(self._ids):
            return np.zeros(len(ids), np.bool_)
        place = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        found: npt.NDArray[np.bool_] = (self._ids[place] == ids) & (served_at < self._since[place])
        return found

    def state(self) -> Tensor:
        """Ids and since when (ms), int64 [2, n]."""
        return torch.from_numpy(np.stack((self._ids, self._since)))

    def load_state(self, state: Tensor) -> None:
        """Go on from what `state` gave, int64 [2, n]; ``ValueError`` where it did not."""
        ids, since = state.numpy().copy()
        if len(ids) > _MOST_IDS or (ids[1:] <= ids[:-1]).any():
            raise ValueError(f"{len(ids)} ids; allowed: at most {_MOST_IDS}, ascending")
        self._ids, self._since = ids, since


class Unseen(NamedTuple):
    """Where in a batch's rows ids were served as their table's default row.

    ``places`` int64 [k], ascending, and ``examples`` int64 [k], in which example each is; ``parts`` says for each table which of
    them are its own.
    """

    places: npt.NDArray[np.int64]
    examples: npt.NDArray[np.int64]
    parts: list[tuple[str, slice]]


class DefaultRows:
    """The default rows that are learned, of ``tables`` by name; see the module. ``wait_ms``: the longest that an example takes."""

    def __init__(self, tables: Mapping[str, Table], wait_ms: int) -> None:
        self._tables = dict(tables)
        self._newcomers = {name: Newcomers(wait_ms) for name in tables}

    def with_rows(self, ids: BatchIds) -> dict[str, npt.NDArray[np.bool_]]:
        """Which of a batch's ids have a row, by table; to be asked before they are looked up and get theirs."""
        return {
            part.table: self._tables[part.table].contains(part.ids)
            for part in ids.parts()
            if part.table in self._tables
        }

    def find(
        self,
        ids: BatchIds,
        had_row: Mapping[str, npt.NDArray[np.bool_]],
        examples: npt.NDArray[np.int64],
        served_at: Times,
        now_ms: int,
    ) -> Unseen | None:
        """Where a batch whose rows were looked up has ids that were served without one; None where nowhere.

        ``had_row`` is what `with_rows` said before, ``examples`` int64 [ids] says in which example each id is,
        ``served_at`` int64 [examples] (ms) when that was served.
        """
        places, parts, count = [], [], 0
        for part in ids.parts():
            if part.table not in self._tables:
                continue
            newcomers, had = self._newcomers[part.table], had_row[part.table]
            has = self._tables[part.table].contains(part.ids)
            if (has & ~had).any():
                newcomers.admit(part.ids[has & ~had], now_ms)
            served = served_at[examples[part.start : part.stop]]
            found = np.flatnonzero(~has | newcomers.were_new(part.ids, served)) + part.start
            if len(found):
                places.append(found)
                parts.append((part.table, slice(count, count + len(found))))
                count += len(found)
        if not places:
            return None
        every = np.concatenate(places)
        return Unseen(every, examples[every], parts)

    def values(self, unseen: Unseen) -> Tensor:
        """What those ids read as, float32 [k, row_dim]."""
        rows = [
            np.broadcast_to(embedding, (part.stop - part.start, len(embedding)))
            for name, part in unseen.parts
            for embedding in (self._tables[name].default_row()[0],)
        ]
        return torch.from_numpy(np.concatenate(rows))

    def apply(self, unseen: Unseen, gradients: Tensor) -> None:
        """One step of its table's optimizer for each default row, with the sum of its gradients, of float32 [k, row_dim]."""
        for name, part in unseen.parts:
            self._tables[name].apply_default_row(gradients[part].sum(0).numpy())

    def state(self) -> dict[str, Tensor]:
        """What a restart needs besides the rows, by table."""
        return {name: newcomers.state() for name, newcomers in self._newcomers.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; tables that it does not name begin without newcomers."""
        for name, newcomers in self._newcomers.items():
            try:
                newcomers.load_state(state.get(name, torch.empty((2, 0), dtype=torch.int64)))
            except ValueError as error:
                raise ValueError(f"newcomers.{name}: {error}") from None
