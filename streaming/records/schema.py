"""Schemas: a hash for each feature and label of a config, of everything that recorded values depend on, and one fingerprint of all.

Requests and examples outlive the config that they were made under. One rule decides which of them another config can take: a
feature that was added is missing in them, one that was removed is dropped, and with one that changed they are of another pipeline.
The form of rows and weights is another matter (see `paramserver.form`).
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
    """Hashes by name, 8 hexadecimal digits each, of what decides the recorded values of a feature or label.

    The ``fingerprint``, 16 digits, covers all of them: features in any order, labels in theirs, since scores depend on it.

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
        """Return the schema of a config."""
        return cls.made_of(
            {name: hashed(_recorded(feature))[:8] for name, feature in features.items()},
            {name: hashed(_decided(label))[:8] for name, label in labels.items()},
        )

    @classmethod
    def made_of(cls, features: dict[str, str], labels: dict[str, str]) -> Schema:
        """Return the schema with these hashes."""
        return cls(features, labels, hashed([sorted(features.items()), list(labels.items())]))


def mismatch(theirs: Schema, ours: Schema) -> str | None:
    """Return why records made under ``theirs`` cannot be converted to ``ours``, with both fingerprints; None if they can."""
    if theirs.fingerprint == ours.fingerprint:
        return None
    found = list(differences(theirs, ours))
    return between(theirs.fingerprint, ours, found) if found else None


def differences(theirs: Schema, ours: Schema) -> Iterator[str]:
    """Yield the differences that keep records from being converted."""
    for name, made in ours.features.items():
        if theirs.features.get(name, made) != made:
            yield f"feature {name} differs"
    yield from label_differences(theirs, ours)


def label_differences(theirs: Schema, ours: Schema) -> Iterator[str]:
    """Yield the labels of ``ours`` that ``theirs`` did not decide."""
    for name, made in ours.labels.items():
        if name not in theirs.labels:
            yield f"label {name} is new"  # its actions were not recorded
        elif theirs.labels[name] != made:
            yield f"label {name} differs"


def between(theirs: str, ours: Schema, found: Sequence[str], was: str = "made") -> str:
    """Return the message about a record that ``was`` under the fingerprint ``theirs``, with the differences found."""
    more = f" and {len(found) - _SHOWN} more" * (len(found) > _SHOWN)
    said = ", ".join(found[:_SHOWN]) + more
    return f"{was} under schema {theirs:.16}, this config has {ours.fingerprint}: {said}"


def _recorded(feature: Feature) -> dict[str, Any]:
    """Return what decides a recorded value; neither its source nor its use in a model does."""
    match feature:
        case SparseFeature():
            own = {
                "is_list": feature.is_list,
                **{
                    name: getattr(feature, name)
                    for name in ("split", "bucket", "time", "zone", "request", "cross", "last", "step")
                },
            }
        case DenseFeature(transform="age"):
            own = {"transform": "age", "unit": feature.unit}
        case DenseFeature():
            transform = None if feature.transform == "none" else feature.transform
            own = {"transform": transform, "floor": feature.floor, "request": feature.request}
        case VectorFeature():
            own = {"size": feature.size}
    return {"kind": feature.kind, "scope": feature.scope, "live": feature.definition, **own}


def _decided(label: Label) -> dict[str, Any]:
    """Return what decides a recorded label; settings that only clip it do not: recorded values stay as clipped."""
    own = {name: getattr(label, name) for name in ("action", "min_value", "decided_by", "window")}
    return {**own, "is_value": label.is_value}


def hashed(value: Any) -> str:
    """Return the hash of a value, 16 hexadecimal digits, without its unset settings, so that a new kind of setting changes no hash
    where it is not used."""
    if isinstance(value, dict):
        value = {name: each for name, each in value.items() if each is not None and each is not False}
    return xxhash.xxh3_64_hexdigest(msgspec.json.encode(value, order="sorted"))
