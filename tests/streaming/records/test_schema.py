"""What a record was made under, by hashes that stay the same, and which configs can take it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streaming.features.columns import missing_column, pack, unpack
from streaming.features.ids import as_ids, text_id
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.features.transforms import from_raw
from streaming.features.values import as_arrow
from streaming.live.settings import LiveSettings
from streaming.live.spec import LiveSpec
from streaming.records.labels import Label
from streaming.records.schema import Schema, _recorded, mismatch
from tests.commands import ROOT

ITEM: dict[str, Feature] = {"f": SparseFeature(column="a")}
LIKE = {"l": Label(action="like", window="1m")}

GOLDEN: dict[str, Feature] = {
    "9bcdc732": SparseFeature(column="a"),
    "3238d6c6": SparseFeature(column="a", scope="request"),
    "41768b7c": SparseFeature(column="a", pool="mean"),
    "09289a76": SparseFeature(column="a", pool="sum", split=" "),
    "4f1fb4b7": SparseFeature(column="a", bucket="log2"),
    "a455769c": SparseFeature(time="hour"),
    "240a54ce": SparseFeature(request="size"),
    "9dc82fa3": SparseFeature(cross=("a", "b")),
    "334889ed": DenseFeature(kind="dense", column="a"),
    "37a59d3d": DenseFeature(kind="dense", column="a", transform="log"),
    "166d43b5": DenseFeature(kind="dense", column="a", transform="inverse", floor=0.5),
    "5aa643e6": DenseFeature(kind="dense", request="size"),
    "219640b1": DenseFeature(kind="dense", column="a", transform="age"),
    "d88b5d6d": VectorFeature(kind="vector", column="a", size=3),
}
GOLDEN_LABELS = {
    "c2ceb725": Label(action="like", window="1m"),
    "3281b38c": Label(action="like", window="2m"),
    "58e87f48": Label(action="like", window="1m", loss="squared"),
    "817bec1d": Label(action="like", window="1m", decided_by="x", min_value=0),
}


def test_hashes_stay_what_they_are() -> None:
    """They are in states and topics: another hash for the same config would make dead letters of all that is open."""
    assert {Schema.of({"f": feature}, LIKE).features["f"]: feature for feature in GOLDEN.values()} == GOLDEN
    assert {Schema.of(ITEM, {"l": label}).labels["l"]: label for label in GOLDEN_LABELS.values()} == GOLDEN_LABELS
    assert Schema.of({"item": ITEM["f"]}, {"like": LIKE["l"]}).fingerprint == "252b38602581989e"


@pytest.mark.parametrize(
    ("feature", "same"),
    [
        (SparseFeature(column="a"), SparseFeature(column="b", side="items", table="t", pool="first")),
        (SparseFeature(column="a", pool="mean"), SparseFeature(column="a", pool="sum")),
        (
            DenseFeature(kind="dense", column="a", transform="log"),
            DenseFeature(kind="dense", column="b", transform="log", unit="s"),
        ),
        (VectorFeature(kind="vector", column="a", size=2), VectorFeature(kind="vector", column="b", size=2)),
    ],
)
def test_where_a_value_comes_from_and_what_a_model_makes_of_it_is_in_no_record(feature: Feature, same: Feature) -> None:
    assert Schema.of({"f": feature}, LIKE) == Schema.of({"f": same}, LIKE)


def test_what_a_live_feature_counts_is_in_its_hash() -> None:
    """Numbers of another half-life are other values under the same address."""

    def schema(half_life: str) -> Schema:
        live = LiveSettings.model_validate(
            {"rates": {"item": {"key": ["f"], "of": ["like"], "half_life": [half_life]}}}
        )
        wanted: dict[str, Feature] = {
            "vector": VectorFeature.model_validate({"live": "rates.item"}),
            "bucket": SparseFeature(live=f"rates.item.like.{half_life}", step=0.25),
        }
        return Schema.of(LiveSpec.of(live, LIKE).defined(wanted), LIKE)

    found = mismatch(schema("1d"), schema("2d"))
    assert found is not None and "feature vector differs, feature bucket differs" in found
    assert mismatch(schema("1d"), schema("24h")) is None


def test_which_live_numbers_a_feature_has_and_when_they_are_seen_is_in_its_hash() -> None:
    """All have one definition, and some as many numbers as others."""

    def schema(address: str, visible_after: str = "2s", window: str = "1m") -> Schema:
        rates = {"item": {"key": ["f"], "of": ["like"], "half_life": ["1h", "30d"]}}
        live = LiveSettings.model_validate({"visible_after": visible_after, "rates": rates})
        step = {"step": 0.25} if address.endswith(("h", "d")) else {}
        kind = SparseFeature if step else VectorFeature
        wanted: dict[str, Feature] = {
            "f": SparseFeature(column="a"),
            "x": kind.model_validate({"live": address} | step),
        }
        labels = {"l": Label(action="like", window=window)}
        return Schema.of(wanted | LiveSpec.of(live, labels).defined(wanted), {})

    found = [
        *(schema(f"rates.item.{number}") for number in ("like.1h", "served.1h", "like.30d", "like", "served")),
        schema("rates.item"),
        *(schema("rates.item.like", visible_after) for visible_after in ("0s", "1h")),
        schema("rates.item.like", window="2m"),
    ]
    assert len({each.fingerprint for each in found}) == len(found)
    assert mismatch(schema("rates.item.like.30d"), schema("rates.item.like.30d", "2000ms")) is None


@pytest.mark.parametrize(
    "changes", [{"weight": 2.0}, {"loss": "tweedie"}, {"transform": "log"}, {"scale": 10.0}, {"max_value": 5.0}]
)
def test_how_a_label_is_trained_on_is_in_no_record(changes: dict[str, Any]) -> None:
    spent = {"action": "buy", "window": "1m", "loss": "squared"}
    labels = [{"l": Label.model_validate(each)} for each in (spent, {**spent, **changes})]
    assert Schema.of(ITEM, labels[0]) == Schema.of(ITEM, labels[1])


def test_the_order_of_labels_counts_and_that_of_features_does_not() -> None:
    """Scores are by the order of labels."""
    two: dict[str, Feature] = {**ITEM, "g": SparseFeature(column="b")}
    labels = {**LIKE, "m": Label(action="buy", window="1m")}
    first = Schema.of(two, labels)
    turned = Schema.of(dict(reversed(two.items())), labels), Schema.of(two, dict(reversed(labels.items())))
    assert [first.fingerprint == other.fingerprint for other in turned] == [True, False]
    assert mismatch(first, turned[1]) is None


WIDE: dict[str, Feature] = {"f": SparseFeature(column="a", pool="sum")}
LATER = {"l": Label(action="like", window="2m")}
BUY = {"m": Label(action="buy", window="1m")}
MORE: dict[str, Feature] = {**ITEM, "g": SparseFeature(column="b")}


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ((ITEM, LIKE), (MORE, LIKE), None),
        ((MORE, LIKE), (ITEM, LIKE), None),
        ((ITEM, LIKE), (ITEM, LIKE), None),
        ((ITEM, LIKE), (WIDE, LIKE), "feature f differs"),
        ((ITEM, {**LIKE, **BUY}), (ITEM, LIKE), None),
        ((ITEM, LIKE), (ITEM, {**LIKE, **BUY}), "label m is new"),
        ((ITEM, LIKE), (ITEM, LATER), "label l differs"),
        ((ITEM, LIKE), (WIDE, {**LATER, **BUY}), "feature f differs, label l differs, label m is new"),
    ],
    ids=["added", "removed", "the same", "changed", "label removed", "label added", "label changed", "all of it"],
)
def test_what_another_config_can_take(theirs: Any, ours: Any, said: str | None) -> None:
    before, after = Schema.of(*theirs), Schema.of(*ours)
    whole = f"made under schema {before.fingerprint}, this config has {after.fingerprint}: {said}"
    assert mismatch(before, after) == (None if said is None else whole)


def test_many_differences_are_cut_short() -> None:
    features: list[dict[str, Feature]] = [
        {f"f{number}": SparseFeature(column="a", pool=pool) for number in range(1000)} for pool in (None, "sum")
    ]
    said = mismatch(Schema.of(features[0], LIKE), Schema.of(features[1], LIKE))
    assert said is not None and said.endswith("feature f4 differs and 995 more") and len(said) < 300


@pytest.mark.parametrize("feature", GOLDEN.values(), ids=GOLDEN)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_missing_column_is_what_values_that_are_missing_make(feature: Feature, count: int) -> None:
    column = missing_column(feature, count)
    assert repr(unpack(feature, [pack(column, 0, count)])) == repr(column), "it fits its feature"
    match feature:
        case SparseFeature(bucket=None):
            if not feature.is_list:
                assert column.tolist() == as_ids(as_arrow([None] * count))[0].tolist() == [text_id("")] * count  # type: ignore[union-attr]
        case _:
            shape = (count, feature.size) if isinstance(feature, VectorFeature) else (count,)
            made = from_raw(feature, np.full(shape, np.nan), np.full(count, 10**12))
            assert repr(made) == repr(column)


@pytest.mark.parametrize("page", ["kafka.md", "state-format.md"])
def test_the_pages_name_all_that_decides_a_recorded_value(page: str) -> None:
    """Who sets what is not named there would lose pending requests."""
    (line,) = (
        each
        for each in (ROOT / "docs" / page).read_text().splitlines()
        if "`transform`, `floor`" in each and "`cross`" in each
    )
    decides = {key for feature in GOLDEN.values() for key in _recorded(feature)} - {"kind", "scope", "is_list"}
    assert decides >= {"zone", "last", "split"}
    assert [key for key in sorted(decides) if f"`{key}`" not in line] == []
