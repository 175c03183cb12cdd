"""Whoever connects and says nothing, or too slowly, or does not listen: others are answered, and it is counted."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from serving.listening import HEALTH_PATHS
from stack.ports import free_ports
from tests.kafka.test_security import certificate
from tests.serving.publishing import Publisher, draw, make_pipeline, rank_body
from tests.serving.server import Server

IDLE = 1_023


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("connections")
    pipeline = make_pipeline(
        serve={
            "header_timeout": "2s",
            "timeout": "3s",
            "idle_timeout": "2500ms",
            "max_connections": 1_500,
            "max_connections_by_peer": 1_000,
        }
    )
    publisher = Publisher(pipeline, folder / "deltas")
    publisher.next(time.time_ns() // 1_000_000)
    made = Server(pipeline, folder / "deltas", folder / "server", health_port=free_ports(1)[0]).start()
    try:
        made.wait()
        yield made
        assert made.process.end() == 0, made.process.output
        assert "Traceback" not in made.process.output, made.process.output
        assert made.process.output.count("\n") < 20, "who connects cannot fill a log"
    finally:
        made.process.kill()


def connect(server: Server, host: str = "127.0.0.1", *, health: bool = False) -> socket.socket:
    port = server.health_port if health else server.port
    return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(host, 0))


def refused(server: Server, reason: str, listener: str = "main") -> float:
    said = server.ask("GET", "/metrics", health=True)[1]
    found = re.search(rf'minutely_serve_refused_total{{listener="{listener}",reason="{reason}"}} (\S+)', said)
    assert found is not None, said
    return float(found[1])


def test_idle_connections_keep_nobody_out(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, IDLE + 500)), hard))
    body = rank_body(draw(np.random.default_rng(1), 3), [1, 2, 3])
    before = refused(server, "displaced")
    with ExitStack() as open_:
        for _ in range(IDLE):
            open_.enter_context(connect(server))
        assert server.ask("POST", "/v1/rank", body)[0] == 200
        assert server.ask("GET", "/v2/health/ready")[0] == 200
        assert server.ask("GET", "/v2/health/live", health=True)[0] == 200
        assert refused(server, "displaced") - before >= IDLE - 1_000
        for _ in range(600):  # those of another peer have places of their own
            open_.enter_context(connect(server, "127.0.0.2"))
        assert server.ask("POST", "/v1/rank", body)[0] == 200


@pytest.mark.parametrize("sent", [b"", b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nX-A"], ids=["silent", "half a header"])
def test_a_slow_header_is_ended(server: Server, sent: bytes) -> None:
    before, begun = refused(server, "header_slow"), time.monotonic()
    with connect(server) as slow:
        slow.sendall(sent)
        answer = b""
        try:
            for _ in range(100):  # a byte now and then is not enough
                if sent:
                    slow.sendall(b"x")
                slow.settimeout(0.1)
                try:
                    answer = slow.recv(1000)
                    break
                except TimeoutError:
                    continue
        except OSError:
            pass  # ended while we were sending
    assert 1.5 < time.monotonic() - begun < 6
    assert not answer or b" 408 " in answer
    assert refused(server, "header_slow") == before + 1


@pytest.mark.parametrize(
    "before_them",
    [b"GET / HTTP/1.1\r\n", b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"],
    ids=["a header", "trailers"],
)
def test_headers_without_end_are_refused(server: Server, before_them: bytes) -> None:
    before = refused(server, "header_large")
    with connect(server) as endless:
        try:
            endless.sendall(before_them)
            for at in range(100_000):
                endless.sendall(b"X-%d: %s\r\n" % (at, b"a" * 1000))
        except OSError:
            pass
    assert refused(server, "header_large") == before + 1


def test_a_large_body_is_no_header(server: Server) -> None:
    body = json.dumps(rank_body(draw(np.random.default_rng(1), 2_000), list(range(2_000)))).encode()
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
    head = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    assert len(body) > 150_000
    before = refused(server, "header_large")
    with connect(server) as large:
        large.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(3):
            large.sendall(head)
            time.sleep(0.1)
            large.sendall(body + live)  # and half of the next
            time.sleep(0.3)
            large.sendall(b"\r\n")
            answer = b""
            while not answer.endswith(b'{"live":true}'):
                part = large.recv(1_000_000)
                assert part, answer[:1000]
                answer += part
            assert answer.count(b"HTTP/1.1 200") == 2 and b"connection: close" not in answer, answer[:1000]
    assert refused(server, "header_large") == before


def test_who_does_not_read_is_ended(server: Server) -> None:
    before = refused(server, "reader_slow")
    body = json.dumps(rank_body(draw(np.random.default_rng(1), 2_000), list(range(2_000)))).encode()
    head = f"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        deaf.settimeout(10)
        with suppress(TimeoutError, ConnectionError):  # what is sent after the end
            deaf.sendall((head.encode() + body) * 60)  # whose answers are more than what the system keeps for a client
        until = time.monotonic() + 20
        while refused(server, "reader_slow") == before and time.monotonic() < until:
            time.sleep(0.2)
    assert refused(server, "reader_slow") == before + 1


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(server: Server) -> None:
    with connect(server) as slow:
        slow.sendall(
            b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: text/html\r\nContent-Length: 99999999\r\n\r\n"
        )
        assert slow.recv(1000).split()[1] == b"415"
        begun = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < begun + 15:
                slow.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - begun < 6


def test_what_is_no_request_is_counted(server: Server) -> None:
    before = refused(server, "not_http")
    with connect(server) as garbage:
        garbage.sendall(b"\x00\x01\r\n\r\n")
        answer = garbage.recv(1000)
        assert answer.split()[1] == b"400" and b'{"error":' in answer
    assert refused(server, "not_http") == before + 1
    assert server.ask("GET", "/v1/nothing")[0] == 404
    assert 'minutely_serve_requests_total{route="other",status="404"}' in server.ask("GET", "/metrics", health=True)[1]


def test_what_comes_after_an_answer_that_is_on_its_way_does_not_harm_it(server: Server) -> None:
    with connect(server) as mixed:
        mixed.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n\x00\x01\r\n\r\n")
        answer = b""
        while part := mixed.recv(10_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1, "and then it closes"


def test_requests_that_wait_for_an_answer_are_bounded(server: Server) -> None:
    """A bufferful of them stopped every listener for half a second, and took a hundred times its bytes."""
    before = refused(server, "pipelined")
    with connect(server) as hasty:
        hasty.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        answer = b""
        while part := hasty.recv(10_000):
            answer += part
    assert answer.count(b"HTTP/1.1 200") == 17, "what was read is answered, and then it closes"
    assert refused(server, "pipelined") == before + 1


@pytest.mark.parametrize("offered", ["h2c", "websocket"])
@pytest.mark.parametrize("cut", ["nowhere", "after the header", "everywhere"])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_of_another_protocol_changes_nothing(server: Server, offered: str, cut: str, chunked: bool) -> None:
    body = json.dumps(rank_body(draw(np.random.default_rng(1), 3), [1, 2, 3])).encode()
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = (
        b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: %s\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n%s\r\n\r\n"
    ) % (offered.encode(), length)
    sent = head + (b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body) + live
    pieces = {
        "nowhere": [sent],
        "after the header": [sent[: len(head)], sent[len(head) :]],
        "everywhere": [sent[at : at + 7] for at in range(0, len(sent), 7)],
    }
    with connect(server) as asked:
        asked.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            for piece in pieces[cut]:
                asked.sendall(piece)
                time.sleep(0.2 if cut == "after the header" else 0.0005)
            answer = b""
            while not answer.endswith(b'{"live":true}'):
                part = asked.recv(10_000)
                assert part, answer
                answer += part
            assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200"], answer
            assert b'"request_id"' in answer, "as without it"


@pytest.mark.parametrize(
    ("version", "offer"), [("1.1", "close, Upgrade"), ("1.0", "Upgrade"), ("1.0", "keep-alive, Upgrade")]
)
@pytest.mark.parametrize("cut", [False, True])
def test_an_offer_on_a_connection_that_closes_is_answered_once(
    server: Server, version: str, offer: str, cut: bool
) -> None:
    body = json.dumps(rank_body(draw(np.random.default_rng(1), 3), [1, 2, 3])).encode()
    more = f"Host: x\r\nConnection: {offer}\r\nUpgrade: h2c\r\n".encode()
    for line, with_body in ((b"GET /v2/health/live", b""), (b"POST /v1/rank", body)):
        head = b"%s HTTP/%s\r\n%sContent-Type: application/json\r\n" % (line, version.encode(), more)
        head += b"Content-Length: %d\r\n\r\n" % len(with_body)
        with connect(server) as asked:
            asked.sendall(head if cut else head + with_body)
            if cut and with_body:
                time.sleep(0.2)
                asked.sendall(with_body)
            answer = b"".join(iter(lambda of=asked: of.recv(1 << 16), b""))
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200"], answer


def test_who_sends_no_more_is_answered(server: Server) -> None:
    """Where that comes before scores do, a ranking request's client is taken to have left, and that is the answer (499)."""
    body = json.dumps(rank_body(draw(np.random.default_rng(1), 3), [1, 2, 3])).encode()
    rank = b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    for sent, answers, may_be in (
        (live, 1, ()),
        (2 * live, 2, ()),
        (live + b"GET /v2/hea", 1, ()),
        (rank % (len(body), body), 1, (b"499",)),
        (2 * (rank % (len(body), body)), 2, (b"499",)),
        (rank % (len(body), body) + b"GET /v2/hea", 1, (b"499",)),
        (rank % (len(body) + 1, body), 0, ()),
        (b"", 0, ()),
    ):
        took = []
        for _ in range(20):
            with connect(server) as asked:
                asked.sendall(sent)
                asked.shutdown(socket.SHUT_WR)
                began = time.monotonic()
                answer = b"".join(iter(lambda of=asked: of.recv(1 << 16), b""))
            found = re.findall(rb"HTTP/1.1 (\d+)", answer)
            assert len(found) == answers and {*found} <= {b"200", *may_be}, (sent, answer)
            took.append(time.monotonic() - began)
        assert np.median(took) < 1.9, "and closed at once"


