"""Config files that are no config: whatever their bytes, it is told with file and line, and never another exception."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from basis.problems import Problems
from minutely.config import load_pipeline
from minutely.run import Run
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
    ("text", "line", "shown", "words"),
    [
        ("name: shop\n\tsource: 3\n", 2, "source: 3", "a tab; allowed: spaces"),
        ("source:\n  dir: x\n- y\n", 3, "- y", "a list item among keys"),
        ("labels:\n  - a\n  click: 1\n", 3, "click: 1", "a key among list items"),
        ("labels:\n   a: 1\n  b: 2\n", 3, "b: 2", "not in line with the keys above it"),
        ("a: b: c\n", 1, "a: b: c", "': ' within a value"),
        ("labels:\n  a: 1\n   b: 2\n", 3, "b: 2", "keys of one section at one indentation"),
        ("name: shop\nseed\nuser: x\n", 2, "seed", "no ': ' after the key"),
        ("name: [1, 2\nsource: 3\n", 1, "name: [1, 2", "a bracket that nothing closes"),
        ("name: 'shop\nsource: 3\n", 1, "name: 'shop", "a text whose quote does not end"),
        ("name: *nobody\n", 1, "*nobody", "the text in quotes"),
        ("name: %d\n", 1, "%d", "the text in quotes"),
        ("name: !!python/object:os.system x\n", 1, "os.system x", "could not determine a constructor"),
        ('name: "\\q"\n', 1, "q", "unknown escape character"),
        ("name: }\n", 1, "name: }", "expected the node content"),
        ("{[1]: 2}\n", 1, "", "a list or section as a key"),
        ("name: a\n---\nname: b\n", 2, "---", "another document"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path, text: str, line: int, shown: str, words: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.place == f"line {line}"
    assert shown in problem.value
    assert words in problem.allowed
    assert "allowed" in problem.allowed


def _doubled(first: str, after: str) -> str:
    """Eight lines, each with the one before it nine times."""
    lines = (after.format(",".join([f"*a{at}"] * 9)) for at in range(8))
    return f"a: &a0 {first}\n" + "".join(f"a{at}: &a{at + 1} {line}\n" for at, line in enumerate(lines))


@pytest.mark.parametrize(
    "text", [_doubled("[x]", "[{}]"), _doubled("{x: 1}", "{{<<: [{}]}}")], ids=["lists", "merged keys"]
)
def test_aliases_of_aliases_are_counted_as_what_they_stand_for(tmp_path: Path, text: str) -> None:
    """They kept `check` busy for ever."""
    (problem,) = problems(tmp_path, text)
    assert problem.value == "too many values"
    assert "aliases" in problem.allowed


def test_anchors_and_merged_keys_may_be_used(tmp_path: Path) -> None:
    text = BASE.replace("click: {action", "click: &click {action")
    text = text.replace("join:\n", "  play: {<<: *click, action: play, decided_by: click}\njoin:\n")
    labels = load_text(tmp_path, text).labels
    assert labels["play"].window == labels["click"].window == 600_000


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
    text = BASE.replace("features:\n", "features:\n  no: {column: off}\n")
    assert load_text(tmp_path, text).features["no"].column == "off"


def test_a_mistake_in_a_key_that_goes_before_a_merged_one_is_told_where_it_stands(tmp_path: Path) -> None:
    text = BASE.replace("click: {action", "click: &click {action")
    (problem,) = problems(tmp_path, text.replace("join:\n", "  play:\n    <<: *click\n    window: soon\njoin:\n"))
    assert problem.place == f"line {text[: text.index('join:')].count(chr(10)) + 3}, labels.play.window"


def test_a_number_without_end_is_told(tmp_path: Path) -> None:
    """It was shown as an error of Python's, which writes no number of more than 4,300 digits."""
    (problem,) = problems(tmp_path, BASE.replace("max_rows: 100", f"max_rows: 0x{'f' * 5000}"))
    assert problem.place.startswith("line ") and "too long" in problem.allowed


def test_a_run_has_the_config_that_it_was_made_of(tmp_path: Path) -> None:
    """What a table has otherwise was left out where it is a default, and a name that looks like a number was one afterwards."""
    text = BASE.replace("learning_rate: 0.05", "expire_after: 1d").replace("{expire_after: 2d}", "{expire_after: null}")
    pipeline = load_text(tmp_path, text.replace("name: shop", "name: '1e5'"))
    again = load_pipeline(Run.create(pipeline, tmp_path / "run", 0).config)
    assert again == pipeline
    assert again.tables.of("item") == pipeline.tables.of("item")


@pytest.mark.parametrize(
    ("written", "rows"), [("1e3", 1000), ("1.0E+3", 1000), ("100.", 100), ("010", 10), ("0o10", 8), ("0x10", 16)]
)
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, written: str, rows: int) -> None:
    assert load_text(tmp_path, BASE.replace("max_rows: 100", f"max_rows: {written}")).train.max_rows == rows


@pytest.mark.parametrize("written", ["1_000", "1:40", "1e", "0b11"])
def test_texts_that_older_yaml_takes_for_numbers(tmp_path: Path, written: str) -> None:
    (problem,) = problems(tmp_path, BASE.replace("max_rows: 100", f"max_rows: {written}"))
    assert problem.value == repr(written)


@pytest.mark.parametrize("day", ["2001-02-03", "'2001-02-03'"])
def test_a_day_is_a_text_with_or_without_quotes(tmp_path: Path, day: str) -> None:
    pipeline = load_text(tmp_path, BASE.replace("  dir: logs", f"  dir: logs\n  earliest: {day}"))
    assert pipeline.source.earliest == date(2001, 2, 3)


def test_null_undoes_a_setting_of_all_tables(tmp_path: Path) -> None:
    text = BASE.replace("learning_rate: 0.05", "expire_after: 1d").replace("{expire_after: 2d}", "{expire_after: null}")
    tables = load_text(tmp_path, text).tables
    assert (tables.of("user").expire_after, tables.of("item").expire_after) == (86_400_000, None)
