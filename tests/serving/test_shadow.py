"""A second version scored beside: what it says of the same requests, what users then did, and that answers do not notice."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minutely.services.serve import make_replica_service
from serving.comparison import Comparison
from serving.ranking import order_of
from serving.requests import RankQuery
from serving.service import ReplicaService
from serving.shadow import Shadow
from stack.ports import free_ports
from streaming.clock import EventClock
from streaming.features.columns import Columns
from streaming.records.events import FORMAT_VERSION, Engagement
from streaming.records.labels import Label
from tests.serving.publishing import DAY, Publisher, draw, make_pipeline, rank_body
from tests.serving.server import Server
from trainer.metrics import class_metrics

COUNT, LIMIT = 20, 12
TOKEN = "admin-0123456789abcdef"
WEIGHTS = np.array([1.0, 0.25])


class World:
    """A server that serves version 2 of a folder with two, and what each of them says of ``probes``."""

    def __init__(self, folder: Path) -> None:
        (folder / "token").write_text(TOKEN)
        short = {"window": "2s"}
        pipeline = make_pipeline(
            labels={
                "click": {"action": "click", **short},
                "spent": {"action": "buy", "loss": "squared", "transform": "log", **short},
            },
            join={"lateness": "0s"},
            kafka={"bootstrap": f"127.0.0.1:{free_ports(1)[0]}"},  # nobody there: what is logged waits
            serve={"log": True, "tokens": {"admin": {"file": str(folder / "token")}}},
        )
        publisher = Publisher(pipeline, folder / "deltas")
        random = np.random.default_rng(5)
        self.probes: list[Columns] = [draw(random, COUNT) for _ in range(40)]
        self.scores: dict[int, list[npt.NDArray[np.float32]]] = {}
        for version in (1, 2):
            for _ in range(10):
                publisher.train(time.time_ns() // 1_000_000)
            publisher.publish(time.time_ns() // 1_000_000)
            self.scores[version] = [publisher.scores(probe, COUNT) for probe in self.probes]
        self.server = Server(pipeline, folder / "deltas", folder / "server")

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return self.server.ask(method, path, body, token=TOKEN)

    def shadow(self) -> Any:
        return self.ask("GET", "/v1/status")[1]["shadow"]

    def begin(self, share: float) -> None:
        assert self.ask("PUT", "/v1/shadow", {"version": 1, "share": share}) == (200, {"version": 1, "share": share})
        self.until(lambda shadow: shadow["ready"])

    def until(self, done: Any) -> Any:
        late = time.monotonic() + 20
        while not done(found := self.shadow()):
            assert time.monotonic() < late, found
            time.sleep(0.05)
        return found

    def rank(self, at: int, request_id: str) -> Any:
        body = rank_body(self.probes[at], list(range(COUNT)), request_id=request_id, limit=LIMIT)
        status, answer = self.ask("POST", "/v1/rank", body)
        assert status == 200
        order = np.argsort(-(self.scores[2][at] @ WEIGHTS).astype(np.float32), kind="stable")[:LIMIT]
        assert answer["ids"] == order.tolist() and answer["sparse_version"] == 2, "the shadow answers nobody"
        return answer


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("shadow"))
    made.server.start()
    try:
        made.server.wait()
        yield made
        assert made.server.process.end() == 0, made.server.process.output
        assert "Traceback" not in made.server.process.output
    finally:
        made.server.process.kill()


def test_both_versions_on_the_same_requests_and_what_users_did(world: World) -> None:
    world.begin(1.0)
    random = np.random.default_rng(6)
    clicked, seen, now_ms = [], [], time.time_ns() // 1_000_000
    for at in range(len(world.probes)):
        answer = world.rank(at, f"all-{at}")
        engagements = []
        for place, name in zip(answer["ids"], answer["impression_ids"], strict=True):
            seen.append([world.scores[version][at][place, 0] for version in (2, 1)])
            clicked.append(random.random() < 0.3)
            if clicked[-1]:
                engagements.append({"request_id": answer["request_id"], "impression_id": name, "action": "click"})
            else:  # none of these makes it positive: another action, another request, after the window
                engagements += [
                    {"request_id": answer["request_id"], "impression_id": name, "action": "buy"},
                    {"request_id": "unknown", "impression_id": name, "action": "click"},
                    {"request_id": answer["request_id"], "impression_id": name, "action": "click",
                     "happened_at": now_ms + 30_000},
                ]  # fmt: skip
        assert world.ask("POST", "/v1/engagements", {"engagements": engagements})[0] == 202
    found = world.until(lambda shadow: shadow["compared"]["judged"] == len(seen))
    both = [np.stack(world.scores[version]) @ WEIGHTS for version in (2, 1)]
    apart = np.abs(both[0] - both[1])
    compared = found["compared"]
    assert (compared["requests"], compared["candidates"], found["dropped"]) == (len(world.probes), apart.size, 0)
    assert compared["mean_difference"] == pytest.approx(apart.mean(), abs=1e-6)
    assert compared["max_difference"] == pytest.approx(apart.max(), abs=1e-6)
    others = (both[0].argmax(1) != both[1].argmax(1)).mean()
    assert others > 0 and compared["other_first"] == pytest.approx(others)
    assert list(compared["quality"]) == ["click"], "values have no log loss"
    for at, side in enumerate(("served", "shadow")):
        wanted = class_metrics(np.array(seen)[:, at], np.array(clicked, np.float32))
        for name, value in compared["quality"]["click"][side].items():
            assert value == pytest.approx(wanted[name], abs=1e-5), (side, name)
    said = world.ask("GET", "/metrics")[1]
    assert 'minutely_shadow_version{replica="replica"} 1.0' in said
    assert f"minutely_shadow_requests_total {len(world.probes)}.0" in said
    auc = compared["quality"]["click"]["shadow"]["auc"]
    assert f'minutely_shadow_auc{{label="click",of="shadow"}} {auc}' in said
    assert re.search(r'minutely_shadow_log_loss\{label="click",of="served"\} 0\.', said)
    assert world.ask("DELETE", "/v1/shadow") == (200, {"version": None, "share": 0.0})
    assert world.shadow() is None and "minutely_shadow" not in world.ask("GET", "/metrics")[1]


def test_a_share_depends_on_the_requests_id(world: World) -> None:
    names = [f"share-{at}" for at in range(80)]
    counts = []
    for _ in range(2):
        world.begin(0.25)
        for at, name in enumerate(names):
            world.rank(at % len(world.probes), name)
        counts.append(world.until(lambda shadow: shadow["compared"]["requests"] > 5)["compared"]["requests"])
        time.sleep(1.2)
        counts[-1] = world.shadow()["compared"]["requests"]
    assert counts[0] == counts[1] and 5 < counts[0] < 40
    world.ask("DELETE", "/v1/shadow")


def test_what_cannot_be_shadowed_is_refused(world: World) -> None:
    status, answer = world.ask("PUT", "/v1/shadow", {"version": 77, "share": 0.5})
    assert status == 404 and "version 77 is not there; allowed: 1 to 2" in answer["error"]
    for share in (0, 1.5, "half"):
        assert world.ask("PUT", "/v1/shadow", {"version": 1, "share": share})[0] == 422
    assert world.server.ask("PUT", "/v1/shadow", {"version": 1, "share": 0.5})[0] == 401
    assert world.shadow() is None


class _Inside:
    """A replica in this process, whose shadow takes a step when we say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = EventClock(DAY)
        publisher = Publisher(make_pipeline(), folder)
        for _ in range(3):
            publisher.next(DAY)
        self.service: ReplicaService = make_replica_service(publisher.pipeline, publisher.files, self.clock, "replica")
        self.service.puller.step()
        self.columns = draw(np.random.default_rng(1), COUNT)

    def serve(self, shadow: Shadow, request_id: str) -> None:
        asked = RankQuery(self.columns, COUNT, request_id, list(range(COUNT)), COUNT, self.clock.now_ms())
        answers = self.service.ranker.answer([asked])
        assert answers is not None
        shadow.served(asked, answers[0], order_of(asked, answers[0]))


