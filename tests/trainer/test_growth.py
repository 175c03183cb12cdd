"""A model that gets new features says what it said before, and goes on learning; what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from basis.problems import BadFile
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from paramserver.form import differences
from paramserver.settings import TablesSettings
from streaming.features.columns import Columns
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.records.examples import ExampleColumns, ExampleFormat
from streaming.records.labels import Label
from trainer.cut import cut_of
from trainer.growth import grow_state
from trainer.models import make_model
from trainer.newcomers import DefaultRows
from trainer.recovery import recover_newest
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import Trainer

LABELS = {"like": Label(action="like", window="1m"), "share": Label(action="share", window="1m")}
OLD: dict[str, Feature] = {
    "user": SparseFeature(column="u"),
    "item": SparseFeature(column="i"),
    "price": DenseFeature(kind="dense", column="p"),
}
NEW: dict[str, Feature] = {
    "tag": SparseFeature(column="t"),
    "item": OLD["item"],
    "picture": VectorFeature(kind="vector", column="v", size=2),
    "user": OLD["user"],
    "price": OLD["price"],
    "maker": SparseFeature(column="m", table="item"),
}


def form_of(features: Mapping[str, Feature], model: ModelSettings) -> str:
    parts = {name: feature.model_dump(mode="json") for name, feature in features.items()}
    labels = {name: label.model_dump(mode="json") for name, label in LABELS.items()}
    sections = {"features": parts, "labels": labels, "model": model.model_dump(mode="json"), "tables": {"only": {}}}
    return json.dumps(sections)


def make(features: Mapping[str, Feature], settings: ModelSettings) -> Trainer:
    model, plan = make_model(settings, features, LABELS, seed=3)
    tables = {name: TablesSettings().make(name, model.row_dim, 3) for name in plan.tables}
    return Trainer(model, plan, tables, LABELS, ExampleFormat(features, LABELS), TrainSettings())


def columns(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {
        "user": rng.integers(0, 9, count),
        "item": rng.integers(0, 9, count),
        "tag": rng.integers(0, 9, count),
        "maker": rng.integers(100, 109, count),
        "price": rng.normal(3, 2, count).astype(np.float32),
        "picture": rng.normal(size=(count, 2)).astype(np.float32),
    }


def train(trainer: Trainer, features: Mapping[str, Feature], seed: int) -> None:
    rng = np.random.default_rng(seed)
    stamps = np.full(64, seed * 60_000)
    labels = rng.integers(0, 2, (64, 2)).astype(np.float32)
    rest = ExampleColumns([f"{seed}.{n}" for n in range(64)], labels, stamps, stamps, stamps)
    found = columns(rng, 64)
    trainer.train(ExampleFormat(features, LABELS).build({name: found[name] for name in features}, rest))


def outputs(trainer: Trainer, given: Columns) -> np.ndarray:
    plan, model = trainer.plan, trainer.model.eval()
    with torch.no_grad():
        rows = plan.fetch(plan.ids(given), model.row_dim, trainer.tables.lookup)
        found: np.ndarray = model(plan.stack(rows, given, 50), plan.dense(given, 50)).numpy()
    model.train()
    return found


@pytest.mark.parametrize("kind", ["deepfm", "dlrm"])
@pytest.mark.parametrize("old", [OLD, {"user": OLD["user"], "item": OLD["item"]}], ids=["dense", "no dense"])
def test_new_features_start_empty_and_what_was_learned_stays(
    tmp_path: Path, kind: str, old: Mapping[str, Feature]
) -> None:
    settings = ModelSettings(kind=kind, dim=4, hidden=[8, 5])  # type: ignore[arg-type]
    files = LocalFiles(tmp_path, durable=False)
    before = make(old, settings)
    for seed in range(1, 6):
        train(before, old, seed)
    DeltaLog(files, form_of(old, settings), 4).publish(before.seal(), cut_of_nothing(before))
    deltas = DeltaLog.resume(files, form_of(NEW, settings), 4)
    after = make(NEW, settings)
    found = recover_newest(files, deltas, after)
    assert found is not None and found.version == 1
    given = columns(np.random.default_rng(9), 50)
    assert np.allclose(outputs(before, given), outputs(after, given), atol=1e-5)
    assert not len(after.tables["tag"]) and len(after.tables["item"]) == len(before.tables["item"])
    weights = after.weights.vector.clone()
    for seed in range(6, 9):
        train(after, NEW, seed)
    assert len(after.tables["tag"]) == 9
    assert not torch.equal(weights, after.weights.vector)
    deltas.publish(after.seal(), cut_of_nothing(after))
    again = make(NEW, settings)
    assert recover_newest(files, DeltaLog.resume(files, form_of(NEW, settings), 4), again) is not None
    assert np.array_equal(outputs(after, given), outputs(again, given))


def test_newcomers_stay_newcomers() -> None:
    """Impressions that were served with the default row go on training it: a restart with another feature forgot them all."""

    def with_default_rows(features: Mapping[str, Feature]) -> Trainer:
        settings = TablesSettings(admit_after=2, default_row="learned")
        model, plan = make_model(ModelSettings(dim=4, hidden=[8]), features, LABELS, seed=3)
        tables = {name: settings.make(name, model.row_dim, 3) for name in plan.tables}
        form, train_settings = ExampleFormat(features, LABELS), TrainSettings()
        return Trainer(model, plan, tables, LABELS, form, train_settings, default_rows=DefaultRows(tables, 60_000))

    before = with_default_rows(OLD)
    for seed in (1, 2):
        train(before, OLD, seed)
    after = with_default_rows(NEW)
    form = form_of(OLD, ModelSettings(dim=4, hidden=[8]))
    after.load_state("state", grow_state("state", before.state(), form, after.model, after.plan))
    then, now = load(before.state()), load(after.state())
    assert then["newcomers.user"].shape == (2, 9)
    for table in ("user", "item"):
        assert torch.equal(then[f"newcomers.{table}"], now[f"newcomers.{table}"])
    assert before.first_at is not None and after.first_at is None, "and its dense weights go out often again"


def cut_of_nothing(trainer: Trainer) -> Cut:
    return cut_of(trainer, 0, 1, {})


def test_what_does_not_fit_is_refused_with_the_difference(tmp_path: Path) -> None:
    settings = ModelSettings(dim=4, hidden=[8])
    form = form_of(OLD, settings)
    files = LocalFiles(tmp_path, durable=False)
    trainer = make(OLD, settings)
    DeltaLog(files, form, 4).publish(trainer.seal(), cut_of_nothing(trainer))
    with pytest.raises(BadFile, match=r"another config(.|\n)*model\.dim: 4 before, 5 now"):
        DeltaLog.resume(files, form_of(OLD, ModelSettings(dim=5, hidden=[8])), 4)
    assert differences(form, form_of(NEW, settings)) == {}
    less = {name: feature for name, feature in OLD.items() if name != "price"}
    assert differences(form, form_of(less, settings)) == {"features.price": "there before, not now"}
    moved = {**OLD, "user": SparseFeature(column="other")}
    assert differences(form, form_of(moved, settings)) == {"features.user.column": '"u" before, "other" now'}
    other = {**json.loads(form), "labels": dict(reversed(json.loads(form)["labels"].items()))}
    assert differences(form, json.dumps(other)) == {"labels": "like, share before, share, like now"}
    later = json.loads(form)
    del later["features"]["user"]["zone"]  # as a program wrote it that had no such setting
    assert differences(json.dumps(later), form) == {} == differences(form, json.dumps(later))
    own = {**json.loads(form_of(NEW, settings)), "tables": {"only": {"tag": {"clip": 1}, "user": {"clip": 1}}}}
    assert differences(form, json.dumps(own)) == {"tables.only.user.clip": "nothing before, 1 now"}
