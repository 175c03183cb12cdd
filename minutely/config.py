"""A pipeline's configuration: one YAML file, every mistake in it named with its line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml
from pydantic import Field, TypeAdapter, ValidationError

from basis.decoding import UNDECODABLE, why
from basis.problems import Problem, Problems
from basis.settings import Section, format_duration
from paramserver.settings import SyncSettings, TablesSettings
from serving.settings import ServeSettings
from streaming.archive import ArchiveSettings
from streaming.datasets import movielens_100k
from streaming.features import FeatureSet, SparseFeature
from streaming.joiner import JoinSettings
from streaming.kafka.settings import KafkaSettings
from streaming.labels import LabelSet
from streaming.negatives import NegativeSettings
from streaming.source_settings import SourceSettings
from trainer.settings import ModelSettings, TrainSettings

_MAX_CONFIG_BYTES = 1 << 20
_UNION_TAGS = (
    *("sparse", "dense", "vector", "constant", "column"),
    *("row_adagrad", "adagrad", "sgd", "momentum", "adam", "ftrl", "normal", "uniform", "zeros"),
)
_RENAMED = {("serve", "log_buffer"): "is now log_buffer_bytes, the memory of waiting records and not their number"}
_NOT_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError)
"""What PyYAML raises; at a value that its tag does not fit, that is whatever its own code ran into."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class Pipeline(Section):
    """A whole pipeline: where events come from, features, labels, model, and how fresh it is kept."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    source: SourceSettings
    features: FeatureSet
    user: str | None = None
    """The sparse feature that is the user's id, the one named ``user`` by default; for the AUC of users' first impressions."""
    labels: LabelSet
    join: JoinSettings = JoinSettings()
    negatives: NegativeSettings = NegativeSettings()
    archive: ArchiveSettings | None = None
    kafka: KafkaSettings = KafkaSettings()
    model: ModelSettings = ModelSettings()
    tables: TablesSettings = TablesSettings()
    train: TrainSettings = TrainSettings()
    sync: SyncSettings = SyncSettings()
    serve: ServeSettings = ServeSettings()

    def form(self) -> str:
        """What decides the form of rows and weights, features, labels, model and tables, as JSON; see `paramserver.form`."""
        parts = {"features", "labels", "model", "tables"}
        form = self.model_dump(mode="json", include=parts, exclude={"labels": {"__all__": {"max_value"}}})
        return msgspec.json.encode(form).decode()

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

    def data_folder(self) -> Path:
        """The folder of the source's files; a data set that is nowhere is fetched."""
        return movielens_100k() if self.source.dir is None else Path(self.source.dir)


def load_pipeline(path: Path, data: Path | None = None) -> Pipeline:
    """The pipeline in a file, its logs in ``data`` where given; `Problems` with every mistake in it."""
    pipeline, problems = _validate(path, *_read(path), data)
    if pipeline is None or problems:
        raise Problems(problems)
    return pipeline


def load_what_is_right(path: Path, data: Path | None) -> tuple[Pipeline | None, list[Problem]]:
    """The mistakes in a file, and a pipeline to check its logs by: whole, or only source and features, or None."""
    loaded, tree = _read(path)
    pipeline, problems = _validate(path, loaded, tree, data)
    wrong = {part for problem in problems for part in problem.place.split(", ")[-1:]}
    if any(place.startswith(("source", "features")) for place in wrong):
        return None, problems
    if pipeline is None:
        stand_in = {"name": "check", "labels": {"any": {"action": "any", "window": "1s"}}}
        parts = {key: loaded[key] for key in ("source", "features") if key in loaded}
        try:
            pipeline = Pipeline.model_validate({**stand_in, **parts})
        except ValidationError:
            return None, problems
    return pipeline, problems