def test_what_does_not_fit_is_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.shadow._WAITING_BYTES", 1 << 20)
    inside = _Inside(tmp_path)
    shadow = inside.service.shadowing.make(2, 1.0)
    inside.serve(shadow, "before it has its version")
    shadow.step()
    assert shadow.ready
    for at in range(1300):
        inside.serve(shadow, f"r{at}")
    dropped = shadow.status().dropped
    assert 900 < dropped < 1200, "of records of about 5 KB"
    while shadow.step() == 0:
        pass
    inside.clock.move_to(DAY + 2000)
    shadow.step()
    assert shadow.status().compared.requests == 1300 - dropped


def test_a_damaged_version_is_said_and_harms_nobody(tmp_path: Path) -> None:
    inside = _Inside(tmp_path)
    (path,) = tmp_path.glob("000000000002.*rows.arrow")
    path.write_bytes(path.read_bytes()[:-1])
    shadow = inside.service.shadowing.make(2, 1.0)
    shadow.step()
    inside.serve(shadow, "r")
    status = shadow.status()
    assert not status.ready and path.name in str(status.problem)
    assert (status.compared.requests, status.dropped) == (0, 0)
    assert inside.service.ready()[0]


def _label(action: str, window: str, **more: Any) -> Label:
    return Label.model_validate({"action": action, "window": window, **more})