def test_a_connection_waits_for_its_next_request_as_long_as_configured(server: Server) -> None:
    for health in (False, True):
        with connect(server, health=health) as asked:
            for _ in range(2):
                asked.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b'{"live":true}'):
                    part = asked.recv(10_000)
                    assert part, answer
                    answer += part
                time.sleep(1)
            began = time.monotonic()
            assert asked.recv(10_000) == b""
            assert 0.5 < time.monotonic() - began < 10


def test_a_body_is_no_request(server: Server) -> None:
    inner = b"GET /v2/models/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as asked:
        asked.sendall(
            b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" % len(inner)
        )
        time.sleep(0.3)
        asked.sendall(inner)
        asked.settimeout(1)
        answer = b""
        with pytest.raises(TimeoutError):
            while part := asked.recv(10_000):
                answer += part
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"] and b"hidden" not in answer


def test_a_tunnel_is_refused(server: Server) -> None:
    before = refused(server, "not_http")
    with connect(server) as asked:
        asked.sendall(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while part := asked.recv(10_000):
            answer += part
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]
    assert refused(server, "not_http") == before + 1


def test_health_has_its_own_listener(server: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v1/status", "/metrics"):
        assert server.ask("GET", path, health=True)[0] == 200
    status, answer = server.ask("POST", "/v1/rank", {}, health=True)
    assert status == 404 and "/v2/health/live" in answer["error"]


def test_head_answers_as_get_without_a_body(server: Server) -> None:
    model = server.ask("GET", "/v2/models/test")[1]["name"]
    paths = [
        "/v1/status",
        "/v2",
        f"/v2/models/{model}",
        f"/v2/models/{model}/ready",
        "/v2/models/other",
        "/openapi.json",
    ]
    for path in [*HEALTH_PATHS, *paths]:
        for health in {False, path in HEALTH_PATHS}:
            with connect(server, health=health) as asked:
                asked.sendall(b"%s %s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"HEAD", path.encode()))
                asked.sendall(b"%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % (b"GET", path.encode()))
                answers = b"".join(iter(lambda of=asked: of.recv(1 << 16), b""))
            head, got, body = answers.split(b"\r\n\r\n", 2)
            assert head.splitlines()[0] == got.splitlines()[0] and b" 405 " not in head, (path, head)
            assert body and not body.startswith(b"HTTP"), path
    assert server.ask("HEAD", "/v1/rank")[0] == 405
    assert server.ask("HEAD", "/v1/nothing")[0] == 404


def test_tls_handshakes_have_places(tmp_path: Path) -> None:
    ca = certificate(tmp_path)
    tls = {"certificate": str(ca), "key": str(tmp_path / "key.pem")}
    pipeline = make_pipeline(
        serve={"tls": tls, "header_timeout": "3s", "max_connections": 100, "max_connections_by_peer": 50}
    )
    Publisher(pipeline, tmp_path / "deltas").next(time.time_ns() // 1_000_000)
    trusted = ssl.create_default_context(cafile=str(ca))
    made = Server(pipeline, tmp_path / "deltas", tmp_path / "server", tls=trusted, health_port=free_ports(1)[0]).start()
    try:
        made.wait()
        files = Path(f"/proc/{made.process.pid}/fd")
        before = len(list(files.iterdir()))
        with ExitStack() as open_:
            for _ in range(300):
                open_.enter_context(connect(made, "127.0.0.5"))
            assert made.ask("GET", "/v2/health/live")[0] == 200
            assert len(list(files.iterdir())) <= before + 60
            assert refused(made, "displaced") >= 250
            until = time.monotonic() + 10
            while len(list(files.iterdir())) > before + 5 and time.monotonic() < until:
                time.sleep(0.1)
            assert len(list(files.iterdir())) <= before + 5, "a handshake has a time"
            assert refused(made, "header_slow") == 50
        assert made.process.end() == 0, made.process.output
        assert "Traceback" not in made.process.output, made.process.output
    finally:
        made.process.kill()


def test_ends_within_its_timeout_unready_first(tmp_path: Path) -> None:
    pipeline = make_pipeline(serve={"timeout": "4s"})
    Publisher(pipeline, tmp_path / "deltas").next(time.time_ns() // 1_000_000)
    made = Server(
        pipeline, tmp_path / "deltas", tmp_path / "server", health_port=free_ports(1)[0], host="0.0.0.0"
    ).start()
    body = rank_body(draw(np.random.default_rng(1), 3), [1, 2, 3])
    try:
        made.wait()
        with connect(made) as slow:  # a request that came before the end, whose body comes after it
            head = b"POST /v1/engagements HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
            slow.sendall(head)
            time.sleep(0.3)
            os.kill(made.process.pid, signal.SIGTERM)
            begun = time.monotonic()
            assert made.wait("/v2/health/ready", 503) < 1
            assert made.ask("GET", "/v2/health/ready")[1] == {"ready": False, "state": "ending"}
            assert made.ask("POST", "/v1/rank", body)[0] == 200, "who has not noticed is answered"
            while True:
                try:
                    made.ask("GET", "/v2/health/live")
                except OSError:
                    break
                assert time.monotonic() < begun + 10
            assert made.ask("GET", "/v2/health/ready", health=True)[0] == 503, "health is the last to end"
            slow.sendall(b"{}")
            assert slow.recv(1000).split()[1] == b"422", "what came is answered"
        assert made.process.wait() == 0, made.process.output
        assert time.monotonic() - begun < 4 + 15, "and a process that ends unloads what it had loaded"
        said = made.process.output
        assert f"listening at http://0.0.0.0:{made.port}, for health at http://127.0.0.1:" in said
        open_to_all = "serve.tokens.rank and serve.tokens.engage not set, so anyone who can reach 0.0.0.0:"
        assert f"WARNING {open_to_all}{made.port}" in said and "serve.tokens.admin not set, so nobody may" in said
        assert "serves version 1, with the dense weights of 1" in said
    finally:
        made.process.kill()
