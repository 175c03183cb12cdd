"""The OpenAPI document: what each route takes and gives, with the pipeline's own features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from serving import answers
from serving import open_inference as v2
from serving.answers import JSON, MSGPACK
from serving.inputs import Inputs, allowed_of, takes_lists
from serving.requests import EngagementsBody, PinBody, RankRequest, ScoreBody, ShadowBody
from serving.status import Status
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature, WeightFeature

_REF = "#/components/schemas/{name}"
_TYPES = (
    *(RankRequest, EngagementsBody, ScoreBody, PinBody, ShadowBody, v2.InferRequest),
    *(
        answers.RankResponse,
        answers.Accepted,
        answers.Readiness,
        answers.Live,
        answers.Score,
        answers.Pinned,
        answers.Shadowed,
        answers.Problem,
    ),
    *(Status, v2.ServerMetadata, v2.ModelMetadata, v2.InferResponse),
)
_WRONG = {
    400: "The body is not JSON or msgpack.",
    401: "Without a token, or with an unknown one.",
    403: "The token's role may not do this.",
    404: "There is no such thing.",
    408: "The request took longer than serve.timeout, or its header longer than serve.header_timeout.",
    413: "Too large, too many candidates, or too many ids in lists.",
    415: "Another content type than JSON or msgpack.",
    422: "A value does not fit.",
    429: "More requests a second than serve.rate.",
    431: "The header is larger than 64 KiB.",
    500: "A fault of the service; its log says more.",
    503: "Not now: no whole version yet, or too many requests are waiting.",
}
_ALWAYS, _SECURED = (408, 431, 500), (401, 403, 429)


def operation(
    path: str,
    name: str,
    secured: bool,
    summary: str,
    answer: type[Any],
    *wrong: int,
    body: type[Any] | None = None,
    status: int = 200,
) -> dict[str, Any]:
    """One operation, for FastAPI's ``openapi_extra``; ``wrong`` are the errors that not every route may answer."""
    errors = sorted({*_ALWAYS, *(_SECURED if secured else ()), *wrong})
    responses = {str(status): {"description": (answer.__doc__ or "").split("\n")[0], "content": _content(answer)}}
    for code in errors:
        # Ready or not, the body has the same form.
        said = answer if code == 503 and answer is answers.Readiness else answers.Problem
        responses[str(code)] = {"description": _WRONG[code], "content": _content(said)}
        if code in (429, 503):
            responses[str(code)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    found: dict[str, Any] = {"operationId": name, "summary": summary, "responses": responses}
    if body is not None:
        found["requestBody"] = {"required": True, "content": _content(body)}
    if secured:
        found["security"] = [{"bearer": []}, {}]
    if "{name}" in path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    return found


def _content(kind: type[Any]) -> dict[str, Any]:
    schema = {"schema": {"$ref": _REF.format(name=kind.__name__)}}
    return {JSON: schema, MSGPACK: schema}


def complete(document: dict[str, Any], inputs: Inputs, labels: list[str]) -> dict[str, Any]:
    """FastAPI's document with the schemas of bodies and answers, and the pipeline's features in them."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template=_REF)
    schemas["RankRequest"]["properties"]["features"] = _features(inputs.of_request, column=False)
    schemas["Candidates"]["properties"]["features"] = _features(inputs.of_candidates, column=True)
    for name, features in (("RankRequest", inputs.of_request), ("Candidates", inputs.of_candidates)):
        if features:
            schemas[name]["required"] = [*schemas[name].get("required", []), "features"]
    schemas["ScoreBody"]["properties"]["score"]["propertyNames"] = {"enum": labels}
    document["components"] = {
        "schemas": schemas,
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
    }
    return document


def _features(features: Mapping[str, Feature], *, column: bool) -> dict[str, Any]:
    values = {name: _value(feature) for name, feature in features.items()}
    return {
        "type": "object",
        "properties": {
            name: {"type": "array", "items": each, "minItems": 1} if column else each for name, each in values.items()
        },
        "required": list(features),
        "additionalProperties": {"type": "array"} if column else True,
        "description": "In msgpack a column may be packed bytes." if column else "Of the request: user, context.",
    }


def _value(feature: Feature) -> dict[str, Any]:
    return {**_type_of(feature), "description": f"{allowed_of(feature).capitalize()}; null where it is missing."}


def _type_of(feature: Feature) -> dict[str, Any]:
    ids = [{"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, {"type": "string"}, {"type": "null"}]
    number = {"type": ["number", "null"], "minimum": -3e38, "maximum": 3e38}
    match feature:
        case VectorFeature():
            return {"type": ["array", "null"], "items": number, "minItems": feature.size, "maxItems": feature.size}
        case DenseFeature(transform="age"):
            return {"anyOf": [{"type": ["number", "null"]}, {"type": "string", "format": "date-time"}]}
        case WeightFeature():
            return {**number, "minimum": 0}
        case DenseFeature() | SparseFeature(bucket="log2"):
            return number
        case SparseFeature(split=str()):
            return {"type": ["string", "null"]}
        case _:
            return {"type": ["array", "null"], "items": {"anyOf": ids}} if takes_lists(feature) else {"anyOf": ids}
