"""Whatever stands at whatever key: the mistake is told in words of the configuration, and none of the validator's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core._pydantic_core import list_all_errors

from minutely.config import Pipeline
from minutely.config_mistakes import explain

WRONG: list[Any] = [
    *(None, True, -1, 0, 1, 10**30, 1.5, -1e300, float("nan"), float("inf"), b"bytes"),
    *("", "text", "10%", "x" * 300, "\ud800", [], [1], [1, 2, 3], ["x", "y"], [True, "1"], list(range(1, 12))),
    *({}, {"a": 1}, {1: 2}, {None: {}}, {"": {}}, {"x" * 300: {}}, {"kind": "none"}, {"kind": 3}),
]
SCHEMA = Pipeline.model_json_schema()
VALIDATOR_S = {
    error["message_template_python"].split("{")[0]
    for error in list_all_errors()
    if not error["message_template_python"].startswith("{")
}
RAISED = {
    *("bool_type", "dict_type", "extra_forbidden", "finite_number", "float_type", "greater_than", "greater_than_equal"),
    *("int_type", "invalid_key", "less_than", "less_than_equal", "list_type", "literal_error", "missing", "model_type"),
    *("string_too_long", "string_too_short", "string_type", "string_unicode", "too_long", "too_short"),
    *("union_tag_invalid", "value_error"),
}


def _options(node: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[1]]
    nested = [*node.get("anyOf", []), *node.get("oneOf", [])]
    return [option for child in nested for option in _options(child)] or [node]


def _with_wrong(node: dict[str, Any]) -> Iterator[Any]:
    """Values that have one wrong value at every place under a part of the schema, one after the other."""
    yield from WRONG
    for option in _options(node):
        kind = option.get("properties", {}).get("kind", {})
        kinds = kind.get("enum", [kind["const"]] if "const" in kind else [])
        for name, child in option.get("properties", {}).items():
            for value in _with_wrong(child):
                yield {name: value} if name == "kind" or not kinds else {"kind": kinds[0], name: value}
        for child in [option["additionalProperties"]] if isinstance(option.get("additionalProperties"), dict) else []:
            yield from ({"name": value} for value in _with_wrong(child))


def _told() -> dict[str, set[str]]:
    """What is said of every kind of error."""
    found: dict[str, set[str]] = {}
    for name, node in SCHEMA["properties"].items():
        for value in _with_wrong(node):
            try:
                Pipeline.model_validate({name: value})
            except ValidationError as error:
                for item in error.errors():
                    if item["loc"][0] == name:
                        found.setdefault(item["type"], set()).add(str(explain(Path("x"), None, Pipeline, item)))
    return found


def test_every_kind_of_error_that_the_schema_has_is_told_in_its_own_words() -> None:
    told = _told()
    assert set(told) == RAISED
    for kind, texts in told.items():
        for text in texts:
            said = text.partition("; ")[2]
            assert said, (kind, text)
            assert not any(words in said for words in VALIDATOR_S), (kind, text)
            if kind not in ("missing", "value_error"):
                assert text.partition("allowed")[2].strip(": "), (kind, text)
