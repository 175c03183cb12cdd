"""`minutely serve` as a process: its answers are the trainer's model's, and nothing that is sent to it does harm."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from streaming.features.columns import Columns, Ragged
from tests.serving.publishing import Publisher, draw, make_pipeline, rank_body
from tests.serving.server import Server

TOKENS = {role: f"{role}-0123456789abcdef" for role in ("rank", "engage", "admin")}
COUNT = 100


class Setup:
    """A server, and the trainer that publishes to it."""

    def __init__(self, server: Server, publisher: Publisher) -> None:
        self.server = server
        self.publisher = publisher

    def rank(self, columns: Columns, **more: Any) -> tuple[int, Any]:
        body = rank_body(columns, [f"c{place}" for place in range(len(columns["user"]))], **more)
        return self.server.ask("POST", "/v1/rank", body, token=TOKENS["rank"])


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "admin-token").write_text(f"an-older-admin-token\n{TOKENS['admin']}\n")
    tokens = {role: {"env": f"TEST_{role.upper()}_TOKEN"} for role in ("rank", "engage")}
    tokens["admin"] = {"file": str(folder / "admin-token")}
    pipeline = make_pipeline(
        serve={"tokens": tokens, "max_body_bytes": 200_000, "max_candidates": 500, "timeout": "2s"},
        sync={"sparse_every": "60s"},
    )
    publisher = Publisher(pipeline, folder / "deltas")
    with pytest.MonkeyPatch.context() as patch:
        for role in ("rank", "engage"):
            patch.setenv(f"TEST_{role.upper()}_TOKEN", TOKENS[role])
        server = Server(pipeline, folder / "deltas", folder / "server").start()
    try:
        server.wait("/v2/health/live")
        assert server.ask("GET", "/v2/health/ready") == (503, {"ready": False, "state": "no whole version yet"})
        assert server.ask("POST", "/v1/rank", {}, token=TOKENS["rank"])[0] == 503
        publisher.next(time.time_ns() // 1_000_000)
        server.wait()
        yield Setup(server, publisher)
        assert server.process.runs, server.process.output
        assert server.process.end() == 0, server.process.output
        said = server.process.output
        assert "Traceback" not in said, said
        assert not any(token in said for token in TOKENS.values()), "tokens are never logged"
    finally:
        server.process.kill()


def _scores(answer: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Scores in the order that was asked, [count, labels]."""
    found = np.empty((len(answer["ids"]), 2))
    places = [int(name.removeprefix("c")) for name in answer["ids"]]
    for at, label in enumerate(("click", "spent")):
        found[places, at] = answer["scores"][label]
    return found


def test_scores_are_the_models(setup: Setup) -> None:
    columns = draw(np.random.default_rng(1), COUNT)
    status, answer = setup.rank(columns, request_id="r1")
    assert status == 200
    wanted = setup.publisher.scores(columns, COUNT)
    assert np.abs(_scores(answer) - wanted).max() < 1e-6
    combined = wanted @ np.array([1.0, 0.25])
    assert np.allclose(answer["score"], np.sort(combined)[::-1], atol=1e-6), "best first"
    assert answer["ids"] == [f"c{place}" for place in np.argsort(-combined.astype(np.float32), kind="stable")]
    assert answer["impression_ids"] == [f"r1.{name.removeprefix('c')}" for name in answer["ids"]]
    assert (answer["sparse_version"], answer["sparse_version_until"], answer["dense_version"]) == (1, 1, 1)
    assert 0 <= answer["freshness_seconds"] < 120


def test_a_limit_answers_the_best(setup: Setup) -> None:
    columns = draw(np.random.default_rng(2), COUNT)
    whole, best = setup.rank(columns)[1], setup.rank(columns, limit=7)[1]
    assert best["ids"] == whole["ids"][:7]
    assert len(best["score"]) == len(best["scores"]["click"]) == 7