def _take(comparison: Comparison, request_id: str, at: int, count: int = 3) -> None:
    asked = RankQuery({}, count, request_id, list(range(count)), count, at)
    scores = np.full((2, count, 2), 0.5, np.float32)
    comparison.served(asked, np.arange(count), scores, scores[:, :, 0])


def _done(request_id: str, place: int, action: str, at: int, value: float = 1.0) -> Engagement:
    return Engagement(
        version=FORMAT_VERSION,
        request_id=request_id,
        impression_id=f"{request_id}.{place}",
        action=action,
        happened_at=at,
        value=value,
    )


def test_labels_are_the_joiners() -> None:
    """Windows of their own, a least value, a deciding action that came first, what comes late, and what came before the serving."""
    labels = {"like": _label("rate", "10s", min_value=4, decided_by="rate"), "click": _label("click", "5s")}
    comparison = Comparison(labels, lateness_ms=2000)
    _take(comparison, "r", 1000)
    comparison.engaged(_done("r", 0, "rate", 2000, 2.0))
    comparison.engaged(_done("r", 0, "rate", 3000, 5.0))
    comparison.engaged(_done("r", 1, "rate", 10_000, 5.0))
    comparison.engaged(_done("r", 0, "click", 5000))
    comparison.engaged(_done("r", 1, "click", 999))
    comparison.engaged(_done("r", 2, "click", 7000))
    comparison.close(12_999)
    assert comparison.compared().judged == 0
    comparison.engaged(_done("r", 2, "click", 6000))
    comparison.close(13_000)
    found = comparison.compared()
    assert found.judged == 3
    # the mean score, 0.5, over the mean label
    assert found.quality["like"]["served"].calibration == pytest.approx(0.5 / (1 / 3))
    assert found.quality["click"]["shadow"].calibration == pytest.approx(0.5 / (2 / 3))


def test_memory_is_bounded() -> None:
    comparison = Comparison({"click": _label("click", "10s"), "view": _label("view", "10s")}, lateness_ms=0)
    for at in range(200):
        _take(comparison, f"r{at}", 0, 1000)
    assert comparison.dropped == 200 - 131
    for at in range(140_000):
        comparison.engaged(_done("r0", at % 1000, "click", 1))
    assert comparison.dropped == 200 - 131 + 140_000 - 131_072
    _take(comparison, "r0", 0, 1000)  # sent again: its labels are awaited once
    comparison.close(10_000)
    assert comparison.compared().judged == 66_000, "the newest, in whole requests"
    assert comparison.compared().requests == 201
    _take(comparison, "later", 10_000, 10)
    assert comparison.dropped == 200 - 131 + 140_000 - 131_072
