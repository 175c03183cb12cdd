"""Messages for values that a configuration may not have: place, value, and what the schema allows there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import ErrorDetails

from basis.problems import Problem
from basis.settings import Section
from minutely.yaml_file import place_of

_UNION_TAGS = (
    *("one source", "several sources", "one action", "named values"),
    *("sparse", "dense", "vector", "constant", "column"),
    *("row_adagrad", "adagrad", "sgd", "momentum", "adam", "ftrl", "normal", "uniform", "zeros"),
)
_KEY = "[key]"  # pydantic's way to say that the key is meant, not its value
_SHOWN = 80


def explain(file: Path, tree: yaml.Node | None, schema_of: type[Section], error: ErrorDetails) -> Problem:
    """A mistake that was found at validating a file as ``schema_of``, in words of the configuration."""
    kind, loc = error["type"], error["loc"]
    schema = _schema(schema_of)
    value, nodes = _written(error["input"]), _at(schema, loc)
    if kind == "extra_forbidden":
        value, allowed = repr(loc[-1]), f"unknown key; allowed: {', '.join(_keys(schema, _at(schema, loc[:-1])))}"
    elif kind == "missing":
        value, allowed = "", "missing; this key is needed"
    elif kind == "union_tag_invalid":
        value, allowed = repr(error["ctx"]["tag"]), f"allowed: {error['ctx']['expected_tags']}"
    elif kind == "value_error":
        allowed = str(error["ctx"]["error"])
        if "allowed: " in allowed and _may_be_null(schema, nodes):
            allowed += ", or null for none"
    elif kind == "invalid_key" or loc[-1] == _KEY:
        value = repr(loc[-1] if kind == "invalid_key" else error["input"])
        lengths = [node["propertyNames"] for node in _options(schema, nodes) if "propertyNames" in node]
        allowed = f"allowed as a key: {_one({'type': 'string', **(lengths[0] if lengths else {})})}"
    else:
        allowed = f"allowed: {_described(schema, nodes)}"
        if kind == "finite_number":
            allowed += ", and finite"
    place = place_of(tree, tuple(part for part in loc if part != _KEY), _UNION_TAGS)
    return Problem(str(file), place, value if len(value) <= _SHOWN else value[: _SHOWN - 3] + "...", allowed)


@cache
def _schema(model: type[Section]) -> dict[str, Any]:
    return model.model_json_schema()


def _written(value: Any) -> str:
    """A value as YAML has it; texts in quotes, so that they differ from numbers."""
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else repr(value)
    )


def _at(schema: Mapping[str, Any], loc: Sequence[Any]) -> list[Any]:
    """The parts of the schema at a place. Of a union, ``loc`` has the kind that was taken, which is in no file."""
    nodes: list[Any] = [schema]
    kind_next = True
    for part in loc:
        options = [node for node in _options(schema, nodes) if node.get("type") != "null"]
        if kind_next and len(options) > 1:
            nodes, kind_next = [node for node in options if part in _kinds(node)] or options, False
        else:
            nodes, kind_next = [child for node in options for child in _children(node, part)] or nodes, True
    return nodes


def _kinds(node: Mapping[str, Any]) -> list[str]:
    kind = node.get("properties", {}).get("kind", {})
    return [*kind.get("enum", []), kind.get("const")]


def _options(schema: Mapping[str, Any], nodes: Sequence[Any]) -> list[Any]:
    """The same with names and unions resolved."""
    found = []
    for node in nodes:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        nested = [*node.get("anyOf", []), *node.get("oneOf", [])]
        found += _options(schema, nested) if nested else [node]
    return found


def _children(node: Mapping[str, Any], part: Any) -> list[Any]:
    if part in node.get("properties", {}):
        return [node["properties"][part]]
    if isinstance(part, int) and node.get("type") == "array":
        return list(node["prefixItems"][part : part + 1]) if "prefixItems" in node else [node["items"]]
    return [node["additionalProperties"]] if isinstance(node.get("additionalProperties"), dict) else []


def _keys(schema: Mapping[str, Any], nodes: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(key for node in _options(schema, nodes) for key in node.get("properties", {})))


def _may_be_null(schema: Mapping[str, Any], nodes: Sequence[Any]) -> bool:
    return any(node.get("type") == "null" for node in _options(schema, nodes))


def _described(schema: Mapping[str, Any], nodes: Sequence[Any]) -> str:
    """What is allowed at a place, in words."""
    keys = _keys(schema, nodes)
    if keys:
        found = [f"a section with keys {', '.join(keys)}"]
    else:
        found = [_one(node) for node in _options(schema, nodes) if node.get("type") != "null"]
    return " or ".join(dict.fromkeys(found)) + (", or null for none" if _may_be_null(schema, nodes) else "")


def _one(node: Mapping[str, Any]) -> str:
    if "enum" in node or "const" in node:
        return ", ".join(map(str, node.get("enum", [node.get("const")])))
    if node["type"] == "boolean":
        return "true or false"
    if node["type"] in ("integer", "number"):
        return ("a whole number" if node["type"] == "integer" else "a number") + _range(node)
    if node["type"] == "array":
        return "a list" + _amount("", node.get("minItems"), node.get("maxItems")) + f", each {_one(node['items'])}"
    if node["type"] == "object":
        return "a section" + _amount("names", node.get("minProperties"), node.get("maxProperties"))
    return "a text" + _amount("characters", node.get("minLength"), node.get("maxLength"))


def _range(node: Mapping[str, Any]) -> str:
    bounds = [
        (word, node[key])
        for word, key in (
            ("of at least", "minimum"),
            ("above", "exclusiveMinimum"),
            ("at most", "maximum"),
            ("below", "exclusiveMaximum"),
        )
        if key in node
    ]
    limits = " and ".join(
        f"{word} {bound:.6g}" if isinstance(bound, float) else f"{word} {bound}" for word, bound in bounds
    )
    share = node["type"] == "number" and {bound for _, bound in bounds} == {0, 1}
    return f" {limits}" * bool(limits) + (", such as 0.5" if share else "")


def _amount(of_what: str, least: int | None, most: int | None) -> str:
    bounds = [f"{word} {count}" for word, count in (("at least", least), ("at most", most)) if count is not None]
    return f" of {' and '.join(bounds)} {of_what}".rstrip() if bounds else ""
