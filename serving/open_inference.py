"""The Open Inference Protocol, version 2: feature tensors in, a tensor for each label and the combined score out.

One input for each that a ranking request has, of n rows: INT64 or BYTES ``[n]`` for ids, FP32 ``[n]`` for numbers, FP32
``[n, size]`` for vectors. A list of ids has two: its ids end to end ``[total]``, and ``NAME.lengths``, INT64 ``[n]``. What is
scored this way is not logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np

from serving.inputs import BadRequest, Inputs, takes_lists
from serving.ranking import Ranking
from serving.requests import Given, Query, RequestReader, decode
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature

LENGTHS = ".lengths"
DataType: TypeAlias = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class TensorInput(msgspec.Struct):
    """One input; ``data`` is flat or nested, row by row."""

    name: str
    shape: Annotated[list[Size], msgspec.Meta(min_length=1, max_length=2)]
    datatype: DataType
    data: list[Any]
    parameters: dict[str, Any] = {}


class OutputName(msgspec.Struct):
    """An output that is wanted."""

    name: str
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct):
    """Inputs, and which outputs are wanted (all by default)."""

    inputs: Annotated[list[TensorInput], msgspec.Meta(min_length=1)]
    id: str | None = None
    outputs: list[OutputName] = []
    parameters: dict[str, Any] = {}


class TensorOutput(msgspec.Struct):
    """One output."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferResponse(msgspec.Struct, omit_defaults=True):
    """Outputs, the versions that made them, and, where there are such, the ``missing`` live features."""

    model_name: str
    model_version: str
    outputs: list[TensorOutput]
    parameters: dict[str, int | str]
    id: str | None = None


class TensorMetadata(msgspec.Struct):
    """An input or output; -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ServerMetadata(msgspec.Struct):
    """Who answers."""

    name: str
    version: str
    extensions: list[str] = []


def inputs_of(inputs: Inputs) -> list[TensorMetadata]:
    """The inputs of a pipeline's model, with the types that suit them; ids may be BYTES too, and times texts."""
    found = []
    for name, feature in {**inputs.of_request, **inputs.of_candidates}.items():
        match feature:
            case SparseFeature(split=str()):
                found.append(TensorMetadata(name, "BYTES", [-1]))
            case SparseFeature(bucket="log2") | DenseFeature(transform="age"):
                found.append(TensorMetadata(name, "FP64", [-1]))
            case SparseFeature():
                found.append(TensorMetadata(name, "INT64", [-1]))
                if takes_lists(feature):
                    found.append(TensorMetadata(name + LENGTHS, "INT64", [-1]))
            case VectorFeature():
                found.append(TensorMetadata(name, "FP32", [-1, feature.size]))
            case _:
                found.append(TensorMetadata(name, "FP32", [-1]))
    return found


def read(payload: bytes, reader: RequestReader, *, msgpack: bool, now_ms: int) -> tuple[InferRequest, Query]:
    """A request, and the rows that it asks to score; `BadRequest` where the inputs are not the model's."""
    request = decode(InferRequest, payload, msgpack=msgpack)
    given = {item.name: item for item in request.inputs}
    inputs: dict[str, Feature] = {**reader.inputs.of_request, **reader.inputs.of_candidates}
    wanted = {item.name for item in inputs_of(reader.inputs)}
    if not given.keys() >= wanted or len(given) != len(request.inputs):
        raise BadRequest(f"inputs: {', '.join(sorted(given))[:200]}; allowed: each once of {', '.join(sorted(wanted))}")
    first = next(iter(inputs))
    count = given.get(first + LENGTHS, given[first]).shape[0]
    if not count:
        raise BadRequest("inputs of 0 rows; allowed: 1 and more")
    reader.check_count(count)
    raw = reader.raw_columns(
        [Given(name, name, item, _values(name, item, given, count), count) for name, item in inputs.items()]
    )
    columns, missing = reader.columns(raw, count, now_ms)
    return request, Query(columns, count, unknown=sorted(given.keys() - wanted), missing=missing)


def _values(name: str, feature: Feature, given: Mapping[str, TensorInput], count: int) -> list[Any]:
    """One value for each row."""
    flat = _flat(given[name])
    if takes_lists(feature):
        lengths = _flat(given[name + LENGTHS])
        if not all(type(length) is int and length >= 0 for length in lengths) or sum(lengths) != len(flat):
            raise BadRequest(f"{name}{LENGTHS}: do not add up to the {len(flat)} ids of {name}")
        bounds = np.cumsum([0, *lengths]).tolist()
        return [flat[start:stop] for start, stop in pairwise(bounds)]
    if isinstance(feature, VectorFeature):
        if given[name].shape != [count, feature.size]:
            raise BadRequest(f"{name}: shape {given[name].shape}; allowed: [{count}, {feature.size}]")
        return [flat[at : at + feature.size] for at in range(0, len(flat), feature.size)]
    return flat


def _flat(tensor: TensorInput) -> list[Any]:
    data = tensor.data
    if len(tensor.shape) == 2 and data and isinstance(data[0], list):
        if not all(isinstance(row, list) and len(row) == tensor.shape[1] for row in data):
            raise BadRequest(f"{tensor.name}: rows of different lengths; allowed: {tensor.shape[1]} values each")
        data = [value for row in data for value in row]
    if len(data) != prod(tensor.shape):
        raise BadRequest(f"{tensor.name}: {len(data)} values; allowed: {prod(tensor.shape)}, as its shape says")
    return data


def answer_of(request: InferRequest, asked: Query, model: str, labels: list[str], answer: Ranking) -> InferResponse:
    """The outputs that were wanted."""
    made = {label: answer.scores[:, at] for at, label in enumerate(labels)} | {"score": answer.combined}
    names = [item.name for item in request.outputs] or list(made)
    unknown = [name for name in names if name not in made]
    if unknown:
        raise BadRequest(f"outputs: {', '.join(unknown)[:200]}; allowed: {', '.join(made)}")
    versions = answer.versions
    return InferResponse(
        model_name=model,
        model_version=str(versions.sparse),
        id=request.id,
        outputs=[TensorOutput(name, [len(made[name])], "FP32", made[name].tolist()) for name in names],
        parameters={**versions._asdict(), **({"missing": ", ".join(asked.missing)} if asked.missing else {})},
    )
