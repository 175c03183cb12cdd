"""What a request has to give for a pipeline's features, and how its values become raw columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from basis.problems import Problem, Problems
from streaming.features import given
from streaming.features.arrow_columns import plain, to_ms
from streaming.features.columns import Ragged, check_packed, unpack
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature, WeightFeature, numbers_allowed
from streaming.features.transforms import Raw, beyond, is_derived
from streaming.source.settings import SideFile

_SHOWN = 60


class BadRequest(ValueError):
    """A request breaks the contract; ``status`` is HTTP's word for it."""

    def __init__(self, detail: str, status: int = 422) -> None:
        super().__init__(detail)
        self.status = status


class Key(NamedTuple):
    """The input that holds a side table's keys, and whether it is one of the request's."""

    name: str
    of_request: bool


class Inputs:
    """The inputs of a request: ``of_request`` once, ``of_candidates`` one value for each, by name; `Problems` where names meet.

    They are the features that have a column of the impressions, and the keys of side tables: a key comes from the feature of
    ids that has its column, else under the column's own name. A table with a feature of scope ``request`` is joined by a key of
    the request. ``keys`` is by side table, one for each column of its key.
    """

    def __init__(self, features: Mapping[str, Feature], sides: Mapping[str, SideFile]) -> None:
        own = {name: item for name, item in features.items() if not is_derived(item) and item.side is None}
        self.of_request = {name: item for name, item in own.items() if item.scope == "request"}
        self.of_candidates = {name: item for name, item in own.items() if item.scope == "impression"}
        self.keys: dict[str, list[Key]] = {}
        for side, file in sides.items():
            scopes = {item.scope for item in features.values() if not is_derived(item) and item.side == side}
            if scopes:
                of_request = "request" in scopes
                self.keys[side] = [self._key(side, column, of_request=of_request) for column in file.on_columns]

    def _key(self, side: str, column: str, *, of_request: bool) -> Key:
        for inputs, is_request in ((self.of_request, True), (self.of_candidates, False)):
            if is_request or not of_request:
                for name, item in inputs.items():
                    if is_key_of(item, column):
                        return Key(name, is_request)
        if column in {**self.of_request, **self.of_candidates}:
            allowed = (
                f"allowed: no feature named {column} but one of the ids of that column, since requests name both so"
            )
            raise Problems([Problem("serve", f"source.sides.{side}: on", column, allowed)])
        inputs = self.of_request if of_request else self.of_candidates
        inputs[column] = SparseFeature(column=column, scope="request" if of_request else "impression")
        return Key(column, of_request)


def is_key_of(feature: Feature, column: str) -> bool:
    """Whether a feature's value is itself the value of a key column."""
    if not isinstance(feature, SparseFeature) or feature.column != column or feature.side is not None:
        return False
    return feature.bucket is None and feature.pool is None


def takes_lists(feature: Feature) -> bool:
    """Whether lists of ids are given for a feature."""
    return isinstance(feature, SparseFeature) and feature.pool is not None and feature.split is None


def is_packed(value: Any) -> bool:
    """Whether a column came as bytes, or as lengths and ids of lists in bytes."""
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(part, bytes) for part in value)
    return isinstance(value, bytes) or is_pair


def ids_in_lists(feature: Feature, value: Any) -> int:
    """How many ids were given for a feature, as values or packed lists, beyond one for each candidate."""
    if isinstance(value, list) and is_packed(value):
        return len(value[1]) // 8
    if not isinstance(value, list) or isinstance(feature, VectorFeature):
        return 0
    separator = feature.split if isinstance(feature, SparseFeature) else None
    count = sum(len(each) for each in value if isinstance(each, list))
    if separator is not None:  # in msgpack a text may come as bytes
        encoded = separator.encode()
        count += sum(1 + each.count(separator) for each in value if isinstance(each, str))
        count += sum(1 + each.count(encoded) for each in value if isinstance(each, bytes))
    return count


def raw_column(place: str, feature: Feature, value: Any, count: int) -> Raw:
    """A list of ``count`` values, or their packed bytes, as a raw column; `BadRequest` where they do not fit the feature."""
    if is_packed(value):
        raw = _unpacked(place, feature, value, count)
        wrong = beyond(feature, raw)
        if isinstance(raw, np.ndarray) and wrong is not None and wrong.any():
            raise _wrong(place, feature, raw[wrong.reshape(count, -1).any(1)][0].tolist(), numbers_allowed(feature))
        return raw
    if not isinstance(value, list) or len(value) != count:
        length = f"{len(value)} values" if isinstance(value, list) else "no list"
        raise BadRequest(f"{place}: {length}; allowed: {count}, one for each candidate")
    return _of_values(place, feature, value)


def _of_values(place: str, feature: Feature, values: list[Any]) -> Raw:
    try:
        return given.raw_of_values(feature, values)
    except Exception as error:
        wrong, detail = values, error
    while len(wrong) > 1:  # by halves, to a value that does not fit; none of them need be wrong alone
        half = len(wrong) // 2
        first = _problem(feature, wrong[:half])
        wrong, problem = (wrong[:half], first) if first else (wrong[half:], _problem(feature, wrong[half:]))
        if problem is None:
            raise BadRequest(f"{place}: {detail}; allowed: {allowed_of(feature)}")
        detail = problem
    raise _wrong(place, feature, wrong[0], str(detail))


def _problem(feature: Feature, values: list[Any]) -> Exception | None:
    try:
        given.raw_of_values(feature, values)
    except Exception as error:
        return error
    return None


def _wrong(place: str, feature: Feature, value: Any, detail: str) -> BadRequest:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    said = detail[:200] if shown in detail else f"{shown}: {detail[:200]}"
    allowed = "" if "allowed: " in said else f"; allowed: {allowed_of(feature)}"
    return BadRequest(f"{place}: {said}{allowed}")


def _unpacked(place: str, feature: Feature, packed: Any, count: int) -> Raw:
    """Little-endian int64 ids; float32 numbers, but float64 for times and buckets, which 32 bits are too few for."""
    if isinstance(packed, bytes) and _is_wide(feature):
        if len(packed) != 8 * count:
            raise BadRequest(f"{place}: {len(packed)} bytes; allowed: {8 * count}, a float64 for each candidate")
        numbers = np.frombuffer(packed, "<f8")
        return plain(to_ms(pa.array(numbers), feature.unit)) if isinstance(feature, DenseFeature) else numbers
    problem = check_packed(place, feature, tuple(packed) if isinstance(packed, list) else packed, count)
    if problem is not None:
        raise BadRequest(problem)
    column = unpack(feature, [packed])
    if isinstance(column, Ragged):
        return column
    if isinstance(feature, SparseFeature):
        return column.astype(np.int64, copy=False)
    return column.astype(np.float64)


def _is_wide(feature: Feature) -> bool:
    is_age = isinstance(feature, DenseFeature) and feature.transform == "age"
    return is_age or (isinstance(feature, SparseFeature) and feature.bucket is not None)


def allowed_of(feature: Feature) -> str:
    """What may be given for a feature, in words."""
    match feature:
        case VectorFeature():
            return f"a list of {feature.size} numbers"
        case DenseFeature(transform="age"):
            return f"a time: {feature.unit} since 1970, or a text as in ISO 8601"
        case WeightFeature():
            return "a number of 0 or more"
        case DenseFeature() | SparseFeature(bucket="log2"):
            return "a number"
        case SparseFeature(split=str() as separator):
            return f"a text of ids with {separator!r} between them"
        case _:
            return "a list of integers or texts" if takes_lists(feature) else "an integer or a text"
