"""What recorded values depend on: a hash for each feature and label of a config, and one fingerprint of all.

Requests and examples outlive the config that they were made under. One rule says which of them another config can take: a feature
that came to it is missing in them, what it no longer has is dropped, and what it describes otherwise makes them another
pipeline's. The form of rows and weights is another matter (see `paramserver.form`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import xxhash

from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.records.labels import Label

_SHOWN = 5


class Schema(NamedTuple):
    """Hashes by name, 8 hexadecimal digits each: of what decides a feature's recorded value, and a label's.

    The ``fingerprint``, 16 digits, is of all of them; features may be in any order, labels have theirs, since scores go by it.

    >>> from streaming.features.kinds import SparseFeature, VectorFeature
    >>> from streaming.records.labels import Label
    >>> from streaming.records.schema import Schema, mismatch
    >>> labels = {"like": Label(action="like", window="1m")}
    >>> before = Schema.of({"item": SparseFeature(column="item")}, labels)
    >>> after = Schema.of({"item": SparseFeature(column="id"), "hour": SparseFeature(time="hour")}, labels)
    >>> mismatch(before, after), mismatch(after, before)
    (None, None)
    >>> mismatch(before, Schema.of({"item": SparseFeature(column="item", pool="sum")}, labels))
    'made under schema 252b38602581989e, this config has 78b130260611c8ff: feature item differs'
    """

    features: dict[str, str]
    labels: dict[str, str]
    fingerprint: str

    @classmethod
    def of(cls, features: Mapping[str, Feature], labels: Mapping[str, Label]) -> Schema:
        """The schema of a config."""
        return cls.made_of(
            {name: _hash(_recorded(feature))[:8] for name, feature in features.items()},
            {name: _hash(_decided(label))[:8] for name, label in labels.items()},
        )

    @classmethod
    def made_of(cls, features: dict[str, str], labels: dict[str, str]) -> Schema:
        """The schema of these hashes."""
        return cls(features, labels, _hash([sorted(features.items()), list(labels.items())]))


def mismatch(theirs: Schema, ours: Schema) -> str | None:
    """Why what was made under ``theirs`` cannot be made that of ``ours``, with both fingerprints; None where it can."""
    if theirs.fingerprint == ours.fingerprint:
        return None
    found = list(differences(theirs, ours))
    return between(theirs.fingerprint, ours, found) if found else None


def differences(theirs: Schema, ours: Schema) -> Iterator[str]:
    """What keeps records from being taken over, one by one."""
    yield from feature_differences(theirs, ours)
    for name, made in ours.labels.items():
        if name not in theirs.labels:
            yield f"label {name} is new"  # nobody looked for its actions
        elif theirs.labels[name] != made:
            yield f"label {name} differs"


def feature_differences(theirs: Schema, ours: Schema) -> Iterator[str]:
    """The features that both have, with other values."""
    for name, made in ours.features.items():
        if theirs.features.get(name, made) != made:
            yield f"feature {name} differs"


def between(theirs: str, ours: Schema, found: Sequence[str]) -> str:
    """What is said of a record made under the fingerprint ``theirs``, with what was found to differ."""
    more = f" and {len(found) - _SHOWN} more" * (len(found) > _SHOWN)
    said = ", ".join(found[:_SHOWN]) + more
    return f"made under schema {theirs:.16}, this config has {ours.fingerprint}: {said}"


def _recorded(feature: Feature) -> dict[str, Any]:
    """Not where a value comes from, nor what a model makes of it."""
    match feature:
        case SparseFeature():
            own = {
                "is_list": feature.is_list,
                **{name: getattr(feature, name) for name in ("split", "bucket", "time", "cross")},
            }
        case DenseFeature(transform="age"):
            own = {"transform": "age", "unit": feature.unit}
        case DenseFeature():
            own = {"transform": None if feature.transform == "none" else feature.transform}
        case VectorFeature():
            own = {"size": feature.size}
    return {"kind": feature.kind, "scope": feature.scope, **own}


def _decided(label: Label) -> dict[str, Any]:
    """Not what only clips a value: one that is recorded stays as it was clipped."""
    own = {name: getattr(label, name) for name in ("action", "min_value", "decided_by", "window")}
    return {**own, "is_value": label.is_value}


def _hash(value: Any) -> str:
    """Without what is not set, so that a setting that comes to features or labels changes no hash where it is not used."""
    if isinstance(value, dict):
        value = {name: each for name, each in value.items() if each is not None and each is not False}
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(value, order="sorted"))
