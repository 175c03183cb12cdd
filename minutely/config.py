"""A pipeline's configuration: one YAML file, every mistake in it named with its line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from basis.problems import Problem, Problems
from basis.settings import Section, format_duration, matching
from minutely.built_in_data import movielens_100k
from minutely.config_mistakes import explain
from minutely.yaml_file import place_of, read_yaml
from paramserver.settings import SyncSettings, TablesSettings
from serving.settings import ServeSettings
from streaming.archive.table import ArchiveSettings, taken_for_one
from streaming.features.kinds import DenseFeature, FeatureSet, SparseFeature, WeightFeature
from streaming.join.negatives import Negatives, NegativeSettings
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec, LiveOutput
from streaming.kafka.settings import KafkaSettings
from streaming.live.mistakes import mistakes as live_mistakes
from streaming.live.settings import LiveSettings
from streaming.live.spec import LiveSpec
from streaming.records.labels import LabelSet
from streaming.source.files.find import Folder, folder_of
from streaming.source.settings import SourceSettings
from trainer.settings import ModelSettings, TrainSettings

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class Pipeline(Section):
    """A whole pipeline: where events come from, features, labels, model, and how fresh it is kept."""

    name: Annotated[str, matching(r"[A-Za-z0-9_-]{1,64}", "1 to 64 of letters, digits and _ -")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    source: SourceSettings
    features: FeatureSet
    live: LiveSettings = LiveSettings()
    user: str | None = None
    """The sparse feature that is the user's id, the one named ``user`` by default; for the AUC of users' first impressions."""
    labels: LabelSet
    join: JoinSettings = JoinSettings()
    negatives: NegativeSettings = NegativeSettings()
    archive: ArchiveSettings | None = None
    kafka: Annotated[KafkaSettings, Field(validate_default=True)] = KafkaSettings()
    model: ModelSettings = ModelSettings()
    tables: TablesSettings = TablesSettings()
    train: TrainSettings = TrainSettings()
    sync: SyncSettings = SyncSettings()
    serve: ServeSettings = ServeSettings()

    @field_validator("kafka")
    @classmethod
    def _kept_for_as_long_as_needed(cls, kafka: KafkaSettings, info: ValidationInfo) -> KafkaSettings:
        """A retention that is not given follows the windows."""
        labels, join = info.data.get("labels"), info.data.get("join")
        if labels is None or join is None or "retention" in kafka.model_fields_set:
            return kafka
        return kafka.model_copy(update={"retention": max(kafka.retention, _needed_ms(JoinSpec({}, labels, join)))})

    @model_validator(mode="after")
    def _with_weight(self) -> Pipeline:
        """The feature that is the weight says so itself, wherever its values come in."""
        if (name := self.train.weight) is not None and isinstance(feature := self.features.get(name), DenseFeature):
            self.features[name] = WeightFeature.model_validate(feature.model_dump())
        return self

    @model_validator(mode="after")
    def _with_definitions(self) -> Pipeline:
        """Live features have their definitions with them, on which their recorded values depend."""
        self.features.update(self.live_spec().defined(self.features))
        return self

    def live_spec(self) -> LiveSpec:
        """What live features count."""
        return LiveSpec.of(self.live, self.labels)

    def form(self) -> str:
        """What decides the form of rows and weights, features, labels, model and tables, as JSON; see `paramserver.form`."""
        parts = {"features", "labels", "model", "tables"}
        form = self.model_dump(
            mode="json",
            include=parts,
            exclude={"labels": {"__all__": {"max_value"}}, "features": {self.train.weight or ""}},
        )
        live = {name: each.definition for name, each in self.features.items() if each.definition is not None}
        form |= {"live": live} if live else {}
        return msgspec.json.encode(form).decode()

    def join_spec(self) -> JoinSpec:
        """What the pipeline's joiners join in a replay."""
        negatives = Negatives(self.negatives.keep, self.seed)
        return JoinSpec(self.features, self.labels, self.join, negatives, self.source.earliest_ms)

    def service_join_spec(self) -> JoinSpec:
        """What the pipeline's joiners join as a service, which also writes what live features count."""
        live = self.live_spec()
        return self.join_spec()._replace(live=None if live.kept_ms is None else LiveOutput(live, self.kafka.partitions))

    @property
    def table_names(self) -> list[str]:
        """The tables that features have rows in."""
        sparse = [(name, item) for name, item in self.features.items() if isinstance(item, SparseFeature)]
        return sorted({item.table or name for name, item in sparse})

    @property
    def user_feature(self) -> str | None:
        """The feature that is the user's id, None where the config has none."""
        name = self.user or "user"
        return name if name in self.single_id_features() else None

    def single_id_features(self) -> list[str]:
        """The sparse features of one id an impression."""
        return [name for name, item in self.features.items() if isinstance(item, SparseFeature) and not item.is_list]

    def data_folder(self) -> Folder:
        """The folder of the source's files; a data set that is nowhere is fetched. `Problems` where an address is none."""
        return movielens_100k() if self.source.dir is None else folder_of(self.source.dir)


