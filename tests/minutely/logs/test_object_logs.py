"""``source.dir`` and ``--data`` as addresses of an object store, from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from minutely.cli import cli
from tests.commands import ROOT, execute
from tests.object_store import make_bucket, running

ROWS = [
    {"time": 1_767_225_600_000 + 1000 * at, "user": at % 7, "item": at % 5, "clicked": at % 3 == 0} for at in range(600)
]
CONFIG = """
name: t
source:
  dir: {place}
  impressions: {{file: day=*, time: {{column: time}}}}
  actions: {{click: {{when: clicked, delay: 1s}}}}
features: {{user: {{column: user}}, item: {{column: item}}, day: {{column: day}}}}
labels: {{click: {{action: click, window: 1m}}}}
model: {{dim: 4, hidden: [8]}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    return make_bucket(server, monkeypatch, request)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def put(bucket: str, folder: Path) -> None:
    """Logs of two days, in a folder and in a bucket."""
    import boto3

    for day, rows in (("2026-01-01", ROWS[:300]), ("2026-01-02", ROWS[300:])):
        path = folder / f"day={day}" / "part.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        boto3.client("s3").upload_file(str(path), bucket, f"logs/day={day}/part.jsonl")


def config(folder: Path, place: str) -> str:
    (folder / "t.yaml").write_text(CONFIG.format(place=place).replace("file: day=*", 'file: "day=*/*"'))
    return str(folder / "t.yaml")


def metrics(folder: Path, *arguments: str) -> Any:
    done = run("replay", *arguments, "--out", str(folder))
    assert done.exit_code == 0, done.output
    summary = json.loads((folder / "summary.json").read_text())
    return summary["metrics"], summary["examples"]


def test_a_replay_of_a_bucket_is_that_of_its_folder(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, tmp_path / "logs")
    local = config(tmp_path, str(tmp_path / "logs"))
    wanted = metrics(tmp_path / "a", local)
    assert metrics(tmp_path / "b", local, "--data", f"s3://{bucket}/logs") == wanted
    monkeypatch.setenv("LOGS", bucket)
    named = config(tmp_path, "s3://${LOGS}/logs/")
    assert metrics(tmp_path / "c", named) == wanted
    done = run("check", named)
    assert done.exit_code == 0 and "600 impressions" in done.output, done.output


def test_mistakes_name_the_address(tmp_path: Path, bucket: str) -> None:
    place = config(tmp_path, f"s3://{bucket}/logs")
    for data, said in (
        (f"s3://{bucket}/logs", f"error s3://{bucket}/logs/day=*/*: file; no data file there; allowed: at least one"),
        ("s3://no-such-bucket/logs", "error s3://no-such-bucket/logs: list of files: '.'; NoSuchBucket: "),
        ("nope://logs", "error nope://logs: source.dir; "),
    ):
        for command in ("check", "replay"):
            done = run(command, place, "--data", data)
            assert done.exit_code == 1 and " ".join(said.split()) in " ".join(done.output.split()), done.output


def test_the_shop_from_a_bucket(tmp_path: Path, bucket: str) -> None:
    """Impressions, engagements and a side table."""
    import boto3

    done = execute(f"python {ROOT}/examples/shop/make_logs.py {tmp_path}/shop", tmp_path)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "shop").iterdir():
        boto3.client("s3").upload_file(str(path), bucket, path.name)
    shop = str(ROOT / "examples" / "shop" / "shop.yaml")
    local, stored = (run("check", shop, "--data", place) for place in (f"{tmp_path}/shop", f"s3://{bucket}"))
    assert local.exit_code == 0 and local.output == stored.output