def test_msgpack_and_packed_columns(setup: Setup) -> None:
    columns = draw(np.random.default_rng(3), COUNT)
    body = rank_body(columns, list(range(COUNT)))
    asked = setup.server.ask("POST", "/v1/rank", body, token=TOKENS["rank"])[1]
    plain = setup.server.ask("POST", "/v1/rank", body, token=TOKENS["rank"], msgpack=True)[1]
    tags = columns["tags"]
    assert isinstance(tags, Ragged)
    packed: dict[str, Any] = {name: columns[name].tobytes() for name in ("item", "price", "picture")}  # type: ignore[union-attr]
    packed["tags"] = [np.diff(tags.offsets).astype("<i4").tobytes(), tags.values.tobytes()]
    body["candidates"]["features"] = packed
    binary = setup.server.ask("POST", "/v1/rank", body, token=TOKENS["rank"], msgpack=True)[1]
    assert asked["ids"] == plain["ids"] == binary["ids"]
    assert asked["score"] == plain["score"] == binary["score"]
    body["candidates"]["features"]["price"] = packed["price"][:-1]
    status, wrong = setup.server.ask("POST", "/v1/rank", body, token=TOKENS["rank"], msgpack=True)
    assert status == 422 and "candidates.features.price: 399 bytes for 100 impressions" in wrong["error"]


def test_texts_are_ids_as_everywhere(setup: Setup) -> None:
    columns = draw(np.random.default_rng(4), 5)
    body = rank_body(columns, list(range(5)))
    as_texts = json.loads(json.dumps(body))
    as_texts["candidates"]["features"]["item"] = [str(item) for item in body["candidates"]["features"]["item"]]
    as_texts["features"]["user"] = str(body["features"]["user"])
    ask = setup.server.ask
    assert (
        ask("POST", "/v1/rank", body, token=TOKENS["rank"])[1]["score"]
        == ask("POST", "/v1/rank", as_texts, token=TOKENS["rank"])[1]["score"]
    )


def test_open_inference(setup: Setup) -> None:
    server, columns = setup.server, draw(np.random.default_rng(5), 6)
    tags = columns["tags"]
    assert isinstance(tags, Ragged)
    model = server.ask("GET", "/v2/models/test")[1]
    assert {item["name"] for item in model["inputs"]} == {"user", "item", "tags", "tags.lengths", "price", "picture"}
    inputs = [
        {"name": "user", "datatype": "INT64", "shape": [6], "data": columns["user"].tolist()},
        {"name": "item", "datatype": "BYTES", "shape": [6], "data": [str(item) for item in columns["item"]]},
        {"name": "tags", "datatype": "INT64", "shape": [len(tags.values)], "data": tags.values.tolist()},
        {"name": "tags.lengths", "datatype": "INT64", "shape": [6], "data": np.diff(tags.offsets).tolist()},
        {"name": "price", "datatype": "FP32", "shape": [6], "data": columns["price"].tolist()},
        {"name": "picture", "datatype": "FP32", "shape": [6, 3], "data": columns["picture"].tolist()},
    ]
    path, token = "/v2/models/test/infer", TOKENS["rank"]
    status, answer = server.ask("POST", path, {"id": "a", "inputs": inputs}, token=token)
    assert status == 200 and answer["id"] == "a" and answer["model_version"] == "1"
    wanted = setup.publisher.scores(columns, 6)
    found = {item["name"]: item["data"] for item in answer["outputs"]}
    assert np.abs(np.stack([found["click"], found["spent"]], 1) - wanted).max() < 1e-6
    only = server.ask("POST", path, {"inputs": inputs, "outputs": [{"name": "score"}]}, token=token)[1]
    assert [item["name"] for item in only["outputs"]] == ["score"]
    assert server.ask("POST", "/v2/models/other/infer", {"inputs": inputs}, token=token)[0] == 404
    inputs[3]["data"] = [1, 1, 1, 1, 1, 100]
    status, wrong = server.ask("POST", path, {"inputs": inputs}, token=token)
    assert status == 422 and "tags.lengths" in wrong["error"]
    inputs[3]["data"] = np.diff(tags.offsets).tolist()
    new = {"name": "colour", "datatype": "BYTES", "shape": [6], "data": ["red"] * 6}
    assert server.ask("POST", path, {"inputs": [*inputs, new]}, token=token)[0] == 200, (
        "sent before it is in the config"
    )
    assert server.ask("POST", path, {"inputs": [*inputs, inputs[0]]}, token=token)[0] == 422
    status, wrong = server.ask("POST", path, {"inputs": inputs[:5]}, token=token)
    assert status == 422 and "picture" in wrong["error"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("candidates", "features", "item"), [1] * 9, "item: 9 values; allowed: 10"),
        (("candidates", "features", "item"), [{"a": 1}] * 10, "item"),
        (
            ("candidates", "features", "item"),
            [1.5] * 10,
            "item: 1.5: numbers with fractions; allowed: an integer or a text",
        ),
        (("candidates", "features", "tags"), ["abc"] * 10, "lists of ids are expected"),
        (("candidates", "features", "price"), ["dear"] * 10, "price"),
        (
            ("candidates", "features", "price"),
            [1e300] * 10,
            "price: 1e+300; allowed: ",
        ),
        (("candidates", "features", "picture"), [[1, 2]] * 10, "picture"),
        (
            ("candidates", "features"),
            {"colour": [1] * 10, "item": [1] * 10},
            "missing picture, price, tags; unknown colour; allowed: item, tags, price, picture",
        ),
        (("candidates", "ids"), list("aabcdefghi"), "an id is given twice"),
        (("candidates", "ids"), [], "length"),
        (("features", "user"), [1], "user"),
        (("features",), {}, "features: missing user"),
        (("limit",), 0, "limit"),
        (("request_id",), "", "request_id"),
        (("request_id",), "x" * 300, "request_id"),
        (("nonsense",), 1, "nonsense"),
    ],
    ids=str,
)
def test_wrong_values_are_named(setup: Setup, path: tuple[str, ...], value: Any, said: str) -> None:
    body = rank_body(draw(np.random.default_rng(6), 10), list(range(10)))
    place = body
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    status, answer = setup.server.ask("POST", "/v1/rank", body, token=TOKENS["rank"])
    assert status == 422
    assert said in answer["error"]


