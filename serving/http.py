"""The HTTP service: access, limits on what is read, which part answers, and in which form."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version as package_version
from typing import Any, TypeAlias, TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from serving import answers
from serving import open_inference as v2
from serving.access import Denied, Rate
from serving.answers import JSON, MSGPACK, Accepted, Live, Pinned, Problem, Readiness, Score, Shadowed, rank_answer
from serving.forms import answered_in_msgpack, body_is_msgpack, json_text
from serving.gone import Gone, gone_of
from serving.inputs import BadRequest
from serving.metrics import ConnectionMetrics, ReplicaMetrics, RequestMetrics
from serving.openapi import complete
from serving.ranking import order_of
from serving.reading import Reading
from serving.requests import (
    EngagementsBody,
    PinBody,
    ScoreBody,
    ShadowBody,
    decode,
    engagement_of,
)
from serving.routes import ROUTES, RouteSpec
from serving.scoring import Busy
from serving.service import ReplicaService
from serving.settings import Role
from serving.worker import aside

_log = logging.getLogger("minutely.serve")

T = TypeVar("T")
Answered: TypeAlias = tuple[int, msgspec.Struct]
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
Handler: TypeAlias = Callable[[bytes, bool, Gone], Awaitable[Answered]]

_RETRY = {"Retry-After": "1"}
_CLOSED_REQUEST = 499
_BODIES = 64
_OTHER = "other"


class _Route(APIRoute):
    """A route whose endpoint takes the request and gives the response, with nothing of FastAPI's in between."""

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive))
            await response(scope, receive, send)

        self.app = answer


