"""The table of routes: path, role, and what each takes and gives."""

from __future__ import annotations

from typing import Any, NamedTuple

from serving import answers, requests
from serving import open_inference as v2
from serving.openapi import operation
from serving.settings import Role
from serving.status import Status

_BAD = (400, 413, 415, 422)
_LATER = (404, 503)


class RouteSpec(NamedTuple):
    """One route. Without a ``role`` everybody may ask. ``document`` is its operation in the OpenAPI document."""

    method: str
    path: str
    role: Role | None
    document: dict[str, Any]

    @property
    def name(self) -> str:
        """The operation's name."""
        return str(self.document["operationId"])


def _route(
    method: str, path: str, name: str, role: Role | None, summary: str, answer: type[Any], *wrong: int,
    body: type[Any] | None = None, status: int = 200,
) -> RouteSpec:  # fmt: skip
    return RouteSpec(
        method, path, role, operation(path, name, role is not None, summary, answer, *wrong, body=body, status=status)
    )


# fmt: off
ROUTES = (
    _route("POST", "/v1/rank", "rank", "rank", "Order candidates, and log what is answered.",
           answers.RankResponse, *_BAD, 503, body=requests.RankRequest),
    _route("POST", "/v1/engagements", "engage", "engage", "Tell what users did.",
           answers.Accepted, *_BAD, *_LATER, body=requests.EngagementsBody, status=202),
    _route("GET", "/v1/status", "status", None, "Versions and freshness.", Status),
    _route("PUT", "/v1/score", "set_score", "admin", "Change the weights of the combined score.",
           answers.Score, *_BAD, body=requests.ScoreBody),
    _route("PUT", "/v1/pin", "pin", "admin", "Stay at a version.", answers.Pinned, *_BAD, *_LATER, body=requests.PinBody),
    _route("DELETE", "/v1/pin", "unpin", "admin", "Follow again: the newest version, or a rollback's.", answers.Pinned),
    _route("PUT", "/v1/shadow", "shadow", "admin", "Score a share with a second version, beside.",
           answers.Shadowed, *_BAD, *_LATER, body=requests.ShadowBody),
    _route("DELETE", "/v1/shadow", "end_shadow", "admin", "Score with no second version.", answers.Shadowed),
    _route("GET", "/v2", "server_metadata", None, "Who answers.", v2.ServerMetadata),
    _route("GET", "/v2/health/live", "live", None, "Whether it answers.", answers.Live),
    _route("GET", "/v2/health/ready", "ready", None, "Whether it should get requests.", answers.Readiness, 503),
    _route("GET", "/v2/models/{name}", "model_metadata", None, "Inputs and outputs.", v2.ModelMetadata, 404),
    _route("GET", "/v2/models/{name}/ready", "model_ready", None, "Whether it should get requests.", answers.Readiness, *_LATER),
    _route("POST", "/v2/models/{name}/infer", "infer", "rank", "Score rows; nothing is logged.",
           v2.InferResponse, *_BAD, *_LATER, body=v2.InferRequest),
)
# fmt: on