def _needed_ms(spec: JoinSpec) -> int:
    """How far back (ms) records are to be kept: a joiner that lost its state reads two windows and ``lateness`` back
    (`streaming.join.configs.keep_ms`). One more ``lateness`` is for what was sent late."""
    return 2 * spec.wait_ms


def load_pipeline(path: Path, data: Path | str | None = None) -> Pipeline:
    """The pipeline in a file, its logs in ``data`` where given; `Problems` with every mistake in it.

    >>> from pathlib import Path
    >>> from minutely.config import load_pipeline
    >>> pipeline = load_pipeline(Path("examples/shop/shop.yaml"))
    >>> pipeline.name, list(pipeline.labels), pipeline.table_names
    ('shop', ['click', 'spent'], ['brand', 'categories', 'hour', 'item', 'user'])
    """
    pipeline, problems = _validate(path, *read_yaml(path), data)
    if pipeline is None or problems:
        raise Problems(problems)
    return pipeline


class Right(NamedTuple):
    """The mistakes in a file, and a pipeline to check its logs by, if its source is right: ``is_whole``, or without features that
    are wrong, and with a label that stands for its own."""

    problems: list[Problem]
    pipeline: Pipeline | None
    is_whole: bool


def load_what_is_right(path: Path, data: Path | str | None) -> Right:
    """Return as much of a file as its logs can be checked by."""
    loaded, tree = read_yaml(path)
    pipeline, problems = _validate(path, loaded, tree, data)
    wrong = {part for problem in problems for part in problem.place.split(", ")[-1:]}
    if any(place.startswith("source") for place in wrong):
        return Right(problems, None, False)
    out = {place.split(".")[1] for place in wrong if place.startswith("features.")}
    if pipeline is not None and not out:
        return Right(problems, pipeline, True)
    parts: dict[str, Any] = {"name": "check", "labels": {"any": {"action": "any", "window": "1s"}}}
    parts |= {key: loaded[key] for key in ("source", "features") if key in loaded}
    if out:
        parts["features"] = {name: feature for name, feature in parts["features"].items() if name not in out}
    try:
        return Right(problems, Pipeline.model_validate(parts), False)
    except ValidationError:  # what is wrong with all features together, or with what needs those that are out
        return Right(problems, None, False)


def in_file(path: Path, problems: list[Problem]) -> list[Problem]:
    """Problems of a pipeline's keys, with the file and the line of each; others as they are."""
    tree = read_yaml(path)[1]

    def placed(problem: Problem) -> Problem:
        loc = tuple(problem.place.split("."))
        is_key = loc[0] in Pipeline.model_fields
        return problem._replace(file=str(path), place=place_of(tree, loc)) if is_key else problem

    return [placed(problem) for problem in problems]


def _validate(
    path: Path, loaded: Any, tree: yaml.Node | None, data: Path | str | None
) -> tuple[Pipeline | None, list[Problem]]:
    if not isinstance(loaded, dict):
        what = "empty" if loaded is None else "a list" if isinstance(loaded, list) else "a text or a number"
        allowed = f"is no configuration; allowed: YAML with keys {', '.join(Pipeline.model_fields)}"
        raise Problems([Problem(str(path), "file", what, allowed)])
    problems = _place_source(path, loaded, tree, data)
    try:
        pipeline = Pipeline.model_validate(loaded)
    except ValidationError as error:
        return None, problems + [explain(path, tree, Pipeline, item) for item in error.errors()]
    return pipeline, problems + _cross_check(path, tree, pipeline)


