"""`check` says what deserves a look, from the same arrays that a replay takes, and names what a replay would refuse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner

from minutely.cli import cli
from minutely.config import Pipeline
from minutely.logs.advice import advice
from minutely.logs.log_mistakes import mistakes
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents

START = 1_700_000_000_000
COUNT = 600
Columns = dict[str, Any]


def log_of(rng: np.random.Generator) -> Columns:
    """Clicks that depend on the item, 5 s after the serving."""
    item = rng.integers(0, 10, COUNT)
    clicked = rng.random(COUNT) < item / 12
    return {
        "t": START + 1000 * np.arange(COUNT),
        "user": rng.integers(0, 50, COUNT),
        "item": item,
        "tags": [[int(number), 3] for number in item],
        "price": rng.uniform(0, 10, COUNT),
        "picture": rng.normal(size=(COUNT, 2)).astype(np.float32).tolist(),
        "clicked": clicked,
        "wait": np.full(COUNT, 5_000),
        "spent": np.where(clicked, rng.gamma(2.0, 20.0, COUNT), 0.0),
    }


FEATURES = {
    "user": {"column": "user"},
    "item": {"column": "item"},
    "tags": {"column": "tags", "pool": "mean"},
    "price": {"kind": "dense", "column": "price"},
    "picture": {"kind": "vector", "column": "picture", "size": 2},
}
CLICK = {"action": "click", "window": "10s"}


def fields(folder: Path, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": "shop",
        "source": {
            "dir": str(folder),
            "impressions": {"file": "log.parquet", "time": {"column": "t"}},
            "actions": {
                "click": {"when": "clicked", "delay": {"column": "wait"}},
                "buy": {"when": "clicked", "value": "spent", "delay": "5s"},
            },
        },
        "features": FEATURES,
        "labels": {"click": CLICK},
    }
    return {**given, **changes}


def loaded(folder: Path, columns: Columns, **changes: Any) -> tuple[Pipeline, LoggedEvents]:
    pa.parquet.write_table(pa.table(columns), folder / "log.parquet")
    pipeline = Pipeline.model_validate(fields(folder, **changes))
    return pipeline, load(folder, pipeline.source, pipeline.features, START + 86_400_000)


def advised(folder: Path, columns: Columns, **changes: Any) -> dict[str, tuple[str, str]]:
    pipeline, events = loaded(folder, columns, **changes)
    found = advice(pipeline, events)
    assert all(problem.file == "shop" for problem in found)
    assert len({problem.place for problem in found}) == len(found)
    return {problem.place: (problem.value, problem.allowed) for problem in found}


@pytest.fixture
def columns() -> Columns:
    return log_of(np.random.default_rng(1))


def test_an_ordinary_log_needs_none(tmp_path: Path, columns: Columns) -> None:
    labels = {"click": CLICK, "spent": {**CLICK, "action": "buy", "loss": "tweedie", "max_value": 1e4}}
    assert advised(tmp_path, columns, labels=labels) == {}


def test_answers_whose_records_are_too_large_to_be_joined(tmp_path: Path, columns: Columns) -> None:
    columns["picture"] = [[0.0] * 128] * COUNT
    features = {**FEATURES, "picture": {"kind": "vector", "column": "picture", "size": 128}}
    found = advised(tmp_path, columns, features=features, serve={"max_candidates": 10_000})
    assert "max_candidates: " in found["serve.max_candidates"][1]
    assert "serve.max_candidates" not in advised(tmp_path, columns, features=features)


def test_a_window_that_cuts_most_positives(tmp_path: Path, columns: Columns) -> None:
    """All but one in fifty come after 40 s, most of them after a minute."""
    columns["wait"] = np.where(np.arange(COUNT) % 50 == 0, 5_000, np.where(np.arange(COUNT) % 7 == 0, 600_000, 40_000))
    ((place, (value, what)),) = advised(tmp_path, columns).items()
    assert (place, value) == ("labels.click.window", "10s")
    clicks = np.flatnonzero(columns["clicked"])
    cut = 1 - (columns["wait"][clicks] <= 10_000).mean()
    assert what.startswith(f"{100 * cut:.0f} % of the positives come later")
    assert "half come within 40s, 90 % within 10m" in what
    assert advised(tmp_path, columns, labels={"click": {**CLICK, "window": "40s"}}) == {}


@pytest.mark.parametrize("outliers", [[], [1e12], [1e12, 1e30]])
def test_a_value_label_without_a_bound(tmp_path: Path, columns: Columns, outliers: list[float]) -> None:
    """The advice leaves what is usual as it is, whatever the outliers are, as long as they are rare."""
    columns = {name: np.concatenate([values] * 8) if name != "t" else None for name, values in columns.items()}
    columns["t"] = START + 1000 * np.arange(8 * COUNT)
    columns["picture"], columns["tags"] = (columns[name].tolist() for name in ("picture", "tags"))
    columns["clicked"][: len(outliers)] = True
    columns["spent"][: len(outliers)] = outliers
    label = {**CLICK, "action": "buy", "loss": "tweedie"}
    found = advised(tmp_path, columns, labels={"spent": label})
    value, what = found.pop("labels.spent.max_value")
    assert found == {}
    usual = columns["spent"][columns["spent"] < 1e6].max()
    assert value == f"none, largest {max([usual, *outliers]):.4g}"
    advised_bound = float(what.split("; ")[1].split(" ")[0])
    assert usual < advised_bound < 20 * usual
    assert advised(tmp_path, columns, labels={"spent": {**label, "max_value": advised_bound}}) == {}


@pytest.mark.parametrize("loss", ["tweedie", "zero_inflated_log_normal", "squared"])
def test_values_below_0_that_a_loss_does_not_know(tmp_path: Path, columns: Columns, loss: str) -> None:
    columns["clicked"][:3] = True
    columns["spent"][:3] = [-5.0, -2.0, -1.0]
    found = advised(tmp_path, columns, labels={"spent": {**CLICK, "action": "buy", "loss": loss, "max_value": 1e4}})
    if loss == "squared":
        assert found == {}
    else:
        value, what = found["labels.spent.loss"]
        assert value == loss and "3 of " in what and "down to -5, and count as 0" in what


@pytest.mark.parametrize("value", [1e6, -999_999.0, 3e38])
@pytest.mark.parametrize("rows", [1, 5])
def test_numbers_far_outside(tmp_path: Path, columns: Columns, value: float, rows: int) -> None:
    columns["price"][100 : 100 + rows] = value
    columns["picture"][7][1] = value
    found = advised(tmp_path, columns)
    assert sorted(found) == ["features.picture, number 1 of the vector", "features.price"]
    assert found["features.price"][0] == f"a value of {np.float32(value):.6g}"
    assert "98 % of its values are 0." in found["features.price"][1]
    softer = {**FEATURES, "price": {"kind": "dense", "column": "price", "transform": "log"}}
    assert sorted(advised(tmp_path, columns, features=softer)) == ["features.picture, number 1 of the vector"]


def test_rare_numbers_are_not_far_outside_of_nothing(tmp_path: Path, columns: Columns) -> None:
    """Most rows of a count are 0, and a flag is 1 in one row."""
    columns["price"] = np.where(np.arange(COUNT) % 20 == 0, np.arange(COUNT) % 7, 0.0)
    columns["picture"] = [[float(row == 8), 1.0] for row in range(COUNT)]
    assert advised(tmp_path, columns) == {}


@pytest.mark.parametrize("column", ["clicked", "wait"])
def test_a_feature_of_a_labels_own_column(tmp_path: Path, columns: Columns, column: str) -> None:
    columns["wait"] = np.arange(COUNT) % 3 * 1000
    found = advised(tmp_path, columns, features={**FEATURES, "known": {"column": column}})
    value, what = found.pop("features.known")
    assert (value, found) == (column, {})
    assert what.startswith("the column that label click comes from")


def test_which_item_was_shown_reveals_no_label(tmp_path: Path, columns: Columns) -> None:
    """A label from a list of what was clicked: the list reveals it, the item that it may contain does not."""
    columns["list"] = [
        [int(item)] if clicked else [] for item, clicked in zip(columns["item"], columns["clicked"], strict=True)
    ]
    given = fields(tmp_path)["source"]
    given["actions"]["click"] = {"when": {"column": "list", "contains": "item"}, "delay": "5s"}
    features = {**FEATURES, "clicks": {"column": "list", "pool": "mean"}}
    assert list(advised(tmp_path, columns, source=given, features=features)) == ["features.clicks"]


def leaks(columns: Columns) -> Mapping[str, tuple[dict[str, Any], Any]]:
    clicked: npt.NDArray[np.bool_] = columns["clicked"]
    rng = np.random.default_rng(2)
    return {
        "ids": ({}, np.where(clicked, rng.integers(0, 3, COUNT), rng.integers(3, 9, COUNT))),
        "texts": ({}, np.where(clicked, "thanks", "home")),
        "lists": ({"pool": "mean"}, [[7, 8] if each else [] for each in clicked]),
        "numbers": ({"kind": "dense"}, clicked + rng.uniform(0, 0.5, COUNT)),
        "numbers that fall": ({"kind": "dense"}, rng.uniform(0, 0.5, COUNT) - clicked),
        "buckets": ({"bucket": "log2"}, np.where(clicked, 900.0, 2.0)),
    }


@pytest.mark.parametrize("kind", list(leaks(log_of(np.random.default_rng(1)))))
@pytest.mark.parametrize("label", [CLICK, {**CLICK, "action": "buy", "loss": "tweedie", "max_value": 1e4}])
def test_a_feature_that_predicts_a_label_alone(
    tmp_path: Path, columns: Columns, kind: str, label: dict[str, Any]
) -> None:
    feature, columns["leak"] = leaks(columns)[kind]
    found = advised(
        tmp_path, columns, features={**FEATURES, "leak": {"column": "leak", **feature}}, labels={"it": label}
    )
    value, what = found.pop("features.leak")
    assert found == {}
    assert 0.98 < float(value.removeprefix("AUC ")) <= 1
    assert what.startswith("it predicts label it almost alone")


def test_ids_that_never_come_again_predict_nothing(tmp_path: Path, columns: Columns) -> None:
    columns["user"] = np.arange(COUNT)
    assert advised(tmp_path, columns) == {}


def engaged(folder: Path, shift: int, lost: str = "") -> dict[str, Any]:
    """A file of engagements, 5 s after their serving and then moved by ``shift``."""
    rows = np.arange(0, COUNT, 6)
    times = START + 1000 * rows + 5000 + np.where(rows % 12 == 0, shift, 0)
    done = {
        "t": START + 1000 * rows,
        "user": [f"{lost}{row % 50}" for row in rows],
        "at": times,
        "what": ["click"] * len(rows),
    }
    pa.parquet.write_table(pa.table(done), folder / "done.parquet")
    source = fields(folder)["source"]
    keys = {"request": ["t"], "impression": ["user"]}
    source["impressions"] |= keys
    del source["actions"]
    source["engagements"] = {"file": "done.parquet", "time": {"column": "at"}, "action": "what", **keys}
    return {"source": source}


def test_engagements_before_their_serving_are_a_mistake(tmp_path: Path, columns: Columns) -> None:
    """As a replay leaves them out, so they are not among the positives or delays."""
    columns["user"] = np.arange(COUNT) % 50
    pipeline, events = loaded(tmp_path, columns, **engaged(tmp_path, -5326))
    (problem,) = mistakes(pipeline, events)
    assert (problem.place, problem.value) == ("action click", "50 of 100 before their impression was served")
    assert "326ms before" in problem.allowed
    assert events.positive(pipeline.labels["click"]).sum() == events.truth(pipeline.labels["click"]).sum() == 50
    assert mistakes(*loaded(tmp_path, columns, **engaged(tmp_path, 0))) == []


def test_engagements_none_of_which_has_an_impression_are_a_mistake(tmp_path: Path, columns: Columns) -> None:
    columns["user"] = np.arange(COUNT) % 50
    (problem,) = mistakes(*loaded(tmp_path, columns, **engaged(tmp_path, 0, lost="u")))
    assert (problem.place, problem.value) == ("source.engagements", f"request '{START}', impression '{START}/u0'")
    assert problem.allowed.startswith("none of the 100 engagements has an impression")


SINCE = START - 40 * 86_400_000 - 977 * np.arange(COUNT)


@pytest.mark.parametrize(
    ("in_ms", "unit", "right"),
    [(1e3, "ms", "s"), (1e3, "us", "s"), (1, "us", "ms"), (1e-3, "ns", "us"), (1, "ms", None)],
)
def test_an_age_whose_times_have_another_unit(
    tmp_path: Path, columns: Columns, in_ms: float, unit: str, right: str | None
) -> None:
    """As the unit of event times is told; those that are missing say nothing."""
    columns["added"] = [None if at % 3 else int(time / in_ms) for at, time in enumerate(SINCE)]
    feature = {"kind": "dense", "column": "added", "transform": "age", "unit": unit}
    found = advised(tmp_path, columns, features={**FEATURES, "age": feature})
    if right is not None:
        value, what = found.pop("features.age.unit")
        assert value == unit
        day = "01" if (unit, right) == ("us", "s") else "20"
        assert what == f"its times are around 1970-01-{day}; unit: {right} makes them those of the log"
    assert found == {}


def test_ages_of_which_none_is_above_0(tmp_path: Path, columns: Columns) -> None:
    columns["added"] = SINCE
    feature = {"kind": "dense", "column": "added", "transform": "age", "unit": "s"}
    found = advised(tmp_path, columns, features={**FEATURES, "age": feature})
    assert found == {
        "features.age": (
            "one value everywhere",
            "nothing is learned from it; no time is before its impression, so every age is 0: a shorter unit may be right",
        )
    }


def test_births_before_1970_and_a_stand_in_of_0_are_no_wrong_unit(tmp_path: Path, columns: Columns) -> None:
    feature = {"kind": "dense", "column": "added", "transform": "age"}
    for times in (SINCE - 45 * 366 * 86_400_000, np.arange(COUNT)):
        columns["added"] = times
        assert "features.age.unit" not in advised(tmp_path, columns, features={**FEATURES, "age": feature})


@pytest.mark.parametrize(("lost", "told"), [(40, False), (60, True)])
def test_engagements_most_of_which_have_no_impression(tmp_path: Path, columns: Columns, lost: int, told: bool) -> None:
    columns["user"] = np.arange(COUNT) % 50
    changes = engaged(tmp_path, 0)
    done = pa.parquet.read_table(tmp_path / "done.parquet").to_pydict()
    done["user"] = [f"u{user}" if at < lost else user for at, user in enumerate(done["user"])]
    pa.parquet.write_table(pa.table(done), tmp_path / "done.parquet")
    found = advised(tmp_path, columns, **changes)
    if told:
        value, what = found.pop("source.engagements, action click")
        assert value == "40.0%"
        assert what.startswith("of 100 have an impression; the others count for no label")
        assert what.endswith(f"impression '{START}/u0'")
    assert found == {}


def test_the_command_shows_both(tmp_path: Path, columns: Columns) -> None:
    columns["user"] = np.arange(COUNT) % 50
    columns["price"][3] = 1e6
    pa.parquet.write_table(pa.table(columns), tmp_path / "log.parquet")
    config = tmp_path / "shop.yaml"
    config.write_text(yaml.safe_dump(fields(tmp_path)))
    done = CliRunner().invoke(cli, ["check", str(config)])
    assert done.exit_code == 0
    assert "look at shop: features.price: a value of 1e+06; 98 % of its values are" in done.output
    config.write_text(yaml.safe_dump(fields(tmp_path, **engaged(tmp_path, -6000))))
    done = CliRunner().invoke(cli, ["check", str(config)])
    assert (done.exit_code, " ".join(done.output.splitlines()[-1].split())) == (
        1,
        "error shop: action click: 50 of 100 before their impression was served; such as that of "
        f"'{START}/0', 1s before; allowed: at its serving or later",
    )
