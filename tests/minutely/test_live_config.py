"""The ``live`` section of a config: what is right, what is told of mistakes, and which commands take it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from minutely.cli import cli
from minutely.config import Pipeline
from streaming.features.kinds import SparseFeature, VectorFeature
from tests.minutely.configs import BASE, load_text, problems

LIVE = """\
live:
  visible_after: 5s
  rates:
    item: {key: [item], of: [click, play], half_life: [30m, 1d]}
  age:
    user: {key: [user], of: [click]}
  seen:
    pair: {key: [user, item], within: 2d}
  sequences:
    clicked: {key: [user], of: [click], fields: [item], last: 8}
"""
FEATURES = """\
  rates: {live: rates.item}
  clicks: {live: rates.item.click}
  user_age: {live: age.user, scope: request}
  bucket: {live: rates.item.click.30m, step: 0.25}
  items: {live: sequences.clicked.item, pool: mean, scope: request}
"""


def text_of(features: str = FEATURES, live: str = LIVE) -> str:
    return BASE.replace("labels:\n", features + "labels:\n", 1) + live


def test_a_feature_has_the_numbers_that_its_address_names(tmp_path: Path) -> None:
    pipeline = load_text(tmp_path, text_of())
    sizes = {name: each.size for name, each in pipeline.features.items() if isinstance(each, VectorFeature)}
    assert sizes == {"picture": 4, "rates": 6, "clicks": 2, "user_age": 3}
    assert isinstance(pipeline.features["bucket"], SparseFeature)
    assert isinstance(items := pipeline.features["items"], SparseFeature) and items.is_list
    assert "bucket" in pipeline.table_names
    assert pipeline.live_spec().addresses() == [
        *("rates.item", "rates.item.served.30m", "rates.item.click.30m", "rates.item.play.30m"),
        *("rates.item.served.1d", "rates.item.click.1d", "rates.item.play.1d"),
        *("age.user", "age.user.first", "age.user.served", "age.user.click"),
        *("seen.pair", "seen.pair.times", "seen.pair.since"),
        *(f"sequences.clicked{each}" for each in ("", ".age", ".action", ".item")),
    ]


def test_a_run_s_config_is_the_same_pipeline(tmp_path: Path) -> None:
    pipeline = load_text(tmp_path, text_of())
    again = Pipeline.model_validate(pipeline.model_dump(mode="json", exclude_unset=True))
    assert again == pipeline
    assert again.form() == pipeline.form()
    assert again.join_spec().schema == pipeline.join_spec().schema


def test_other_half_lives_are_another_form_and_another_schema(tmp_path: Path) -> None:
    """An address without its half-life names other numbers then."""
    one, other = (
        load_text(tmp_path, text_of("  rates: {live: rates.item}\n", live))
        for live in (LIVE, LIVE.replace("30m", "1h"))
    )
    assert one.features["rates"].model_dump() == other.features["rates"].model_dump()
    assert one.form() != other.form()
    assert one.join_spec().schema != other.join_spec().schema


@pytest.mark.parametrize(
    "other", [("item.click", "item.served"), ("after: 5s", "after: 1h")], ids=["numbers", "visible_after"]
)
def test_other_numbers_of_a_definition_are_another_form_and_another_schema(
    tmp_path: Path, other: tuple[str, str]
) -> None:
    text = text_of("  clicks: {live: rates.item.click}\n")
    one, two = (load_text(tmp_path, each) for each in (text, text.replace(*other)))
    assert one.form() != two.form()
    assert one.join_spec().schema != two.join_spec().schema


MISTAKES = {
    "an address of nothing": (
        ("{live: rates.item}", "{live: rates.items}"),
        ("features.rates.live", "rates.items", "rates.item.served.30m"),
    ),
    "a number of nothing": (
        ("{live: rates.item.click}", "{live: rates.item.clicks}"),
        ("features.clicks.live", "rates.item.clicks", "rates.item.click.30m"),
    ),
    "a bucket of several numbers": (
        ("click.30m, step", "click, step"),
        (
            "features.bucket.live",
            "rates.item.click",
            "has 2 numbers, step takes one; allowed: rates.item.click.30m, rates",
        ),
    ),
    "several lists": (
        ("sequences.clicked.item, pool", "sequences.clicked, pool"),
        (
            "features.items.live",
            "sequences.clicked",
            "has 3 lists, pool takes one; allowed: sequences.clicked.age, seq",
        ),
    ),
    "a list without its pool": (
        ("sequences.clicked.item, pool: mean", "sequences.clicked.item"),
        ("features.items.live", "sequences.clicked.item", "has lists, which need pool: mean or sum"),
    ),
    "a list in buckets": (
        ("sequences.clicked.item, pool: mean", "sequences.clicked.item, step: 1"),
        ("features.items.live", "sequences.clicked.item", "has lists, which need pool: mean or sum"),
    ),
    "numbers that are pooled": (
        ("bucket: {live: rates.item.click.30m, step: 0.25}", "bucket: {live: rates.item.click.30m, pool: sum}"),
        ("features.bucket.live", "rates.item.click.30m", "has numbers, which pool: mean or sum does not take"),
    ),
    "a bucket of a list": (
        ("sequences.clicked.item, pool: mean", "sequences.clicked.item, pool: mean, step: 1"),
        ("features.items", "sequences.clicked.item", "needs one of step and pool"),
    ),
    "a list of no feature": (
        ("fields: [item]", "fields: [words]"),
        ("live.sequences.clicked.fields", "words", "sparse features of one id that are not live: user, item"),
    ),
    "a list by a name that is taken": (
        ("fields: [item]", "fields: [age]"),
        ("live.sequences.clicked.fields.0", "age", "other names than age and action"),
    ),
    "a size that does not follow": (
        ("rates: {live: rates.item}", "rates: {live: rates.item, size: 5}"),
        ("features.rates.size", "5", "allowed: 6, or leave it out"),
    ),
    "a key of no feature": (
        ("key: [item], of", "key: [shop], of"),
        ("live.rates.item.key", "shop", "sparse features of one id that are not live: user, item"),
    ),
    "a key of lists": (("key: [item], of", "key: [words], of"), ("live.rates.item.key", "words", "user, item")),
    "a key of a live feature": (
        ("key: [item], of", "key: [bucket], of"),
        ("live.rates.item.key", "bucket", "user, item"),
    ),
    "an action of no log": (
        ("of: [click, play]", "of: [clik, play]"),
        ("live.rates.item.of", "clik", "allowed: click, play"),
    ),
    "a half-life in two words": (
        ("[30m, 1d]", "[1d, 30m, 24h]"),
        ("live.rates.item.half_life", "1d", "1d is given twice"),
    ),
    "an action by a name that is taken": (
        ("of: [click, play]", "of: [served]"),
        ("live.rates.item.of.0", "served", "other names than served and first"),
    ),
    "numbers of impressions as those of a request": (
        ("{live: rates.item}", "{live: rates.item, scope: request}"),
        ("features.rates.scope", "request", "allowed: impression, as of its key's item"),
    ),
    "a step without a live number": (
        ("item: {column: item}", "item: {column: item, step: 0.5}"),
        ("features.item", "step", "step goes with live"),
    ),
    "a vector of two origins": (
        ("{live: rates.item}", "{live: rates.item, column: picture}"),
        ("features.rates", "live", "exactly one of column, live"),
    ),
    "no half-life": (
        ("half_life: [30m, 1d]", "half_life: []"),
        ("live.rates.item.half_life", "[]", "at least 1"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_place_and_what_is_allowed(tmp_path: Path, name: str) -> None:
    (old, new), (place, value, allowed) = MISTAKES[name]
    text = text_of()
    assert text.count(old) == 1
    found = problems(tmp_path, text.replace(old, new))
    (problem,) = [each for each in found if each.place.endswith(f", {place}")]
    assert value in problem.value
    assert allowed in problem.allowed


def test_a_config_without_live_features_has_none_to_keep(tmp_path: Path) -> None:
    load_text(tmp_path, BASE)
    done = CliRunner().invoke(cli, ["features", str(tmp_path / "shop.yaml")])
    assert done.exit_code == 1
    assert "live: nothing; allowed: a config with live features" in done.output
