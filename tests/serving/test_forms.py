"""Headers say in which form a body is and an answer is wanted; paths and methods that are none are named with what is allowed."""

from __future__ import annotations

import codecs
from typing import Any

import msgspec
import pytest

from minutely.services.serve import make_replica_service
from paramserver.files import LocalFiles
from serving.answers import JSON, MSGPACK
from serving.http import Service
from streaming.clock import EventClock
from tests.serving.asgi import answered
from tests.serving.publishing import make_pipeline

TOKEN = "admin-0123456789abcdef"
SCORE = {"score": {"click": 2.0}}
IN_JSON, IN_MSGPACK = msgspec.json.encode(SCORE), msgspec.msgpack.encode(SCORE)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("forms")
    (folder / "token").write_text(TOKEN)
    pipeline = make_pipeline(serve={"tokens": {"admin": {"file": str(folder / "token")}}})
    files = LocalFiles(folder, durable=False)
    return Service(make_replica_service(pipeline, files, EventClock(1_700_000_000_000), "replica"), lambda: None)


def ask(
    service: Service, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    sent = {"authorization": f"Bearer {TOKEN}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return answered(service, method, path, body, sent)


@pytest.mark.parametrize(
    ("accept", "kind", "answer"),
    [
        ("application/json, application/msgpack;q=0.1", JSON, JSON),
        ("application/json, application/msgpack;q=0.1", MSGPACK, JSON),
        ("application/json;q=0.5, application/msgpack", JSON, MSGPACK),
        ("Application/MsgPack", JSON, MSGPACK),
        ("application/msgpack;q=0, */*", MSGPACK, JSON),
        ("text/html, application/*;q=0.2", MSGPACK, MSGPACK),
        ("text/plain; x=msgpack", JSON, JSON),
        ("*/*", MSGPACK, MSGPACK),
        ("*/*", JSON, JSON),
        ("", MSGPACK, MSGPACK),
        (";;q=, ,application/json;q=much", MSGPACK, JSON),
        ("application/json" + "," * 32 + MSGPACK, MSGPACK, JSON),  # its end is not looked at
    ],
)
def test_answers_are_in_the_form_that_is_wanted_most(service: Service, accept: str, kind: str, answer: str) -> None:
    body = IN_JSON if kind == JSON else IN_MSGPACK
    status, headers, content = ask(service, "PUT", "/v1/score", body, accept=accept, content_type=kind)
    assert (status, headers["content-type"]) == (200, answer), content
    assert (msgspec.json if answer == JSON else msgspec.msgpack).decode(content)["score"]["click"] == 2.0


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("Application/MsgPack", IN_MSGPACK),
        ("application/json; charset=UTF-8", IN_JSON),
        ('application/json; charset="utf-8"', codecs.BOM_UTF8 + IN_JSON),
    ],
)
def test_bodies_are_read_in_the_form_that_they_have(service: Service, kind: str, body: bytes) -> None:
    assert ask(service, "PUT", "/v1/score", body, content_type=kind)[0] == 200


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"content_type": "text/plain; x=msgpack"}, "content type text/plain; x=msgpack; allowed: "),
        ({"content_type": JSON, "content_encoding": "gzip"}, "content encoding gzip; allowed: none"),
        ({"content_type": f"{JSON}; charset=utf-16"}, "charset utf-16; allowed: utf-8"),
    ],
)
def test_other_forms_are_named(service: Service, headers: dict[str, str], said: str) -> None:
    status, _, content = ask(service, "PUT", "/v1/score", IN_JSON, **headers)
    assert status == 415 and said in msgspec.json.decode(content)["error"]


def counted(service: Service) -> Any:
    return {status: service._metrics.requests.labels("other", status)._value.get() for status in ("404", "405")}


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/rank/"), ("GET", "/v1/status/"), ("POST", "/v1/ranking")])
def test_a_path_that_is_none_is_named(service: Service, method: str, path: str) -> None:
    before = counted(service)
    status, headers, content = ask(service, method, path, host="evil.example")
    assert status == 404 and "location" not in headers
    error = msgspec.json.decode(content)["error"]
    assert error.startswith(f"no such path: {path}; allowed: ") and "/v1/rank" in error and "/v2/models/{name}" in error
    assert counted(service) == {**before, "404": before["404"] + 1}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/rank", "POST"), ("GET", "/v1/pin", "DELETE, PUT"), ("PUT", "/v2", "GET, HEAD")],
)
def test_a_method_that_is_none_is_named(service: Service, method: str, path: str, allowed: str) -> None:
    before = counted(service)
    status, headers, content = ask(service, method, path)
    assert (status, headers["allow"]) == (405, allowed)
    assert msgspec.json.decode(content)["error"] == f"{method} {path}; allowed: {allowed}"
    assert counted(service) == {**before, "405": before["405"] + 1}