def test_features_that_the_config_does_not_have_are_ignored_and_counted(setup: Setup) -> None:
    """Products send a feature before every replica has the config with it."""
    body = rank_body(draw(np.random.default_rng(6), 10), list(range(10)))
    name = "minutely_serve_unknown_features_total"

    def counts() -> dict[str, float]:
        lines = setup.server.ask("GET", "/metrics")[1].splitlines()
        counted = (line.rsplit(" ", 1) for line in lines if line.startswith(name))
        return {
            feature.removeprefix(f'{name}{{feature="').removesuffix('"}'): float(count) for feature, count in counted
        }

    before, first = setup.server.ask("POST", "/v1/rank", body, token=TOKENS["rank"])[1], counts()
    for at in range(20):
        body["features"] = {"user": body["features"]["user"], f"mood{at:02}": "good"}
        body["candidates"]["features"] |= {"colour": ["red"] * 3}
        status, answer = setup.server.ask("POST", "/v1/rank", body, token=TOKENS["rank"])
        assert status == 200, answer
        assert (answer["ids"], answer["scores"]) == (before["ids"], before["scores"])
    found = counts()
    assert found["colour"] - first.get("colour", 0) == 20
    assert (found["mood14"], found["others"], len(found)) == (1, 5, 17), "names come from strangers: 16 are kept"


def test_what_cannot_be_read_is_refused(setup: Setup) -> None:
    ask, token = setup.server.ask, TOKENS["rank"]
    assert ask("POST", "/v1/rank", raw=b"\xff{", token=token)[0] == 400
    assert ask("POST", "/v1/rank", raw=b"\xc1", token=token, msgpack=True)[0] == 400
    assert ask("POST", "/v1/rank", raw=b"[" * 100_000, token=token)[0] in (400, 422)
    assert ask("POST", "/v1/rank", raw=b"{}", token=token, headers={"Content-Type": "text/html"})[0] == 415
    assert ask("POST", "/v1/rank", raw=b" " * 200_001, token=token)[0] == 413
    many = rank_body(draw(np.random.default_rng(7), 501), list(range(501)))
    assert ask("POST", "/v1/rank", many, token=token)[0] == 413
    assert ask("GET", "/v1/nothing")[0] == 404
    assert ask("GET", "/v1/rank")[0] == 405


