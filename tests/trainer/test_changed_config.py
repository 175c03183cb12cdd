"""A changed config goes on where it only adds, with what is new empty; otherwise it is refused, with the difference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from basis.problems import BadFile
from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.settings import TablesSettings
from serving.replica import Replica
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.features.kinds import DenseFeature, Feature, FeatureSet, SparseFeature, VectorFeature
from streaming.log import EXAMPLES
from streaming.records.examples import ExampleColumns, ExampleFormat
from streaming.records.labels import LabelSet
from tests.trainer.test_retrain import FEATURES, LABELS, NEVER, START
from trainer.models import make_model
from trainer.online import OnlineTrainer
from trainer.settings import ModelSettings, TrainSettings
from trainer.worker import Trainer

GROWN: dict[str, Feature] = {"hour": SparseFeature(column="h"), **FEATURES}
KINDS = [ModelSettings(kind="deepfm", dim=2, hidden=[3]), ModelSettings(kind="dlrm", dim=2, hidden=[3])]


class Config:
    """Features and a model, and what is made of them."""

    def __init__(self, features: Mapping[str, Feature], model: ModelSettings) -> None:
        self.features, self.model = features, model
        self.format = ExampleFormat(features, LABELS)

    def form(self, **changes: Any) -> str:
        sections = {
            "features": TypeAdapter(FeatureSet).dump_python(dict(self.features), mode="json"),
            "labels": TypeAdapter(LabelSet).dump_python(dict(LABELS), mode="json"),
            "model": self.model.model_dump(mode="json"),
            "tables": TablesSettings().model_dump(mode="json"),
        }
        return json.dumps({**sections, **changes})

    def trainer(self) -> Trainer:
        model, plan = make_model(self.model, self.features, LABELS, 1)
        tables = {name: TablesSettings().make(name, model.row_dim, 1) for name in plan.tables}
        return Trainer(model, plan, tables, LABELS, self.format, TrainSettings())

    def replica(self, files: LocalFiles) -> Replica:
        model, plan = make_model(self.model, self.features, LABELS, 1)
        tables = {name: TablesSettings().make_replica(name, model.row_dim, 1) for name in plan.tables}
        return Replica(files, model, plan, tables, LABELS, form=self.form())

    def record(self, at: int) -> bytes:
        """Three examples of one moment."""
        numbers = np.arange(3 * at, 3 * at + 3)
        times = np.full(3, START + at * 20_000, np.int64)
        labels = (numbers % 2).astype(np.float32)[:, None]
        rest = ExampleColumns([f"e{n}" for n in numbers], labels, times - 10, times, times)
        columns = {"user": numbers % 7, "example": numbers, "hour": numbers % 2 + 100}
        batch = self.format.build({name: columns[name] for name in self.features}, rest)
        return self.format.encode(batch, int(times[0]) + 1)


class Place:
    """A log and its versions, for trainers of one config after the other."""

    def __init__(self, folder: Path) -> None:
        self.log = EmbeddedLog(folder / "log", durable=False)
        self.files = LocalFiles(folder / "deltas", durable=False)
        self.appended = 0

    def start(self, config: Config, **changes: Any) -> OnlineTrainer:
        deltas = DeltaLog.resume(self.files, config.form(**changes), keep_deltas=4)
        clock = EventClock(1)
        return OnlineTrainer(
            config.trainer(), self.log, [0], config.format, self.files, deltas, clock, sparse_every=1, dense_every=NEVER
        )

    def train(self, config: Config, online: OnlineTrainer, versions: int) -> None:
        for _ in range(versions):
            self.log.append(EXAMPLES, 0, [config.record(self.appended)])
            self.appended += 1
            online.step()
            assert online.publish() is not None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.log.close()


def outputs(trainer: Trainer) -> bytes:
    """What the model says of 20 impressions, among them an hour that nobody has seen."""
    columns = {"user": np.arange(20) % 7, "example": np.arange(20), "hour": np.arange(20) % 5 + 99}
    ids = trainer.plan.ids({name: columns[name] for name in columns})
    rows = trainer.plan.fetch(ids, trainer.model.row_dim, trainer.tables.lookup)
    trainer.model.eval()
    with torch.inference_mode():
        said = trainer.model(trainer.plan.stack(rows, columns, 20), trainer.plan.dense(columns, 20)).numpy()
    trainer.model.train()
    return np.round(said, 5).tobytes()


@pytest.mark.parametrize("model", KINDS, ids=lambda model: model.kind)
@pytest.mark.parametrize("versions", [3, 5])
def test_an_added_feature_starts_empty_and_training_goes_on(place: Place, model: ModelSettings, versions: int) -> None:
    before, after = Config(FEATURES, model), Config(GROWN, model)
    online = place.start(before)
    place.train(before, online, versions)
    grown = place.start(after)
    assert len(grown.trainer.tables["hour"]) == 0
    assert outputs(grown.trainer) == outputs(online.trainer), "the model says what it said"
    for name in FEATURES:
        ours, theirs = grown.trainer.tables[name].export(), online.trainer.tables[name].export()
        for column in ("ids", "embeddings", "state", "last_seen_seconds", "counts"):
            assert getattr(ours, column).tobytes() == getattr(theirs, column).tobytes()
    place.train(after, grown, 3)
    assert grown.trainer.tables["hour"].export().ids.tolist() == [100, 101]
    rows = grown.trainer.tables["example"].export()
    assert rows.ids.tolist() == list(range(3 * place.appended))
    assert set(rows.counts.tolist()) == {1}
    again = place.start(after)
    assert again.trainer.state() == grown.trainer.state(), "the next start is of the same config"
    replica = after.replica(place.files)
    replica.pull()
    for name, table in grown.trainer.tables.items():
        assert replica.tables[name].export().embeddings.tobytes() == table.export().embeddings.tobytes()
    newest = grown.deltas.newest
    assert newest is not None
    assert replica.dense_version == versions + 1, "replicas got weights of the new form with its first version"


GROWN_BY_NUMBERS: dict[str, Feature] = {
    "age": DenseFeature(kind="dense", column="a"),
    **GROWN,
    "face": VectorFeature(kind="vector", column="f", size=2),
    "maker": SparseFeature(column="m", table="user"),
}


@pytest.mark.parametrize("model", KINDS, ids=lambda model: model.kind)
@pytest.mark.parametrize("features", [GROWN, GROWN_BY_NUMBERS], ids=["ids", "ids, numbers, and a table that is shared"])
def test_a_replica_with_a_new_feature_serves_the_versions_before_as_they_were(
    place: Place, model: ModelSettings, features: dict[str, Feature]
) -> None:
    """In a rolling restart replicas may come first, or last."""
    before, after = Config(FEATURES, model), Config(features, model)
    online = place.start(before)
    place.train(before, online, 3)
    first, last, late = after.replica(place.files), before.replica(place.files), after.replica(place.files)
    rng = np.random.default_rng(1)
    columns = {
        **{name: rng.integers(0, 9, 20) for name in ("user", "example", "hour")},
        "maker": rng.integers(1000, 1009, 20),  # users have rows in their table
        "age": rng.normal(size=20).astype(np.float32),
        "face": rng.normal(size=(20, 2)).astype(np.float32),
    }

    def check_equal(version: int) -> None:
        for replica in (first, last):
            replica.pull()
            assert (replica.sparse_version, replica.whole) == (version, True)
        ours, theirs = (replica.score(columns, 20) for replica in (first, last))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
        assert len(np.unique(ours)) > 5

    check_equal(3)
    place.train(before, online, 2)
    check_equal(5)
    scores = last.score(columns, 20)
    grown = place.start(after)
    for _ in range(3):
        times = START + place.appended * 20_000
        numbers = np.arange(3 * place.appended, 3 * place.appended + 3)
        stamps = np.full(3, times, np.int64)
        rest = ExampleColumns(
            [f"e{n}" for n in numbers], (numbers % 2).astype(np.float32)[:, None], stamps - 10, stamps, stamps
        )
        batch = after.format.build(
            {"user": numbers % 7, "example": numbers}
            | {name: columns[name][:3] for name in features.keys() - FEATURES.keys()},
            rest,
        )
        place.log.append(EXAMPLES, 0, [after.format.encode(batch, times + 1)])
        place.appended += 1
        grown.step()
        assert grown.publish() is not None
    for replica in (first, late):
        replica.pull()
        assert (replica.sparse_version, replica.whole) == (8, True)
        assert replica.drifted() == []
    assert first.score(columns, 20).tobytes() == late.score(columns, 20).tobytes()
    with pytest.raises(BadFile, match=r"(?s)version \d: made by another config.*features\.hour: there before, not now"):
        last.pull()
    assert (last.sparse_version, last.whole) == (5, True)
    assert last.score(columns, 20).tobytes() == scores.tobytes(), "it goes on serving what it has"


@pytest.mark.parametrize(
    ("config", "changes", "difference"),
    [
        (Config(FEATURES, ModelSettings(dim=3, hidden=[3])), {}, r"model\.dim: 2 before, 3 now"),
        (Config(FEATURES, ModelSettings(dim=2, hidden=[4])), {}, r"model\.hidden: \[3\] before, \[4\] now"),
        (
            Config({"user": FEATURES["user"]}, ModelSettings(dim=2, hidden=[3])),
            {},
            r"features\.example: there before, not now$",
        ),
        (
            Config(FEATURES, ModelSettings(dim=2, hidden=[3])),
            {"tables": TablesSettings(expire_after="1d").model_dump(mode="json")},
            r'tables\.expire_after: nothing before, "1d" now',
        ),
    ],
    ids=["dim", "hidden", "a feature less", "tables"],
)
def test_what_does_not_fit_is_refused_with_the_difference(
    place: Place, config: Config, changes: dict[str, Any], difference: str
) -> None:
    before = Config(FEATURES, ModelSettings(dim=2, hidden=[3]))
    place.train(before, place.start(before), 2)
    names = sorted(place.files.names())
    with pytest.raises(BadFile, match=f"(?s)version 2: made by another config; allowed: .*{difference}"):
        place.start(config, **changes)
    assert sorted(place.files.names()) == names
    assert place.start(before).workers[0].offset == 2, "with its own config it goes on"
