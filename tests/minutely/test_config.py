"""Configuration: every mistake with its file, line, value and what is allowed, all at once, and never another exception."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from basis.problems import Problem, Problems
from minutely.config import Pipeline, load_pipeline
from paramserver.table import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    Constant,
    Initializer,
    Momentum,
    Normal,
    Optimizer,
    Uniform,
    Zeros,
)
from tests.commands import ROOT

BASE = """\
name: shop
source:
  dir: logs
  impressions:
    file: impressions.csv
    time: {column: time}
  sides:
    items: {file: items.csv, key: item}
  actions:
    click: {when: clicked}
    play: {delay: 5s}
features:
  user: {column: user, scope: request}
  item: {column: item}
  words: {column: words, split: " ", pool: mean}
  price: {kind: dense, column: price, side: items}
  picture: {kind: vector, column: picture, size: 4}
labels:
  click: {action: click, decided_by: play, window: 10m}
join:
  lateness: 30s
model: {kind: deepfm, dim: 8}
tables:
  learning_rate: 0.05
  only:
    item: {expire_after: 2d}
train: {max_rows: 100}
sync:
  sparse_every: 60s
"""


def load_text(folder: Path, text: str, data: Path | None = None) -> Pipeline:
    path = folder / "shop.yaml"
    path.write_text(text, encoding="utf-8")
    return load_pipeline(path, data)


def problems(folder: Path, text: str) -> list[Problem]:
    with pytest.raises(Problems) as caught:
        load_text(folder, text)
    assert all(problem.file == str(folder / "shop.yaml") for problem in caught.value.problems)
    return caught.value.problems


def test_the_base_of_these_tests_is_right(tmp_path: Path) -> None:
    pipeline = load_text(tmp_path, BASE)
    assert pipeline.labels["click"].window == 600_000
    assert pipeline.join.lateness == 30_000
    assert pipeline.tables.of("item").expire_after == 2 * 86_400_000
    assert pipeline.tables.of("user").expire_after is None
    assert pipeline.tables.of("item").learning_rate == 0.05


class Mistake(NamedTuple):
    """``old`` becomes ``new`` in the configuration; the problem's line and the parts of its place, value and remedy."""

    old: str
    new: str
    line: int
    place: str
    value: str
    allowed: list[str]


