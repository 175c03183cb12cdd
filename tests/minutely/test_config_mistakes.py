"""Mistakes in a config: each with its line, value and what is allowed, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.minutely.configs import BASE, load_text, problems


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
    "a text for a number": Mistake("dim: 8", "dim: eight", 22, "model.dim", "eight", ["a whole number"]),
    "a number too large": Mistake("dim: 8", "dim: 100000", 22, "model.dim", "100000", ["1024"]),
    "a number too small": Mistake(
        "learning_rate: 0.05", "learning_rate: 0", 24, "tables.learning_rate", "0", ["above 0"]
    ),
    "a list for a section": Mistake("train: {max_rows: 100}", "train: [1]", 27, "train", "1", ["step_every"]),
    "a text for a feature": Mistake("item: {column: item}", "item: item", 14, "features.item", "item", ["keys"]),
    "nothing for a feature": Mistake("item: {column: item}", "item:", 14, "features.item", "null", ["keys"]),
    "a feature of two origins": Mistake(
        "{column: item}",
        "{column: item, time: hour}",
        14,
        "features.item",
        "",
        ["exactly one of column, time, request, cross"],
    ),
    "split without pool": Mistake(", pool: mean", "", 15, "features.words", "", ["pool: first, mean or sum"]),
    "a vector of no size": Mistake(
        "size: 4", "size: 0", 17, "features.picture.size", "0", ["a whole number of at least 1"]
    ),
    "a name that is none": Mistake("name: shop", "name: my shop", 1, "name", "my shop", ["letters, digits"]),
    "a feature's name that is none": Mistake(
        "  item: {column", "  my-item: {column", 14, "features.my-item", "my-item", ["letters, digits"]
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
        ["below 1"],
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
        "learning_rate: 0.05", "admit_after: 0", 24, "tables.admit_after", "0", ["a whole number of at least 1"]
    ),
    "no candidates": Mistake("learning_rate: 0.05", "candidates: 0", 24, "tables.candidates", "0", ["at least 1"]),
    "a default row that is none": Mistake(
        "learning_rate: 0.05", "default_row: zeros", 24, "tables.default_row", "zeros", ["fixed", "learned"]
    ),
    "a clip of nothing": Mistake("learning_rate: 0.05", "clip: 0", 24, "tables.clip", "0", ["above 0"]),
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
    "true for a whole number": Mistake("dim: 8", "dim: true", 22, "model.dim", "true", ["a whole number"]),
    "a text of digits for a number": Mistake(
        "learning_rate: 0.05", "learning_rate: '0.05'", 24, "tables.learning_rate", "'0.05'", ["a number above 0"]
    ),
    "true in a list of numbers": Mistake(
        "dim: 8", "hidden: [64, true]", 22, "model.hidden.1", "true", ["a whole number", "65536"]
    ),
    "one number for a list": Mistake("dim: 8", "hidden: 32", 22, "model.hidden", "32", ["a list", "a whole number"]),
    "half a row": Mistake("max_rows: 100", "max_rows: 0.5", 27, "train.max_rows", "0.5", ["a whole number"]),
    "a whole number that a float cannot tell from its neighbours": Mistake(
        "name: shop", "name: shop\nseed: 9007199254740993e0", 2, "seed", "9007199254740992.0", ["a whole number"]
    ),
    "a percentage for a share": Mistake(
        "sparse_every: 60s",
        "dense_change: '50%'",
        29,
        "sync.dense_change",
        "'50%'",
        ["a number above 0", "0.5", "null"],
    ),
    "one number for two bounds": Mistake(
        "max_rows: 100",
        "guards: {served_calibration: 0.8}",
        27,
        "train.guards.served_calibration",
        "0.8",
        ["[low, high]", "null"],
    ),
    "never": Mistake(
        "expire_after: 2d", "expire_after: never", 26, "tables.only.item.expire_after", "never", ["as in 10s", "null"]
    ),
    "an older truth value": Mistake("train:", "serve: {log: off}\ntrain:", 27, "serve.log", "off", ["true or false"]),
    "a day that is none": Mistake(
        "  dir: logs",
        "  dir: logs\n  earliest: 2024-13-45",
        4,
        "source.earliest",
        "2024-13-45",
        ["a day from 1970-01-01"],
    ),
    "records that are kept for a shorter time than they are needed": Mistake(
        "lateness: 30s",
        "lateness: 10d\nkafka: {retention: 20d}",
        22,
        "kafka.retention",
        "20d",
        ["28820m or longer", "twice", "longest window (10m)", "join.lateness (10d)", "leave it out"],
    ),
    "features that an archive cannot tell apart": Mistake(
        "  picture: {kind: vector, column: picture, size: 4}",
        "  picture: {kind: vector, column: picture, size: 4}\n  Item: {column: item}\narchive: {}",
        18,
        "features.Item",
        "Item",
        ["differs from item in more than case", "archive"],
    ),
    "labels that an archive cannot tell apart": Mistake(
        "labels:",
        "archive: {}\nlabels:\n  Click: {action: click, window: 1m}",
        21,
        "labels.click",
        "click",
        ["differs from Click in more than case", "archive"],
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


def test_names_may_differ_in_case_alone_where_nothing_is_archived(tmp_path: Path) -> None:
    pipeline = load_text(
        tmp_path, BASE.replace("  item: {column: item}", "  item: {column: item}\n  Item: {column: item}")
    )
    assert {"item", "Item"} < pipeline.features.keys()


def test_no_feature_that_holds_rows(tmp_path: Path) -> None:
    lines = [
        line
        for line in BASE.splitlines()
        if not line.startswith(("  user:", "  item:", "  words:", "  only:", "    item:"))
    ]
    (problem,) = problems(tmp_path, "\n".join(lines))
    assert "sparse" in problem.value + problem.allowed