class Service:
    """Routes over one replica. ``pin_changed`` is called when the puller has something to do at once."""

    def __init__(self, replica: ReplicaService, pin_changed: Callable[[], None]) -> None:
        self._replica = replica
        self._pin_changed = pin_changed
        rate = replica.settings.rate
        self._rates: dict[Role, Rate] = {role: Rate(rate) for role in ("rank", "engage", "admin")} if rate else {}
        self._registry = CollectorRegistry()
        self._metrics = RequestMetrics(self._registry)
        self.connections = ConnectionMetrics(self._registry)
        self._body_bytes = 0
        self._reading = Reading(replica.settings.latency_budget / 1000)
        self._finding = asyncio.Lock()
        self._registry.register(ReplicaMetrics(replica))
        self._app = self._make_app()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers by FastAPI's router alone: the way through its middleware and dependencies, of which there are none here, would
        take as long as reading a ranking request."""
        scope["app"] = self._app
        if scope["method"] == "HEAD":  # as GET: the server keeps the body back
            scope = {**scope, "method": "GET"}
        try:
            await self._app.router(scope, receive, send)
        except HTTPException as error:
            await self._no_route(scope, error.status_code)(scope, receive, send)

    def _make_app(self) -> FastAPI:
        app = FastAPI(
            title=f"Minutely: {self._replica.model}", version=package_version("minutely"), docs_url=None, redoc_url=None
        )
        app.router.redirect_slashes = False  # to wherever the client's Host says
        app.router.route_class = _Route
        handlers: dict[str, Handler] = {
            "rank": self._rank,
            "engage": self._engage,
            "status": self._status,
            "set_score": self._put_score,
            "pin": self._put_pin,
            "unpin": self._delete_pin,
            "shadow": self._put_shadow,
            "end_shadow": self._delete_shadow,
            "server_metadata": self._server,
            "live": self._live,
            "ready": self._ready,
            "model_metadata": self._model,
            "model_ready": self._ready,
            "infer": self._infer,
        }
        for route in ROUTES:
            self._add(app, route, handlers[route.name])
        app.add_api_route("/metrics", self._scrape, methods=["GET"], include_in_schema=False, response_model=None)
        made = app.openapi

        def openapi() -> dict[str, Any]:
            if app.openapi_schema is None:
                app.openapi_schema = complete(made(), self._replica.reader.inputs, self._replica.ranker.labels)
            return app.openapi_schema

        app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI has it done
        return app

    def _add(self, app: FastAPI, route: RouteSpec, handler: Handler) -> None:
        document, path = route.document, route.path
        has_body, wants_model = "requestBody" in document, "{name}" in path

        async def endpoint(request: Request) -> Response:
            started = time.perf_counter()
            response = await self._answer(request, handler, route.role, has_body, wants_model)
            self._metrics.requests.labels(path, str(response.status_code)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)
            return response

        app.add_api_route(
            path, endpoint, methods=[route.method], openapi_extra=document, response_class=Response, response_model=None,
            status_code=int(next(iter(document["responses"]))), operation_id=route.name, summary=document["summary"],
        )  # fmt: skip

    async def _answer(
        self, request: Request, handler: Handler, role: Role | None, has_body: bool, wants_model: bool
    ) -> Response:
        packed = answered_in_msgpack(request.headers)
        headers: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._replica.settings.timeout / 1000):
                if role is not None:
                    self._let_in(request, role)
                if wants_model and request.path_params["name"] != self._replica.model:
                    raise BadRequest(f"no such model; allowed: {self._replica.model}", 404)
                body = await self._body(request) if has_body else (b"", False)
                status, answer = await handler(*body, gone_of(request.scope))
        except Denied as error:
            status, answer = error.status, Problem(str(error))
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
        except BadRequest as error:
            status, answer = error.status, Problem(str(error))
        except Busy as error:
            status, answer = 503, Problem(f"not now: {error}")
        except TimeoutError:
            status, answer = 408, Problem(f"took longer than {self._replica.settings.timeout / 1000:g} s")
        except ClientDisconnect:
            return Response(status_code=_CLOSED_REQUEST)
        except Exception:  # ours, and counted as such
            _log.exception("could not answer %s %s", request.method, request.url.path)
            status, answer = 500, Problem("a fault of the service; its log says more")
        if status in (429, 503):
            headers = _RETRY
        content = answers.encode(answer, msgpack=packed)
        return Response(content, status, headers, MSGPACK if packed else JSON)

    def _let_in(self, request: Request, role: Role) -> None:
        self._replica.gate.check(role, request.headers.get("authorization"))
        rate = self._rates.get(role)
        if rate is not None and not rate.take(time.monotonic()):
            raise BadRequest(f"more than {self._replica.settings.rate:g} requests a second", 429)

    async def _body(self, request: Request) -> tuple[bytes, bool]:
        """The body, and whether it is msgpack; refused as soon as it is known to be too large."""
        packed, limit = body_is_msgpack(request.headers), self._replica.settings.max_body_bytes
        length = request.headers.get("content-length", "0")
        parts, size = [], 0
        if not length.isdigit() or int(length) <= limit:
            try:
                async for part in request.stream():
                    size += len(part)
                    self._body_bytes += len(part)
                    if size > limit:
                        break
                    if self._body_bytes > _BODIES * limit:
                        raise Busy(f"{self._body_bytes} bytes of bodies are being read")
                    parts.append(part)
                else:
                    body = b"".join(parts)
                    return body if packed else json_text(body), packed
            finally:
                self._body_bytes -= size
        raise BadRequest(f"a body of more than {limit} bytes; allowed: {limit}", 413)

    async def _rank(self, payload: bytes, packed: bool, gone: Gone) -> Answered:
        replica = self._replica
        if not replica.answers:
            raise Busy("no whole version yet")
        read = partial(replica.reader.rank, payload, msgpack=packed, now_ms=replica.clock.now_ms())
        asked = await self._reading.read(len(payload), read, gone)
        self._metrics.count_unknown(asked.unknown)
        self._metrics.missing_live.inc(bool(asked.missing))
        answer = await replica.scoring.score(asked, gone)
        if gone():
            raise ClientDisconnect  # the client saw no answer
        order = order_of(asked, answer)
        replica.served(asked, answer, order)
        return 200, rank_answer(asked, answer, order, replica.ranker.labels, replica.freshness.age_seconds())

    async def _infer(self, payload: bytes, packed: bool, gone: Gone) -> Answered:
        replica = self._replica
        if not replica.answers:
            raise Busy("no whole version yet")
        read = partial(v2.read, payload, replica.reader, msgpack=packed, now_ms=replica.clock.now_ms())
        request, asked = await self._reading.read(len(payload), read, gone)
        self._metrics.count_unknown(asked.unknown)
        self._metrics.missing_live.inc(bool(asked.missing))
        answer = await replica.scoring.score(asked, gone)
        return 200, v2.answer_of(request, asked, replica.model, replica.ranker.labels, answer)

    async def _engage(self, payload: bytes, packed: bool, _gone: Gone) -> Answered:
        replica = self._replica
        body = await self._reading.read(len(payload), partial(decode, EngagementsBody, payload, msgpack=packed))
        now_ms = replica.clock.now_ms()
        bounds = replica.max_future_ms, replica.earliest_ms
        engagements = [engagement_of(item, now_ms, *bounds) for item in body.engagements]
        if not replica.settings.log:
            raise BadRequest("serve.log is off: there is no log to take engagements", 404)
        if not replica.engaged(engagements):
            raise Busy("the log takes no more at the moment")
        unused = sum(each.action not in replica.actions for each in engagements)
        self._metrics.unused.inc(unused)
        return 202, Accepted(len(engagements), unused)

    async def _status(self, _payload: bytes, _packed: bool, _gone: Gone) -> Answered:
        return 200, self._replica.status()

    async def _put_score(self, payload: bytes, packed: bool, _gone: Gone) -> Answered:
        body = decode(ScoreBody, payload, msgpack=packed)
        try:
            self._replica.ranker.weights = body.score
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return 200, Score(self._replica.ranker.weights)

    async def _found(self, find: Callable[[], T]) -> T:
        """What ``find`` finds among the published versions, whose store may be slow or away; one search at a time."""
        async with self._finding:
            try:
                return await aside(find)
            except LookupError as error:
                raise BadRequest(str(error), 404) from None
            except OSError as error:
                raise Busy(f"what is published cannot be listed: {error}") from None

    async def _put_pin(self, payload: bytes, packed: bool, _gone: Gone) -> Answered:
        body = decode(PinBody, payload, msgpack=packed)
        version = await self._found(partial(self._replica.puller.find, body.version))
        self._replica.puller.pin(version)
        self._pin_changed()
        return 200, Pinned(version)

    async def _delete_pin(self, _payload: bytes, _packed: bool, _gone: Gone) -> Answered:
        self._replica.puller.unpin()
        self._pin_changed()
        return 200, Pinned(None)

    async def _put_shadow(self, payload: bytes, packed: bool, _gone: Gone) -> Answered:
        body = decode(ShadowBody, payload, msgpack=packed)
        shadowing = self._replica.shadowing
        shadowing.begin(await self._found(partial(shadowing.make, body.version, body.share)))
        return 200, Shadowed(body.version, body.share)

    async def _delete_shadow(self, _payload: bytes, _packed: bool, _gone: Gone) -> Answered:
        self._replica.shadowing.end()
        return 200, Shadowed(None, 0.0)

    async def _server(self, _payload: bytes, _packed: bool, _gone: Gone) -> Answered:
        return 200, v2.ServerMetadata("minutely", package_version("minutely"))

    async def _live(self, _payload: bytes, _packed: bool, _gone: Gone) -> Answered:
        return 200, Live()

    async def _ready(self, _payload: bytes, _packed: bool, _gone: Gone) -> Answered:
        ready, state = self._replica.ready()
        return (200 if ready else 503), Readiness(ready, state)

    async def _model(self, _payload: bytes, _packed: bool, _gone: Gone) -> Answered:
        replica = self._replica
        outputs = [v2.TensorMetadata(name, "FP32", [-1]) for name in (*replica.ranker.labels, "score")]
        version = str(replica.replica.sparse_version)
        return 200, v2.ModelMetadata(replica.model, [version], "minutely", v2.inputs_of(replica.reader.inputs), outputs)

    async def _scrape(self, _request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _no_route(self, scope: Scope, status: int) -> Response:
        """What the router refuses: no such path, no such method."""
        self._metrics.requests.labels(_OTHER, str(status)).inc()
        path, routes = scope["path"][:200], [route for route in self._app.routes if isinstance(route, Route)]
        # The router itself would name the methods of one of the path's routes.
        methods = {each for route in routes if route.matches(scope)[0] != Match.NONE for each in route.methods or ()}
        if methods:
            allowed = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
            said, headers = f"{scope['method']} {path}; allowed: {allowed}", {"Allow": allowed}
        else:
            paths = ", ".join(dict.fromkeys(route.path for route in routes))
            said, headers = f"no such path: {path}; allowed: {paths}", {}
        packed = answered_in_msgpack(Headers(scope=scope))
        content = answers.encode(Problem(said), msgpack=packed)
        return Response(content, status, headers, MSGPACK if packed else JSON)
