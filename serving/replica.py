"""A replica: scores from its own copy of rows and dense weights, which it pulls."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from paramserver.files import Files
from paramserver.follower import Follower
from paramserver.manifest import Dense, Manifest
from paramserver.table import Table
from streaming.columns import Columns, slice_columns
from streaming.labels import Label
from trainer.models import RankingModel, load_weights, predictions
from trainer.rows import RowPlan

_ROWS_AT_ONCE = 8192
_TRIES = 3


class Replica:
    """Scores impressions with the version it has. ``dense_every`` is in ms of the time that `pull` is told.

    Before the first dense version it scores with the weights that the model came with.
    """

    def __init__(
        self,
        files: Files,
        model: RankingModel,
        plan: RowPlan,
        tables: Mapping[str, Table],
        labels: Mapping[str, Label],
        dense_every: int,
    ) -> None:
        self._files = files
        self._model = model.eval()
        self._plan = plan
        self._labels = labels
        self._dense_every = dense_every
        self._dense: Dense | None = None
        self._dense_at: int | None = None
        self._lineage = 0
        self._follower = Follower(files, tables)
        self.tables = tables

    @property
    def manifest(self) -> Manifest | None:
        """The version that the rows are of."""
        return self._follower.manifest

    @property
    def sparse_version(self) -> int:
        """The version that the rows are of; 0 before the first."""
        return self._follower.version

    @property
    def dense_version(self) -> int:
        """The version that brought the dense weights; 0 before the first."""
        return self._dense.version if self._dense else 0

    def pull(self, now_ms: int, *, everything: bool = False) -> None:
        """Take newer rows, and newer dense weights where theirs are due, where the rows are of another lineage, whose weights
        they need, or where ``everything`` is asked for."""
        for attempt in range(_TRIES):
            try:
                self._take_dense(self._follower.pull(), now_ms, everything)
                return
            except FileNotFoundError:  # newer versions replaced the weights meanwhile: look again
                if attempt == _TRIES - 1:
                    raise

    def _take_dense(self, manifest: Manifest | None, now_ms: int, everything: bool) -> None:
        if manifest is None or manifest.dense is None or manifest.dense == self._dense:
            return
        due = self._dense_at is None or now_ms // self._dense_every > self._dense_at // self._dense_every
        if due or everything or manifest.lineage != self._lineage:
            load_weights(self._model, manifest.dense.file.read(self._files))
            self._dense, self._dense_at, self._lineage = manifest.dense, now_ms, manifest.lineage

    def score(self, columns: Columns, impressions: int) -> npt.NDArray[np.float32]:
        """Predictions for each label, float32 [impressions, labels]."""
        parts = [
            self._score(
                slice_columns(columns, at, min(at + _ROWS_AT_ONCE, impressions)), min(_ROWS_AT_ONCE, impressions - at)
            )
            for at in range(0, impressions, _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty((0, len(self._labels)), np.float32)

    def _score(self, columns: Columns, impressions: int) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            rows = self._plan.fetch(
                self._plan.ids(columns),
                self._model.row_dim,
                lambda table, keys, out: self.tables[table].lookup(keys, out),
            )
            stacked = self._plan.stack(rows, columns, impressions)
            outputs = self._model(stacked, self._plan.dense(columns, impressions))
            scores: npt.NDArray[np.float32] = predictions(self._labels, outputs).numpy()
            return scores
