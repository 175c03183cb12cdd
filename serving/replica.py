"""A replica: scores from its own copy of rows and dense weights, which it pulls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from paramserver.files import Files
from paramserver.follower import Follower
from paramserver.history import as_of
from paramserver.manifest import Dense, Manifest
from paramserver.table import Table
from paramserver.tables import Tables
from streaming.features.columns import ScoringColumns, slice_columns
from streaming.records.labels import Label
from trainer.growth import grow_weights
from trainer.losses import Loss
from trainer.models import RankingModel, load_weights
from trainer.rows import RowPlan

_ROWS_AT_ONCE = 8192
_TRIES = 3


class Versions(NamedTuple):
    """What scores were made from. Rows gathered while a delta is applied are of ``sparse`` or of ``sparse_until``."""

    sparse: int
    sparse_until: int
    dense: int


class Scored(NamedTuple):
    """Predictions for each label, float32 [impressions, labels], and the versions that made them."""

    scores: npt.NDArray[np.float32]
    versions: Versions


class _Weights(NamedTuple):
    model: RankingModel
    dense: Dense | None


class Replica:
    """Scores impressions with the version it has. When dense weights go out is the trainer's to say; a replica takes the newest.

    Before the first dense version it scores with the weights that the model came with. One thread may `pull` while another
    scores. ``applied`` is called with every version as soon as the rows are of it. With a ``form`` (see `paramserver.form`), it
    takes versions of that and of those with fewer features, which say with more what they said before, and no others.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import numpy as np
    >>> from paramserver.delta_log import Cut, DeltaLog
    >>> from paramserver.files import LocalFiles
    >>> from paramserver.table import Table
    >>> from serving.replica import Replica
    >>> from streaming.features.kinds import SparseFeature
    >>> from streaming.records.labels import Label
    >>> from trainer.models import dump_weights, make_model
    >>> from trainer.settings import ModelSettings
    >>> labels = {"click": Label(action="click", window="1m")}
    >>> model, plan = make_model(ModelSettings(), {"item": SparseFeature(column="item")}, labels, seed=1)
    >>> with TemporaryDirectory() as folder:
    ...     files, trained = LocalFiles(Path(folder), durable=True), Table(model.row_dim)
    ...     _ = trained.lookup_or_insert(np.array([7, 8]), now_ms=0)
    ...     cut = Cut(watermark=0, now_ms=0, offsets={}, dense=dump_weights(model))
    ...     _ = DeltaLog(files, "form", keep_deltas=60).publish({"item": trained.seal()}, cut)
    ...     replica = Replica(files, model, plan, {"item": Table(model.row_dim, row_format="float32")}, labels)
    ...     replica.pull()
    ...     scored = replica.score_with_versions({"item": np.array([7, 8, 9])}, 3)
    >>> scored.scores.shape, scored.versions
    ((3, 1), Versions(sparse=1, sparse_until=1, dense=1))
    """

    def __init__(
        self,
        files: Files,
        model: RankingModel,
        plan: RowPlan,
        tables: Mapping[str, Table],
        labels: Mapping[str, Label],
        applied: Callable[[Manifest], None] = lambda manifest: None,
        form: str | None = None,
    ) -> None:
        self._files = files
        self._weights = _Weights(model.eval(), None)
        self._plan = plan
        self._labels = labels
        self._predict = Loss(labels).predict
        self._lineage = 0
        self._follower = Follower(files, tables, applied, form)
        self._form = form
        self.tables = Tables({name: tables[name] for name in plan.tables})

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
        return self._weights.dense.version if self._weights.dense else 0

    @property
    def held_at(self) -> int:
        """The version that a rollback holds replicas at, as of the last pull without ``until``; 0 where none does."""
        return self._follower.held_at

    @property
    def loaded(self) -> bool:
        """Whether it has a model, or goes from one to another: not before the first version, nor after a change that failed."""
        return self._follower.manifest is not None and self._lineage != 0

    @property
    def whole(self) -> bool:
        """Whether rows and dense weights are of one model: not before the first version, nor while another model takes over."""
        now, coming = self._follower.manifest, self._follower.applying
        return now is not None and now.lineage == self._lineage and (coming is None or coming.lineage == self._lineage)

    def pull(self, *, until: int | None = None) -> None:
        """Take newer rows and the dense weights that their version serves. With ``until``, become that version.

        `BadFile` where a file is damaged: the versions up to there, each whole, are what is served.
        """
        for attempt in range(_TRIES):
            try:
                try:
                    self._follower.pull(until)
                finally:  # where a later version is damaged, the rows are of an earlier one, and need that one's weights
                    self._take_dense(self._follower.manifest)
                return
            except FileNotFoundError:  # newer versions replaced the weights meanwhile: look again
                if attempt == _TRIES - 1:
                    raise

    def _take_dense(self, manifest: Manifest | None) -> None:
        if manifest is None:
            return
        if manifest.dense is not None and manifest.dense != self._weights.dense:
            self._load_dense(manifest, manifest.dense)
        self._lineage = manifest.lineage

    def drifted(self) -> list[str]:
        """The tables whose rows are not those of their version, by the checksums of its manifest."""
        return self._follower.drifted()

    def forget_rows(self) -> None:
        """Have no version: the next pull loads all rows again."""
        self._follower.forget()

    def load_as_of(self, at: int) -> Manifest:
        """Take the model as of event time ``at`` (ms), older or newer than what is there: the version whose watermark is the
        newest that is not after it. `BadFile` where there is none, with what there is."""
        manifest = self._follower.load(as_of(self._files, at).version)
        if manifest.dense is not None:
            self._load_dense(manifest, manifest.dense)
        self._lineage = manifest.lineage
        return manifest

    def _load_dense(self, manifest: Manifest, dense: Dense) -> None:
        model, name = copy.deepcopy(self._weights.model), dense.file.name
        weights, form = dense.file.read(self._files), self._follower.form_of(manifest)
        if form != self._form and form is not None:
            weights = grow_weights(name, weights, form, model, self._plan)
        load_weights(model, name, weights)
        self._weights = _Weights(model, dense)

    def score(self, columns: ScoringColumns, impressions: int) -> npt.NDArray[np.float32]:
        """Predictions for each label, float32 [impressions, labels]."""
        return self.score_with_versions(columns, impressions).scores

    def score_with_versions(self, columns: ScoringColumns, impressions: int) -> Scored:
        """Predictions, and the versions of all rows and weights that went into them."""
        weights = self._weights
        first = self.sparse_version
        if 0 < impressions <= _ROWS_AT_ONCE:
            parts = [self._score(weights.model, columns, impressions)]
        else:
            parts = [
                self._score(
                    weights.model,
                    slice_columns(columns, at, min(at + _ROWS_AT_ONCE, impressions)),
                    min(_ROWS_AT_ONCE, impressions - at),
                )
                for at in range(0, impressions, _ROWS_AT_ONCE)
            ]
        # In this order: what is applied after the first look is the version by the second.
        applying, last = self._follower.applying, self.sparse_version
        seen = (first, last, last if applying is None else applying.version)
        versions = Versions(min(seen), max(seen), weights.dense.version if weights.dense else 0)
        if not parts:
            return Scored(np.empty((0, len(self._labels)), np.float32), versions)
        return Scored(parts[0] if len(parts) == 1 else np.concatenate(parts), versions)

    def _score(self, model: RankingModel, columns: ScoringColumns, impressions: int) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            rows = self._plan.fetch(self._plan.ids(columns), model.row_dim, self.tables.lookup)
            stacked = self._plan.stack(rows, columns, impressions)
            outputs = model(stacked, self._plan.dense(columns, impressions))
            scores: npt.NDArray[np.float32] = self._predict(outputs).numpy()
            return scores
