"""Who may do what, and how often; and over TLS."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from basis.problems import CannotListen, Problems
from minutely.config import load_pipeline
from minutely.services.serve import serve
from minutely.services.service import Address, bind
from serving.access import Denied, Gate, Rate
from serving.client import Client, RefusedError
from serving.settings import Role, TokenSettings
from stack.ports import free_ports
from tests.kafka.services import started, write_config
from tests.kafka.test_security import certificate
from tests.serving.publishing import Publisher, draw, make_pipeline
from tests.serving.server import Server

SECRET = "a-token-of-thirty-two-characters"


@pytest.mark.parametrize(
    ("role", "given", "status"),
    [
        ("rank", f"Bearer {SECRET}", None),
        ("rank", f"Bearer  {SECRET} ", None),
        ("rank", None, 401),
        ("rank", SECRET, 401),
        ("rank", f"bearer {SECRET}", None),
        ("rank", f"Basic {SECRET}", 401),
        ("rank", f"Bearer {SECRET[:-1]}", 401),
        ("rank", f"Bearer {SECRET}x", 401),
        ("rank", "Bearer ", 401),
        ("rank", "Bearer \udcff", 401),
        ("engage", None, None),
        ("engage", "Bearer nonsense", None),
        ("admin", f"Bearer {SECRET}", 403),
        ("admin", None, 403),
    ],
)
def test_a_gate_with_a_token_for_rank_alone(role: Role, given: str | None, status: int | None) -> None:
    gate = Gate({"rank": ["another-token-of-the-role", SECRET]})
    if status is None:
        gate.check(role, given)
    else:
        with pytest.raises(Denied) as denied:
            gate.check(role, given)
        assert denied.value.status == status
        assert SECRET not in str(denied.value)


def test_a_rate_lets_bursts_of_a_second_through() -> None:
    rate = Rate(10)
    assert sum(rate.take(1000.0) for _ in range(50)) == 10
    assert sum(rate.take(1000.5) for _ in range(50)) == 5
    assert sum(rate.take(2000.0) for _ in range(50)) == 10, "unused seconds are not saved up"
    assert not rate.take(1.0), "a clock that goes back gives nothing"
    slow = Rate(0.1)
    assert slow.take(0.0) and not slow.take(9.0) and slow.take(19.1)


def test_tokens_that_could_be_guessed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "secret")
    monkeypatch.delenv("UNSET", raising=False)
    (tmp_path / "empty").write_text("\n\n")
    for settings in (
        TokenSettings(env="SHORT"),
        TokenSettings(env="UNSET"),
        TokenSettings(file=str(tmp_path / "empty")),
    ):
        with pytest.raises(Problems, match=r"tokens\.admin") as found:
            settings.read("admin")
        assert "secret" not in str(found.value)
    with pytest.raises(Problems, match="nowhere"):
        TokenSettings(file=str(tmp_path / "nowhere")).read("rank")


def test_mistakes_end_with_what_is_allowed(tmp_path: Path) -> None:
    tls = {"certificate": str(tmp_path / "no.pem"), "key": str(tmp_path / "no.key")}
    with pytest.raises(Problems, match=r"serve\.tls: files: .*no\.pem, .*allowed: PEM files"):
        serve(make_pipeline(serve={"tls": tls}), str(tmp_path), Address("127.0.0.1", free_ports(1)[0]), None, None)
    taken = Address("127.0.0.1", free_ports(1)[0])
    with (
        bind(taken, "--listen"),
        pytest.raises(CannotListen, match=rf"^--health {taken}: another program listens there; allowed: a free port$"),
    ):
        bind(taken, "--health")
    with pytest.raises(Problems, match=r"line \d+, serve\.score\.clicks: clicks; allowed: click, spent"):
        load_pipeline(write_config(make_pipeline(serve={"score": {"clicks": 1.0}}), tmp_path))


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    ca, key = certificate(tmp_path), tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", str(tmp_path / "key.pem"), "-out", str(key)],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = {"certificate": str(ca), "key": str(key)}
    told = r"serve\.tls: files: .*; a key with a passphrase; allowed: PEM files, the key without a passphrase"
    with pytest.raises(Problems, match=told) as found:
        serve(make_pipeline(serve={"tls": tls}), str(tmp_path), Address("127.0.0.1", free_ports(1)[0]), None, None)
    assert "secret" not in str(found.value)


def test_tls_and_rates(tmp_path: Path) -> None:
    ca = certificate(tmp_path)
    pipeline = make_pipeline(serve={"tls": {"certificate": str(ca), "key": str(tmp_path / "key.pem")}, "rate": 5})
    publisher = Publisher(pipeline, tmp_path / "deltas")
    publisher.next(time.time_ns() // 1_000_000)
    trusted = ssl.create_default_context(cafile=str(ca))
    server = Server(pipeline, tmp_path / "deltas", tmp_path / "server", tls=trusted)
    columns = draw(publisher.random, 1)
    features = {"item": columns["item"], "tags": [[1, 2]], "price": [1.5], "picture": [[0.0, 1.0, 2.0]]}
    with started(server.process):
        server.wait()
        client = Client(server.url, tls=trusted)
        assert client.ready() and client.status().sparse_version == 1
        assert client.rank({"user": 1}, ["a"], features).ids == ["a"]
        statuses = []
        for _ in range(20):
            try:
                client.rank({"user": "u"}, ["a"], features)
            except RefusedError as error:
                statuses.append((error.status, error.retry_after))
        assert (429, 1) in statuses and len(statuses) >= 10
        client.close()
        with pytest.raises(ssl.SSLError):
            Client(server.url).status()
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as plain:
            plain.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1 200" not in plain.recv(1000)
        assert server.process.end() == 0