def _raw(setup: Setup, head: str, body: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", setup.server.port), timeout=20)
    connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    return connection


def test_cut_connections_slow_and_endless_bodies(setup: Setup) -> None:
    head = f"POST /v1/rank HTTP/1.1\nHost: x\nAuthorization: Bearer {TOKENS['rank']}\nContent-Type: application/json"
    body = json.dumps(rank_body(draw(np.random.default_rng(8), 50), list(range(50)))).encode()
    for at in range(20):  # cut in the body, or while the answer is made
        sent = body if at % 2 else body[: len(body) // 2]
        connection = _raw(setup, f"{head}\nContent-Length: {len(body)}", sent)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    with _raw(setup, f"{head}\nContent-Length: {len(body)}", body[:10]) as slow:
        assert slow.recv(1000).split()[1] == b"408"
    with _raw(setup, f"{head}\nTransfer-Encoding: chunked", b"") as endless:
        chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
        answer = b""
        try:
            for _ in range(50):
                endless.sendall(chunk)
            answer = endless.recv(1000)
        except OSError:
            pass  # it hung up on us while we were sending
        assert not answer or answer.split()[1] == b"413"
    with _raw(setup, "\x00\x01garbage", b"\xff" * 1000) as garbage:
        assert garbage.recv(1000).split()[1] == b"400"
    assert setup.rank(draw(np.random.default_rng(9), 5))[0] == 200


def test_who_may_do_what(setup: Setup) -> None:
    ask = setup.server.ask
    body = rank_body(draw(np.random.default_rng(10), 3), [1, 2, 3])
    score = {"score": {"click": 1.0, "spent": 0.25}}
    wanted = {
        ("POST", "/v1/rank"): (body, {"rank": 200, "engage": 403, "admin": 200}),
        ("PUT", "/v1/score"): (score, {"rank": 403, "engage": 403, "admin": 200}),
        ("PUT", "/v1/pin"): ({}, {"rank": 403, "engage": 403, "admin": 200}),
        ("DELETE", "/v1/pin"): (None, {"rank": 403, "engage": 403, "admin": 200}),
        ("POST", "/v1/engagements"): ({"engagements": []}, {"rank": 403, "engage": 422, "admin": 422}),
        ("POST", "/v2/models/test/infer"): ({}, {"rank": 422, "engage": 403, "admin": 422}),
    }
    for (method, path), (sent, by_role) in wanted.items():
        assert ask(method, path, sent)[0] == 401, path
        assert ask(method, path, sent, token="nobody-knows-this-token")[0] == 401, path
        assert ask(method, path, sent, headers={"Authorization": "Basic cmFuazpyYW5r"})[0] == 401, path
        for role, status in by_role.items():
            assert ask(method, path, sent, token=TOKENS[role])[0] == status, (path, role)
    assert ask("PUT", "/v1/score", score, token="an-older-admin-token")[0] == 200, "every line of the file is good"
    for path in ("/v1/status", "/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/test", "/metrics"):
        assert ask("GET", path)[0] == 200, path


def test_weights_change_while_it_runs(setup: Setup) -> None:
    columns, ask = draw(np.random.default_rng(11), 40), setup.server.ask
    by_click = setup.publisher.scores(columns, 40)[:, 0]
    try:
        status, answer = ask("PUT", "/v1/score", {"score": {"click": -2.0}}, token=TOKENS["admin"])
        assert (status, answer) == (200, {"score": {"click": -2.0, "spent": 0.0}})
        assert np.allclose(setup.rank(columns)[1]["score"], -2 * np.sort(by_click), atol=1e-6)
        status, answer = ask("PUT", "/v1/score", {"score": {"clicks": 1.0}}, token=TOKENS["admin"])
        assert status == 422 and "allowed: click, spent" in answer["error"]
    finally:
        ask("PUT", "/v1/score", {"score": {"click": 1.0, "spent": 0.25}}, token=TOKENS["admin"])


def test_metrics_and_the_table(setup: Setup) -> None:
    setup.rank(draw(np.random.default_rng(12), 5))
    said = setup.server.ask("GET", "/metrics")[1]
    for line in (
        'minutely_model_freshness_seconds{replica="replica"} ',
        'minutely_model_state{replica="replica",state="fresh"} 1.0',
        'minutely_serve_requests_total{route="/v1/rank",status="200"}',
        "minutely_deltas_total 1.0",
        'minutely_log_dropped_total{topic="impressions"} 0.0',
    ):
        assert line in said
    command = [str(Path(sys.executable).parent / "minutely"), "freshness", "--json", setup.server.url, "127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    once = subprocess.run([*command[:2], setup.server.url], capture_output=True, text=True, timeout=60, check=False)
    assert once.returncode == 0 and "fresh" in once.stdout, once.stdout + once.stderr
    first, second = (msgspec.json.decode(line) for line in done.stdout.splitlines())
    assert first["status"]["state"] == "fresh" and first["status"]["sparse_version"] == 1
    assert second["status"] is None and "refused" in second["error"]