def _place_source(path: Path, loaded: dict[str, Any], tree: yaml.Node | None, data: Path | str | None) -> list[Problem]:
    """Put ``data``, else environment variables, into ``source.dir``, in place."""
    source = loaded.get("source")
    if not isinstance(source, dict):
        return []
    if data is not None:
        source["dir"] = str(data)
    if not isinstance(source.get("dir"), str):
        return []
    missing = [name for name in _VARIABLE.findall(source["dir"]) if name not in os.environ]
    source["dir"] = _VARIABLE.sub(lambda match: os.environ.get(match[1], ""), source["dir"])
    place = place_of(tree, ("source", "dir"))
    return [
        Problem(str(path), place, f"${{{name}}}", "the variable is not set; set it, or use --data DIR")
        for name in missing
    ]


def _cross_check(path: Path, tree: yaml.Node | None, pipeline: Pipeline) -> list[Problem]:
    """What sections say of each other."""
    found: list[tuple[tuple[str, ...], str, str]] = []
    sides, actions = list(pipeline.source.sides), list(pipeline.source.actions)
    for name, feature in pipeline.features.items():
        if not (isinstance(feature, SparseFeature) and feature.cross) and getattr(feature, "side", None) not in (
            None,
            *sides,
        ):
            found.append(
                (("features", name, "side"), str(feature.side), f"allowed: {', '.join(sides) or 'no side table'}")
            )
    for name, label in pipeline.labels.items():
        for key, action in (("action", label.action), ("decided_by", label.decided_by)):
            if action is not None and action not in actions and pipeline.source.engagements is None:
                found.append((("labels", name, key), action, f"allowed: {', '.join(actions)}"))
    if pipeline.archive is not None:
        for part, names in (("features", list(pipeline.features)), ("labels", list(pipeline.labels))):
            for name, earlier in taken_for_one(names):
                allowed = f"allowed: a name that differs from {earlier} in more than case, since the archive takes both for one"
                found.append(((part, name), name, allowed))
    if pipeline.user is not None and pipeline.user_feature is None:
        found.append((("user",), pipeline.user, f"allowed: {', '.join(pipeline.single_id_features())}"))
    if pipeline.train.weight is not None:
        weights = [
            name
            for name, feature in pipeline.features.items()
            if isinstance(feature, DenseFeature) and feature.transform != "age"
        ]
        if pipeline.train.weight not in weights:
            allowed = f"allowed: a feature with kind: dense that is no age: {', '.join(weights) or 'there is none'}"
            found.append((("train", "weight"), pipeline.train.weight, allowed))
    known = None if pipeline.source.engagements is not None else actions
    found += live_mistakes(pipeline.live_spec(), pipeline.features, known)
    tables = pipeline.table_names
    for name in pipeline.tables.only:
        if name not in tables:
            found.append((("tables", "only", name), name, f"allowed: {', '.join(tables)}"))
    for name in pipeline.serve.score:
        if name not in pipeline.labels:
            found.append((("serve", "score", name), name, f"allowed: {', '.join(pipeline.labels)}"))
    if pipeline.sync.sparse_every % pipeline.train.step_every:
        step, every = (format_duration(at) for at in (pipeline.train.step_every, pipeline.sync.sparse_every))
        found.append((("sync", "sparse_every"), every, f"allowed: multiples of train.step_every ({step})"))
    spec = pipeline.join_spec()
    if pipeline.kafka.retention < (needed := _needed_ms(spec)):
        given = format_duration(pipeline.kafka.retention)
        window, lateness = (format_duration(at) for at in (spec.window_ms, spec.settings.lateness))
        allowed = (
            f"allowed: {format_duration(needed)} or longer, twice the longest window ({window}) and join.lateness ({lateness}); "
            "or leave it out"
        )
        found.append((("kafka", "retention"), given, allowed))
    for name in pipeline.train.guards.prediction:
        if name not in pipeline.labels:
            found.append((("train", "guards", "prediction", name), name, f"allowed: {', '.join(pipeline.labels)}"))
    if not tables:
        found.append((("features",), "no sparse feature", "allowed: at least one, since rows are what is kept fresh"))
    return [Problem(str(path), place_of(tree, loc), value, allowed) for loc, value, allowed in found]
