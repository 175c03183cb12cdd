"""Reads YAML 1.2 (core schema), with the line of every value; what is not YAML is reported in plain words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from basis.decoding import why
from basis.problems import Problem, Problems

_MAX_BYTES = 1 << 20
_MAX_VALUES = 100_000
"""Aliases counted as often as they stand for something: nine lines of them can come to more values than any memory holds."""
_EXACT = 2**53 - 1
"""Up to here a float with nothing after its point is that whole number and no other."""
_MOST_DIGITS = 400
"""More than any float has; Python writes no number of ten times as many, which messages have to."""
_SHOWN = 60

_PLAIN_WORDS = [
    (r"character '\\t'", "a tab; allowed: spaces, to indent with"),
    (r"block mapping.*but found '-'", "a list item among keys; allowed: either keys or list items at one indentation"),
    (r"block collection.*but found", "a key among list items; allowed: either keys or list items at one indentation"),
    (
        r"block mapping.*but found '<",
        "not in line with the keys above it; allowed: keys of one section at one indentation",
    ),
    (
        r"mapping values",
        "': ' within a value; allowed: keys of one section at one indentation, texts with ': ' in quotes",
    ),
    (
        r"cannot start any token|undefined alias",
        "a sign that means something else in YAML; allowed: the text in quotes",
    ),
]
"""The commonest mistakes, by what the parser says: where it stopped is where they are."""
_BEGUN = [
    (r"could not find expected ':'", "no ': ' after the key; allowed: key: value"),
    (r"quoted scalar.*end of stream", "a text whose quote does not end; allowed: a quote at either end"),
    (r"flow (sequence|mapping).*expected ',' or", "a bracket that nothing closes; allowed: [a, b] and {key: value}"),
]
"""Those that the parser notices later than where they begin."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's, which puts texts in quotes that are something else in YAML 1.1, and those that are so in 1.2."""


class _Loader(yaml.SafeLoader):
    """PyYAML's, which is of YAML 1.1, with the core schema of 1.2: there ``on`` and ``no`` are texts, and ``1e6`` is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A whole float is an int, so ``1e6`` may stand where whole numbers do; but not where it is not exact."""
        number: float = self.construct_yaml_float(node)
        return int(number) if number.is_integer() and abs(number) <= _EXACT else number

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """``010`` is ten; octal is ``0o10``."""
        text = str(self.construct_scalar(node))
        if len(text) > _MOST_DIGITS:
            raise yaml.constructor.ConstructorError(None, None, "a number that is too long", node.start_mark)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def read_yaml(path: Path) -> tuple[Any, yaml.Node | None]:
    """What a file holds, and its tree, which knows the lines; `Problems` where it is not to be had or no YAML."""
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise Problems([Problem(name, "file", error.strerror or "", "allowed: a configuration file")]) from None
    if len(data) > _MAX_BYTES:
        raise Problems([Problem(name, "file", "too large", f"allowed: {_MAX_BYTES} bytes")])
    try:
        loader = _Loader(data)
        tree = loader.get_single_node()
        if tree is None:
            return None, None
        if _values(tree, {}) > _MAX_VALUES:
            allowed = f"allowed: {_MAX_VALUES} values, those that aliases (*name) stand for counted each time"
            raise Problems([Problem(name, "file", "too many values", allowed)])
        wrong = _wrong_keys(name, tree)
        if wrong:
            raise Problems(wrong)
        return loader.construct_document(tree), tree
    except Problems:
        raise
    except yaml.MarkedYAMLError as error:
        raise Problems([_no_yaml(name, data, error)]) from None
    except Exception as error:  # at a value that its tag does not fit, whatever PyYAML's own code runs into
        raise Problems([Problem(name, "file", why(error), "allowed: YAML in UTF-8, without loops")]) from None


def write_yaml(path: Path, value: Any) -> None:
    """Write what `read_yaml` reads as the same: texts that are numbers to it are in quotes."""
    path.write_text(yaml.dump(value, Dumper=_Dumper, sort_keys=False), encoding="utf-8")


def one_line(value: dict[str, Any] | list[Any]) -> str:
    """A section or a list as `write_yaml` would write it, on one line: ``{column: time, unit: s}``."""
    wide = float("inf")
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=wide, allow_unicode=True
    )
    return text.strip()


def place_of(tree: yaml.Node | None, loc: tuple[Any, ...], passed_over: tuple[str, ...] = ()) -> str:
    """Line and path of the value at ``loc``, or of where it is missing; parts ``passed_over`` are in no file."""
    node, line, path = tree, 1, []
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if found:  # the last, since what a merge brought comes first
                line, node = found[-1][0].start_mark.line + 1, found[-1][1]
                path.append(str(part))
                continue
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            path.append(str(part))
            continue
        if part is loc[-1] and isinstance(part, str) and part not in passed_over:
            path.append(part)  # a missing key
    return f"line {line}, {'.'.join(path)}"


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a tree has with its aliases written out; ``known`` are its parts that were counted."""
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES + 1  # what an alias within its own value counts
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        parts = children if isinstance(node, yaml.CollectionNode) else []
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(node)]


def _wrong_keys(name: str, node: yaml.Node) -> list[Problem]:
    found = []
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            place = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                found.append(Problem(name, place, "", "a list or section as a key; allowed in YAML here: texts"))
                continue
            if key.value in seen:
                found.append(Problem(name, place, key.value, "the key is given twice; allowed: once"))
            seen.add(key.value)
            found += _wrong_keys(name, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found += _wrong_keys(name, item)
    return found


def _no_yaml(name: str, data: bytes, error: yaml.MarkedYAMLError) -> Problem:
    """What is wrong with a text that is no YAML, in plain words where it is common; else as the parser says it."""
    said = " ".join(part for part in (error.context, error.problem) if part)
    mark = error.problem_mark or error.context_mark
    words = next((words for pattern, words in _PLAIN_WORDS if re.search(pattern, said)), None)
    if words is None:
        words = next((words for pattern, words in _BEGUN if re.search(pattern, said)), None)
        if words is not None:
            mark = error.context_mark or mark
    if mark is None:
        return Problem(name, "file", said, "allowed: YAML")
    lines = data.decode("utf-8", "replace").splitlines()
    line = lines[mark.line].strip() if mark.line < len(lines) else ""
    shown = repr(line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "...")
    return Problem(name, f"line {mark.line + 1}", shown, words or f"{said}; allowed: YAML")
