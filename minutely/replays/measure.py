"""What a run measures about itself, epoch by epoch: rows, bytes, and how much one epoch changes.

To look at an epoch takes a fifth as long as to publish it, so of a long run only some are looked at, as many as plots can show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paramserver.manifest import Manifest
from paramserver.table import Rows
from serving.replica import Replica
from trainer.worker import Trainer


class EpochRecord(NamedTuple):
    """One published epoch; ``at`` in ms of event time.

    ``row_change`` is the norm of the change of the rows that existed before, over their norm; ``dense_change`` the same of the
    dense weights. Both are nan where there was nothing before.
    """

    at: int
    version: int
    live: int
    changed: int
    expired: int
    admitted_so_far: int
    expired_so_far: int
    file_bytes: int
    row_change: float
    dense_change: float


class Change(NamedTuple):
    """What `Measures.before` found: squared norms of the change of rows that existed, and of what they were."""

    squared_change: float
    squared_norm: float


class Measures:
    """Collects a record of each ``every``-th epoch. The replica still has the rows of the epoch before, which saves keeping them
    twice."""

    def __init__(self, trainer: Trainer, replica: Replica, every: int) -> None:
        self._trainer = trainer
        self._replica = replica
        self._every = every
        self._dense: npt.NDArray[np.float32] | None = None
        self.epochs: list[EpochRecord] = []

    def before(self, epoch: Mapping[str, Rows], version: int) -> Change | None:
        """Compare the sealed rows of a version with the replica's, before it pulls them; None where it is not looked at."""
        if version % self._every:
            return None
        change, norm = 0.0, 0.0
        for name, rows in epoch.items():
            if not len(rows.ids):
                continue
            table = self._replica.tables[name]
            known = table.contains(rows.ids)
            old, new = np.asarray(table.lookup(rows.ids)), rows.embeddings
            if not known.all():
                old, new = old[known], new[known]
            difference = new - old
            change += float(np.vdot(difference, difference))
            norm += float(np.vdot(old, old))
        return Change(change, norm)

    def published(self, now: int, manifest: Manifest, change: Change | None) -> None:
        """Note a published epoch."""
        dense, before = self._trainer.weights.vector.numpy(), self._dense
        self._dense = None if (manifest.version + 1) % self._every else dense.copy()
        if change is None:
            return
        stats = [table.stats for table in self._trainer.tables.values()]
        shards = manifest.shards
        dense_change = float("nan")
        if before is not None:
            difference = dense - before
            dense_change = float(np.sqrt(np.vdot(difference, difference) / np.vdot(before, before)))
        self.epochs.append(
            EpochRecord(
                at=now,
                version=manifest.version,
                live=sum(item.live for item in stats),
                changed=sum(shard.changed for shard in shards),
                expired=sum(shard.expired for shard in shards),
                admitted_so_far=sum(item.admitted for item in stats),
                expired_so_far=sum(item.expired for item in stats),
                file_bytes=sum(shard.rows.size for shard in shards),
                row_change=(change.squared_change / change.squared_norm) ** 0.5
                if change.squared_norm
                else float("nan"),
                dense_change=dense_change,
            )
        )