class _Loader(yaml.SafeLoader):
    """Knows `true` and `false` alone, as YAML 1.2 does: else the key `on` and a feature called `no` are truth values."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def _read(path: Path) -> tuple[Any, yaml.Node | None]:
    name = str(path)
    try:
        data = path.read_bytes()
        if len(data) > _MAX_CONFIG_BYTES:
            raise Problems([Problem(name, "file", f"{len(data)} bytes", f"allowed: {_MAX_CONFIG_BYTES}")])
        tree = yaml.compose(data, Loader=_Loader)
        loaded = yaml.load(data, Loader=_Loader)
        repeated = _repeated_keys(name, tree) if tree is not None else []
    except OSError as error:
        raise Problems([Problem(name, "file", error.strerror or "", "allowed: a configuration file")]) from None
    except yaml.MarkedYAMLError as error:
        place = f"line {error.problem_mark.line + 1}" if error.problem_mark else "file"
        raise Problems([Problem(name, place, error.problem or "", "allowed: YAML")]) from None
    except (*UNDECODABLE, *_NOT_YAML) as error:
        raise Problems([Problem(name, "file", why(error), "allowed: YAML in UTF-8, without loops")]) from None
    if repeated:
        raise Problems(repeated)
    return loaded, tree


def _repeated_keys(name: str, node: yaml.Node) -> list[Problem]:
    found = []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                place = f"line {key.start_mark.line + 1}"
                found.append(Problem(name, place, key.value, "the key stands there twice; allowed: once"))
            seen.add(key.value)
            found += _repeated_keys(name, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found += _repeated_keys(name, item)
    return found


def _validate(
    path: Path, loaded: Any, tree: yaml.Node | None, data: Path | None
) -> tuple[Pipeline | None, list[Problem]]:
    if not isinstance(loaded, dict):
        raise Problems(
            [Problem(str(path), "file", repr(loaded)[:60], f"allowed: keys {', '.join(Pipeline.model_fields)}")]
        )
    problems = _place_source(path, loaded, tree, data)
    try:
        pipeline = Pipeline.model_validate(loaded)
    except ValidationError as error:
        return None, problems + [_problem(path, tree, item) for item in error.errors()]
    return pipeline, problems + _cross_check(path, tree, pipeline)


def _place_source(path: Path, loaded: dict[str, Any], tree: yaml.Node | None, data: Path | None) -> list[Problem]:
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
    place = _place(tree, ("source", "dir"))
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
    if pipeline.user is not None and pipeline.user_feature is None:
        found.append((("user",), pipeline.user, f"allowed: {', '.join(pipeline.single_id_features())}"))
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
    for name in pipeline.train.guards.prediction:
        if name not in pipeline.labels:
            found.append((("train", "guards", "prediction", name), name, f"allowed: {', '.join(pipeline.labels)}"))
    if not tables:
        found.append((("features",), "no sparse feature", "allowed: at least one, since rows are what is kept fresh"))
    return [Problem(str(path), _place(tree, loc), value, allowed) for loc, value, allowed in found]


def _problem(path: Path, tree: yaml.Node | None, error: Any) -> Problem:
    kind, loc = error["type"], error["loc"]
    value = "" if kind == "missing" else repr(error["input"])
    if loc in _RENAMED:
        value, allowed = repr(error["input"]), _RENAMED[loc]
    elif kind == "extra_forbidden":
        value, allowed = repr(loc[-1]), f"unknown key; allowed: {', '.join(_known_keys(loc[:-1]))}"
    elif kind == "missing":
        allowed = "missing; this key is needed"
    elif kind in ("model_type", "dict_type", "model_attributes_type"):
        allowed = f"allowed: a section with keys {', '.join(_known_keys(loc))}"
    elif kind == "union_tag_invalid":
        value, allowed = repr(error["ctx"]["tag"]), f"allowed: {error['ctx']['expected_tags']}"
    else:
        allowed = error["msg"].removeprefix("Value error, ")
    return Problem(str(path), _place(tree, loc), value if len(value) <= 80 else value[:77] + "...", allowed)


def _place(tree: yaml.Node | None, loc: tuple[Any, ...]) -> str:
    """Line and path of a value; parts that pydantic adds for unions are left out."""
    node, line, path = tree, 1, []
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if found:
                line, node = found[0][0].start_mark.line + 1, found[0][1]
                path.append(str(part))
                continue
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            path.append(str(part))
            continue
        if part == "[key]":  # pydantic's way to say that the key is meant, not its value
            continue
        if part is loc[-1] and isinstance(part, str) and part not in _UNION_TAGS:
            path.append(part)  # a missing key
    return f"line {line}, {'.'.join(path)}"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """The keys that the schema knows at a place."""
    schema = TypeAdapter(Pipeline).json_schema()
    nodes = [schema]
    for part in loc:
        following = [child for node in nodes for child in _children(schema, node, part)]
        nodes = following or nodes
    keys = [key for node in nodes for option in _options(schema, node) for key in option.get("properties", {})]
    return list(dict.fromkeys(keys))


def _options(schema: Any, node: Any) -> list[Any]:
    if "$ref" in node:
        return _options(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[1]])
    nested = [*node.get("anyOf", []), *node.get("oneOf", [])]
    return [option for child in nested for option in _options(schema, child)] or [node]


def _children(schema: Any, node: Any, part: Any) -> list[Any]:
    found = []
    for option in _options(schema, node):
        if part in option.get("properties", {}):
            found.append(option["properties"][part])
        else:
            found += option.get("patternProperties", {}).values()
            if isinstance(option.get("additionalProperties"), dict):
                found.append(option["additionalProperties"])
    return found
