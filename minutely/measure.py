"""What a run measures about itself, epoch by epoch: rows, bytes, and how much one epoch changes."""

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
    inserted: int
    expired: int
    admitted_so_far: int
    expired_so_far: int
    file_bytes: int
    row_change: float
    dense_change: float


class Change(NamedTuple):
    """What `Measures.before` found: rows inserted, and squared norms of the rest's change and of what it was."""

    inserted: int
    squared_change: float
    squared_norm: float


class Measures:
    """Collects a record an epoch. The replica still has the rows of the epoch before, which saves keeping them twice."""

    def __init__(self, trainer: Trainer, replica: Replica) -> None:
        self._trainer = trainer
        self._replica = replica
        self._dense: npt.NDArray[np.float32] | None = None
        self.epochs: list[EpochRecord] = []

    def before(self, epoch: Mapping[str, Rows]) -> Change:
        """Compare sealed rows with the replica's, before it pulls them."""
        inserted, change, norm = 0, 0.0, 0.0
        for name, rows in epoch.items():
            if not len(rows.ids):
                continue
            table = self._replica.tables[name]
            known = table.contains(rows.ids)
            old, new = np.asarray(table.lookup(rows.ids)), rows.embeddings
            if not known.all():
                inserted += len(known) - int(known.sum())
                old, new = old[known], new[known]
            difference = new - old
            change += float(np.vdot(difference, difference))
            norm += float(np.vdot(old, old))
        return Change(inserted, change, norm)

    def published(self, now: int, manifest: Manifest, change: Change) -> None:
        """Note a published epoch."""
        stats = [table.stats for table in self._trainer.tables.values()]
        shards = manifest.shards
        dense = self._trainer.weights.vector.numpy().copy()
        dense_change = float("nan")
        if self._dense is not None:
            difference = dense - self._dense
            dense_change = float(np.sqrt(np.vdot(difference, difference) / np.vdot(self._dense, self._dense)))
        self._dense = dense
        self.epochs.append(
            EpochRecord(
                at=now,
                version=manifest.version,
                live=sum(item.live for item in stats),
                changed=sum(shard.changed for shard in shards),
                inserted=change.inserted,
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
