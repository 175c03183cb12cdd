"""Config files that are no config: whatever their bytes, it is told with file and line, and never another exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from basis.problems import Problems
from minutely.config import load_pipeline
from tests.minutely.configs import BASE, load_text, problems


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        ("name: shop\nname: shop\n", 2, "name"),
        (BASE.replace("  item: {column: item}", "  item: {column: item}\n  user: {column: user}"), 15, "user"),
        (BASE.replace("{column: item}", "{column: item, pool: mean, column: other}"), 14, "column"),
    ],
)
def test_a_key_that_stands_there_twice(tmp_path: Path, text: str, line: int, value: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert (problem.place, problem.value) == (f"line {line}", value)
    assert "twice" in problem.allowed


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [1, 2\nsource: 3\n", 2),
        ("name: shop\n\tsource: 3\n", 2),
        ("name: 'shop\n", 2),
        ("a: b: c\n", 1),
        ("name: !!python/object:os.system x\n", 1),
        ("name: *nobody\n", 1),
        ("{[1]: 2}\n", 1),
        ("name: a\n---\nname: b\n", 2),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.place == f"line {line}"
    assert "YAML" in problem.allowed


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n# nothing\n",
        b"just a text",
        b"[1, 2]",
        b"\xff\xfe\x00\x00",
        b"name: \x00",
        b"name: caf\xe9",
        b"1: 2\n",
        b"null: 2\n",
        b"seed: " + b"9" * 5000,
        b"seed: !!int ''",
        b"seed: !!bool x",
        b"seed: !!timestamp x",
        b"seed: 2001-12-14t21:59:43.10-99:99",
        b"name: 2024-13-45\n",
        b"x" * (1 << 20) + b"x",
        b"&a [*a]",
        b"name: &a [*a]\n",
        b"name: &a {b: *a}\n",
        b"name: " + b"[" * 3000,
        b"name: " + b"[" * 3000 + b"]" * 3000,
        b"<<: 3\n",
    ],
    ids=lambda content: repr(content[:24]),
)
def test_no_bytes_end_it_with_anything_but_problems(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shop.yaml"
    path.write_bytes(content)
    with pytest.raises(Problems) as caught:
        load_pipeline(path, None)
    assert all(problem.file == str(path) and problem.allowed for problem in caught.value.problems)


@pytest.mark.parametrize("value", ["text", "[1, 2]", "null", "{a: {b: 1}}", ".nan"])
def test_no_value_anywhere_is_anything_but_a_problem(tmp_path: Path, value: str) -> None:
    for line in BASE.splitlines():
        key = line.split(":")[0]
        text = "\n".join(f"{key}: {value}" if other == line else other for other in BASE.splitlines())
        try:
            load_text(tmp_path, text)
        except Problems as found:
            assert found.problems


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path):
        with pytest.raises(Problems) as caught:
            load_pipeline(path, None)
        assert caught.value.problems[0].file == str(path)


def test_words_that_older_yaml_takes_for_truth_values(tmp_path: Path) -> None:
    """`sides: {items: {on: item}}` is in the docs, and was refused for its key `True`."""
    features = "features:\n  no: {column: y}\n"
    pipeline = load_text(tmp_path, BASE.replace("features:\n", features) + "serve: {log: off, stale_is_unready: yes}\n")
    assert pipeline.features["no"].column == "y"
    assert (pipeline.serve.log, pipeline.serve.stale_is_unready) == (False, True)