MISTAKES = {
    "unknown key at the top": Mistake(
        "name: shop", "name: shop\nsalt: 1", 2, "salt", "salt", ["unknown key", "name", "source", "features", "sync"]
    ),
    "unknown key in a section": Mistake(
        "lateness: 30s", "latenes: 30s", 21, "join.latenes", "latenes", ["unknown key", "emit", "lateness", "max_rows"]
    ),
    "unknown key in a feature": Mistake(
        "item: {column: item}",
        "item: {colum: item, column: item}",
        14,
        "features.item.colum",
        "colum",
        ["column", "side", "pool"],
    ),
    "unknown key in a dense feature": Mistake(
        "kind: dense, column: price",
        "kind: dense, bucket: log2, column: price",
        16,
        "features.price.bucket",
        "bucket",
        ["transform"],
    ),
    "unknown key in a label": Mistake(
        "{action: click,",
        "{actions: x, action: click,",
        19,
        "labels.click.actions",
        "actions",
        ["action", "window", "decided_by"],
    ),
    "unknown key in an action": Mistake(
        "{when: clicked}",
        "{when: clicked, dealy: 1s}",
        10,
        "source.actions.click.dealy",
        "dealy",
        ["when", "value", "delay"],
    ),
    "unknown key of one table": Mistake(
        "{expire_after: 2d}",
        "{expires: 2d}",
        26,
        "tables.only.item.expires",
        "expires",
        ["expire_after", "learning_rate"],
    ),
    "negative duration": Mistake("lateness: 30s", "lateness: -30s", 21, "join.lateness", "-30s", ["negative"]),
    "negative delay": Mistake("delay: 5s", "delay: -5s", 11, "source.actions.play.delay", "-5s", ["negative"]),
    "duration without a unit": Mistake(
        "window: 10m", "window: 10", 19, "labels.click.window", "10", ["unit", "10s", "24h"]
    ),
    "duration in another unit": Mistake(
        "window: 10m", "window: 10 fortnights", 19, "labels.click.window", "fortnights", ["ms, s, m, h, d"]
    ),
    "duration of nothing": Mistake("window: 10m", "window: 0s", 19, "labels.click.window", "0s", ["longer than 0s"]),
    "window too long": Mistake("window: 10m", "window: 91d", 19, "labels.click", "", ["90d"]),
    "missing key in a label": Mistake(", window: 10m", "", 19, "labels.click.window", "", ["missing"]),
    "missing key in a file": Mistake("    time: {column: time}\n", "", 4, "source.impressions.time", "", ["missing"]),
    "missing section": Mistake(
        "labels:\n  click: {action: click, decided_by: play, window: 10m}\n", "", 1, "labels", "", ["missing"]
    ),
    "wrong word": Mistake("kind: deepfm", "kind: deepmf", 22, "model.kind", "deepmf", ["deepfm", "dlrm"]),
    "wrong word in a feature": Mistake(
        "scope: request", "scope: user", 13, "features.user.scope", "user", ["impression", "request"]
    ),
    "unknown kind of feature": Mistake(
        "kind: dense", "kind: dnese", 16, "features.price", "dnese", ["sparse", "dense", "vector"]
    ),
    "a text for a number": Mistake("dim: 8", "dim: eight", 22, "model.dim", "eight", ["integer"]),
    "a number too large": Mistake("dim: 8", "dim: 100000", 22, "model.dim", "100000", ["1024"]),
    "a number too small": Mistake(
        "learning_rate: 0.05", "learning_rate: 0", 24, "tables.learning_rate", "0", ["greater than 0"]
    ),
    "a list for a section": Mistake("train: {max_rows: 100}", "train: [1]", 27, "train", "1", ["step_every"]),
    "a text for a feature": Mistake("item: {column: item}", "item: item", 14, "features.item", "item", ["keys"]),
    "nothing for a feature": Mistake("item: {column: item}", "item:", 14, "features.item", "None", ["keys"]),
    "a feature of two origins": Mistake(
        "{column: item}", "{column: item, time: hour}", 14, "features.item", "", ["exactly one of column, time, cross"]
    ),
    "split without pool": Mistake(", pool: mean", "", 15, "features.words", "", ["pool: first, mean or sum"]),
    "a vector of no size": Mistake(
        "size: 4", "size: 0", 17, "features.picture.size", "0", ["greater than or equal to 1"]
    ),
    "a name that is none": Mistake("name: shop", "name: my shop", 1, "name", "my shop", ["pattern"]),
    "a feature's name that is none": Mistake(
        "  item: {column", "  my-item: {column", 14, "features.my-item", "my-item", ["pattern"]
    ),
    "no labels": Mistake(
        "labels:\n  click: {action: click, decided_by: play, window: 10m}",
        "labels: {}",
        18,
        "labels",
        "{}",
        ["at least 1"],
    ),
    "a label of an unknown action": Mistake(
        "action: click", "action: clik", 19, "labels.click.action", "clik", ["click, play"]
    ),
    "decided by an unknown action": Mistake(
        "decided_by: play", "decided_by: stop", 19, "labels.click.decided_by", "stop", ["click, play"]
    ),
    "an unknown side table": Mistake("side: items", "side: item", 16, "features.price.side", "item", ["items"]),
    "settings of an unknown table": Mistake(
        "    item: {expire", "    itme: {expire", 26, "tables.only.itme", "itme", ["item", "user", "words"]
    ),
    "a value's transform for a class": Mistake(
        "window: 10m", "window: 10m, scale: 1000", 19, "labels.click", "", ["squared"]
    ),
    "labels from nowhere": Mistake(
        "  actions:\n    click: {when: clicked}\n    play: {delay: 5s}\n",
        "",
        2,
        "source",
        "",
        ["actions or engagements"],
    ),
    "files from nowhere": Mistake("  dir: logs\n", "", 2, "source", "", ["dir", "dataset"]),
    "an optimizer that is none": Mistake(
        "learning_rate: 0.05", "optimizer: adm", 24, "tables.optimizer", "adm", ["row_adagrad", "adam", "ftrl"]
    ),
    "another optimizer's option": Mistake(
        "learning_rate: 0.05",
        "optimizer: {kind: adam, l1: 1}",
        24,
        "tables.optimizer.l1",
        "l1",
        ["unknown key", "beta1"],
    ),
    "an optimizer's option out of range": Mistake(
        "{expire_after: 2d}",
        "{optimizer: {kind: momentum, momentum: 1}}",
        26,
        "tables.only.item.optimizer.momentum",
        "1",
        ["less than 1"],
    ),
    "a number for an optimizer": Mistake(
        "learning_rate: 0.05", "optimizer: 3", 24, "tables.optimizer", "3", ["keys", "kind"]
    ),
    "an initializer of no width": Mistake(
        "learning_rate: 0.05",
        "initializer: {kind: uniform, low: 1, high: 1}",
        24,
        "tables.initializer",
        "",
        ["high above low"],
    ),
    "a constant without its value": Mistake(
        "learning_rate: 0.05", "initializer: constant", 24, "tables.initializer.value", "", ["missing"]
    ),
    "admission never": Mistake(
        "learning_rate: 0.05", "admit_after: 65536", 24, "tables.admit_after", "65536", ["65535"]
    ),
    "admission before the first": Mistake(
        "learning_rate: 0.05", "admit_after: 0", 24, "tables.admit_after", "0", ["greater than or equal to 1"]
    ),
    "no candidates": Mistake("learning_rate: 0.05", "candidates: 0", 24, "tables.candidates", "0", ["equal to 1"]),
    "a default row that is none": Mistake(
        "learning_rate: 0.05", "default_row: zeros", 24, "tables.default_row", "zeros", ["fixed", "learned"]
    ),
    "a clip of nothing": Mistake("learning_rate: 0.05", "clip: 0", 24, "tables.clip", "0", ["greater than 0"]),
    "a user that is no feature": Mistake("name: shop", "name: shop\nuser: member", 2, "user", "member", ["user, item"]),
    "a user of several ids": Mistake("name: shop", "name: shop\nuser: words", 2, "user", "words", ["user, item"]),
    "a rate without end": Mistake(
        "learning_rate: 0.05", "learning_rate: .inf", 24, "tables.learning_rate", "inf", ["finite"]
    ),
    "a weight that is no number": Mistake(
        "window: 10m", "weight: .nan, window: 10m", 19, "labels.click.weight", "nan", []
    ),
    "rows kept longer than their clock runs": Mistake(
        "expire_after: 2d", "expire_after: 60000d", 26, "tables.only.item.expire_after", "60000d", []
    ),
    "a duration beyond all clocks": Mistake(
        "lateness: 30s", "lateness: " + "9" * 400 + "d", 21, "join.lateness", "999", ["allowed"]
    ),
    "unset variable": Mistake(
        "dir: logs", "dir: ${NO_SUCH_FOLDER}/logs", 3, "source.dir", "${NO_SUCH_FOLDER}", ["not set", "--data"]
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_line_value_and_what_is_allowed(tmp_path: Path, mistake: Mistake) -> None:
    assert BASE.count(mistake.old) == 1
    (problem,) = problems(tmp_path, BASE.replace(mistake.old, mistake.new))
    line, place = problem.place.split(", ", 1)
    assert line == f"line {mistake.line}"
    assert place == mistake.place
    assert mistake.value in problem.value
    for part in mistake.allowed:
        assert part in problem.allowed


@pytest.mark.parametrize("option", ["", "learning_rate: 0.2, clip: 1"])
@pytest.mark.parametrize(
    ("optimizer", "made"),
    [
        ("row_adagrad", Adagrad(initial_accumulator=0.1)),
        ("{initial_accumulator: 0.5, eps: 0.01}", Adagrad(initial_accumulator=0.5, eps=0.01)),
        ("adagrad", Adagrad(initial_accumulator=0.1, per_element=True)),
        ("sgd", SGD()),
        ("{kind: momentum, momentum: 0.5}", Momentum(momentum=0.5)),
        ("{kind: adam, beta1: 0.8, beta2: 0.9, eps: 0.001}", Adam(beta1=0.8, beta2=0.9, eps=0.001)),
        ("{kind: ftrl, beta: 2, l1: 0.1, l2: 0.2}", FTRL(beta=2, l1=0.1, l2=0.2)),
    ],
)
def test_an_optimizer_is_what_its_section_says(tmp_path: Path, optimizer: str, made: Optimizer, option: str) -> None:
    text = BASE.replace("{expire_after: 2d}", "{" + f"optimizer: {optimizer}" + (f", {option}" if option else "") + "}")
    item = load_text(tmp_path, text).tables.of("item")
    rate, clip = (0.2, 1.0) if option else (0.05, None)
    assert item.optimizer.make(item.learning_rate, item.clip) == dataclasses.replace(
        made, learning_rate=rate, clip=clip
    )


@pytest.mark.parametrize(
    ("initializer", "made"),
    [
        ("zeros", Zeros()),
        ("{kind: constant, value: -1}", Constant(-1)),
        ("{kind: uniform, low: -1, high: 2}", Uniform(-1, 2)),
        ("normal", Normal(0, 0.01)),
        ("{mean: 1, deviation: 0.5}", Normal(1, 0.5)),
    ],
)
def test_an_initializer_is_what_its_section_says(tmp_path: Path, initializer: str, made: Initializer) -> None:
    text = BASE.replace("learning_rate: 0.05", f"initializer: {initializer}")
    assert load_text(tmp_path, text).tables.of("user").initializer.make() == made


def test_admission_and_default_row_reach_the_table(tmp_path: Path) -> None:
    options = (
        "{admit_after: 3, candidates: 2, default_row: learned, optimizer: sgd, learning_rate: 1, initializer: zeros}"
    )
    pipeline = load_text(tmp_path, BASE.replace("{expire_after: 2d}", options))
    table = pipeline.tables.make("item", 2, seed=1)
    table.lookup_or_insert(np.array([7, 7, 8, 9, 10]), 0)
    assert (table.stats.candidates, table.stats.candidates_dropped) == (2, 2)
    table.lookup_or_insert(np.array([10, 10]), 0)
    assert table.export().ids.tolist() == [10]
    table.apply(np.array([5, 6]), np.ones((2, 2), np.float32), 0)
    assert table.default_row()[0].tolist() == [-2, -2]
    assert pipeline.tables.make("user", 2, seed=1).lookup_or_insert(np.array([7]), 0).any()


def test_a_run_s_config_says_what_was_configured(tmp_path: Path) -> None:
    text = BASE.replace("learning_rate: 0.05", "optimizer: adam").replace("{expire_after: 2d}", "{initializer: zeros}")
    pipeline = load_text(tmp_path, text)
    dumped = pipeline.model_dump(mode="json", exclude_defaults=True)
    assert Pipeline.model_validate(dumped).tables == pipeline.tables
    assert pipeline.tables.of("item").optimizer.kind == "adam", "what a table does not say is as for all tables"


def test_a_default_row_of_all_tables(tmp_path: Path) -> None:
    text = BASE.replace("{expire_after: 2d}", "{default_row: learned}")
    tables = load_text(tmp_path, text).tables
    assert [tables.of(name).default_row for name in ("user", "item")] == ["fixed", "learned"]
    for default_row in ("fixed", "learned"):
        assert {tables.with_default_row(default_row).of(name).default_row for name in ("user", "item")} == {default_row}


def test_several_mistakes_are_all_told(tmp_path: Path) -> None:
    text = BASE
    for name in (
        "unknown key at the top",
        "duration without a unit",
        "wrong word",
        "missing key in a file",
        "unset variable",
    ):
        text = text.replace(MISTAKES[name].old, MISTAKES[name].new)
    places = {problem.place.split(", ", 1)[1] for problem in problems(tmp_path, text)}
    assert places == {"salt", "labels.click.window", "model.kind", "source.impressions.time", "source.dir"}


def test_several_contradictions_are_all_told(tmp_path: Path) -> None:
    text = BASE
    for name in (
        "a label of an unknown action",
        "an unknown side table",
        "settings of an unknown table",
        "unset variable",
    ):
        text = text.replace(MISTAKES[name].old, MISTAKES[name].new)
    assert len(problems(tmp_path, text)) == 4


def test_no_feature_that_holds_rows(tmp_path: Path) -> None:
    lines = [
        line
        for line in BASE.splitlines()
        if not line.startswith(("  user:", "  item:", "  words:", "  only:", "    item:"))
    ]
    (problem,) = problems(tmp_path, "\n".join(lines))
    assert "sparse" in problem.value + problem.allowed


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


def test_environment_variables_name_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", "/data")
    pipeline = load_text(tmp_path, BASE.replace("dir: logs", "dir: ${SOME_FOLDER}/shop"))
    assert pipeline.source.dir == "/data/shop"


def test_a_given_folder_needs_no_variable(tmp_path: Path) -> None:
    pipeline = load_text(tmp_path, BASE.replace("dir: logs", "dir: ${NO_SUCH_FOLDER}/shop"), tmp_path / "given")
    assert pipeline.source.dir == str(tmp_path / "given")


@pytest.mark.parametrize("name", ["movielens", "kuairand"])
def test_the_shipped_pipelines_are_right(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINUTELY_DATA", str(tmp_path))
    pipeline = load_pipeline(ROOT / "configs" / f"{name}.yaml", None)
    assert pipeline.name == name
    assert pipeline.sync.sparse_every == 60_000
    assert pipeline.sync.dense_every == 86_400_000


def test_the_form_is_of_what_decides_the_form_of_rows_and_weights(tmp_path: Path) -> None:
    first = load_text(tmp_path, BASE).form()
    for same in ("lateness: 30s", "sparse_every: 60s", "max_rows: 100", "name: shop"):
        assert load_text(tmp_path, BASE.replace(same, same.replace("30s", "40s").replace("60", "120"))).form() == first
    assert load_text(tmp_path, BASE.replace("dim: 8", "dim: 9")).form() != first
    assert load_text(tmp_path, BASE.replace("item: {column: item}", "item: {column: item2}")).form() != first
