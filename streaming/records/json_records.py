"""JSON requests become records with packed columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from basis.decoding import refusing
from streaming.features import given
from streaming.features.columns import Column, Floats, missing_number, pack
from streaming.features.kinds import WEIGHTS_ALLOWED, Feature, Packed, SparseFeature, VectorFeature, WeightFeature
from streaming.records.events import FORMAT_VERSION, BadRecord, Request, bad_record, check_size, encode
from streaming.records.json_requests import check_count, decode_json_request

_FLOAT_BYTES = 4


def pack_request(payload: bytes, features: Mapping[str, Feature], *, may_lack: bool = False) -> bytes:
    """Turn a JSON request into msgpack with packed columns; `BadRecord` if its values do not fit its features. With
    ``may_lack``, columns that do not fit are empty."""
    read = decode_json_request(payload)
    with refusing(lambda said: bad_record(payload, said, FORMAT_VERSION), BadRecord):
        shared = {name: [value] for name, value in read.shared.items()}
        return encode(
            Request(
                version=read.version,
                request_id=read.request_id,
                served_at=read.served_at,
                impression_ids=read.impression_ids,
                shared=_columns(shared, features, 1, may_lack),
                features=_columns(read.features, features, len(read.impression_ids), may_lack),
                positions=_packed("positions", read.positions, "<i4"),
                scores=_packed("scores", read.scores, "<f4"),
                sparse_version=read.sparse_version,
                dense_version=read.dense_version,
                schema=read.schema,
            )
        )


def _columns(
    values: Mapping[str, Sequence[Any]], features: Mapping[str, Feature], count: int, may_lack: bool
) -> dict[str, Packed]:
    """Return packed columns. Values are counted before they are converted: a null is short until it is packed, as any vector."""
    packed: dict[str, Packed] = {}
    size = 0
    for name, each in values.items():
        if (feature := features.get(name)) is None:
            continue
        try:
            check_count(name, len(each), count)
            if isinstance(feature, VectorFeature):
                size += count * feature.size * _FLOAT_BYTES
                check_size(size)
            packed[name] = pack_values(name, feature, each)
        except BadRecord:
            if not may_lack:
                raise
            packed[name] = b""
    return packed


def _packed(name: str, values: Sequence[Any], kind: str) -> bytes:
    with refusing(lambda why: BadRecord("malformed", f"{name}: {why}")):
        return np.array(values, kind).tobytes()


def pack_values(name: str, feature: Feature, values: Sequence[Any]) -> Packed:
    """Turn JSON values, one per impression, into a packed column."""
    return pack(column_of_values(name, feature, values), 0, len(values))


def column_of_values(name: str, feature: Feature, values: Sequence[Any]) -> Column:
    """Turn JSON values, one per impression, into a column; `BadRecord` if they do not fit the feature."""
    with refusing(lambda why: BadRecord("feature", f"feature {name}: {why}")):
        match feature:
            case SparseFeature():
                return given.lists(values) if feature.is_list else given.ids(values)
            case VectorFeature():
                return _floats(feature, given.vectors(values, feature.size))
            case _:
                return _floats(feature, given.numbers(values))


def _floats(feature: Feature, values: npt.NDArray[np.float64]) -> Floats:
    """Convert to float32. Missing values become the same as in files; too large ones become infinite, which records refuse."""
    if isinstance(feature, WeightFeature) and (values < 0).any():
        raise ValueError(f"{values.min()}; {WEIGHTS_ALLOWED}")
    with np.errstate(over="ignore"):
        return np.where(np.isnan(values), missing_number(feature), values).astype("<f4")
