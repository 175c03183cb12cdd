"""Is freshness worth anything to users? Simulated users whose taste drifts ask two replicas over HTTP and act on what they are
shown: one follows the trainer, one stays at the version with which both began. A round stands for the minute of a cadence."""

from __future__ import annotations

import time
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minutely.config import Pipeline
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from serving.client import Client
from streaming.records.examples import ExampleColumns, ExampleFormat
from tests.kafka.services import started
from tests.serving.publishing import CONFIG
from tests.serving.server import Server
from trainer.models import make_model
from trainer.worker import Trainer

SEEDS, ROUNDS, DRIFT_EVERY = 12, 6, 3
GROUPS, ITEMS, REQUESTS, SHOWN = 4, 24, 20, 4
TOKEN = "admin-0123456789abcdef"


def _pipeline(folder: Path) -> Pipeline:
    (folder / "token").write_text(TOKEN)
    return Pipeline.model_validate(
        CONFIG
        | {
            "features": {
                "group": {"column": "group", "scope": "request"},
                "item": {"column": "item"},
                "group_item": {"cross": ["group", "item"]},
            },
            "labels": {"click": {"action": "click", "window": "1m"}},
            "tables": {"learning_rate": 0.3},
            "sync": {"sparse_every": "10ms"},
            "train": {"step_every": "10ms", "dense_learning_rate": 0.005},
            "serve": {"log": False, "tokens": {"admin": {"file": str(folder / "token")}}},
        }
    )


class Users:
    """Groups of users, each of which likes some items; every few rounds they like others."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.base = 1000 * (seed + 1)
        self.liked: npt.NDArray[np.bool_] = np.zeros((GROUPS, ITEMS), np.bool_)
        self.drift()

    def drift(self) -> None:
        for group in range(GROUPS):
            self.liked[group] = False
            self.liked[group, self.random.choice(ITEMS, SHOWN, replace=False)] = True

    def clicks(self, group: int, items: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """What a user of a group does with what is shown."""
        chance = np.where(self.liked[group, items], 0.8, 0.05)
        return (self.random.random(len(items)) < chance).astype(np.float32)


class World:
    """A trainer that learns from what users of the following replica did."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = pipeline = _pipeline(folder)
        self.format = ExampleFormat(pipeline.features, pipeline.labels)
        model, plan = make_model(pipeline.model, pipeline.features, pipeline.labels, 1)
        tables = {name: pipeline.tables.make(name, model.row_dim, 1) for name in plan.tables}
        self.trainer = Trainer(model, plan, tables, pipeline.labels, self.format, pipeline.train)
        self.log = DeltaLog(LocalFiles(folder / "deltas", durable=False), pipeline.form(), keep_deltas=1000)

    def learn(
        self, groups: list[int], items: list[npt.NDArray[np.int64]], labels: list[npt.NDArray[np.float32]]
    ) -> None:
        from streaming.features.ids import cross

        item, label = np.concatenate(items), np.concatenate(labels)
        group = np.repeat(groups, [len(each) for each in items])
        at = np.full(len(item), time.time_ns() // 1_000_000)
        columns = {"group": group, "item": item, "group_item": cross(group, item)}
        rest = ExampleColumns([f"{n}" for n in range(len(item))], label.reshape(-1, 1), at, at, at)
        self.trainer.train(self.format.build(columns, rest))

    def publish(self) -> int:
        now = time.time_ns() // 1_000_000
        return self.log.publish(self.trainer.seal(), Cut(now, now, {}, self.trainer.dense_weights())).version


def _until(client: Client, version: int) -> None:
    until = time.monotonic() + 20
    while client.status().sparse_version < version:
        assert time.monotonic() < until
        time.sleep(0.005)


def _serve(client: Client, users: Users) -> tuple[list[int], list[Any], list[Any]]:
    """A round: requests of all groups, a share of the slots to chance so that everything is tried now and then."""
    groups, shown, done = [], [], []
    for _ in range(REQUESTS):
        group = int(users.random.integers(GROUPS))
        answer = client.rank(
            {"group": users.base + group}, list(range(ITEMS)), {"item": users.base + np.arange(ITEMS)}, limit=SHOWN
        )
        items = np.array([*map(int, answer.ids), *users.random.choice(ITEMS, 2, replace=False)])
        groups.append(users.base + group)
        shown.append(users.base + items)
        done.append(users.clicks(group, items))
    return groups, shown, done


def test_fresh_beats_frozen(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish()
    servers = [Server(world.pipeline, tmp_path / "deltas", tmp_path / name, name) for name in ("fresh", "frozen")]
    rates: dict[str, list[float]] = {"fresh": [], "frozen": []}
    with started(*(server.process for server in servers)):
        for server in servers:
            server.wait()
        fresh, frozen = (Client(server.url, token=TOKEN) for server in servers)
        for seed in range(SEEDS):
            users = Users(seed)
            for _ in range(3):  # both begin with a model of what users like at first
                world.learn(*_serve(fresh, users))
                _until(fresh, world.publish())
            _until(frozen, world.log.version)
            frozen.pin(world.log.version)
            clicks: dict[str, list[Any]] = {"fresh": [], "frozen": []}
            for at in range(ROUNDS):
                if at % DRIFT_EVERY == 0:
                    users.drift()
                for name, client in (("fresh", fresh), ("frozen", frozen)):
                    groups, shown, done = _serve(client, users)
                    clicks[name] += [each[:SHOWN] for each in done]  # of what the model chose
                    if name == "fresh":
                        world.learn(groups, shown, done)
                _until(fresh, world.publish())
            frozen.unpin()
            for name, found in clicks.items():
                rates[name].append(float(np.mean(found)))
        for client in (fresh, frozen):
            client.close()
    better = sum(a > b for a, b in zip(rates["fresh"], rates["frozen"], strict=True))
    # The sign test over seeds: how likely so many would be better by chance.
    p_value = sum(comb(SEEDS, k) for k in range(better, SEEDS + 1)) / 2**SEEDS
    assert p_value < 0.01, rates
    assert np.mean(rates["fresh"]) > 1.2 * np.mean(rates["frozen"]), rates
