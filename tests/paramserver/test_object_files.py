"""Versions in an object store: an S3 in a process of its own, conditional puts included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from basis.problems import Problems
from minutely.cli import cli
from minutely.place import open_files
from paramserver import manifest as manifests
from paramserver.files import Files
from paramserver.follower import Follower
from paramserver.manifest import TakenOverError
from paramserver.object_files import ObjectFiles
from tests.kafka.services import write_config
from tests.object_store import make_bucket, running
from tests.paramserver.published import Writer, replica_tables, state_of
from tests.serving.publishing import Publisher, make_pipeline
from tests.serving.server import Server

KEEP = 3
_WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3."""
    with running(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def place(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix in a bucket of its own."""
    return f"s3://{make_bucket(server, monkeypatch, request)}/shop/deltas"


def test_files_are_put_listed_read_and_deleted(place: str) -> None:
    files = open_files(place, durable=True)
    assert isinstance(files, ObjectFiles)
    assert files.names() == []
    with pytest.raises(FileNotFoundError, match="a"):
        files.read("a")
    files.write("a", b"first")
    files.write("a", b"second")
    files.write("empty", b"")
    assert files.read("a") == b"second"
    assert files.read("empty") == b""
    assert sorted(files.names()) == ["a", "empty"]
    files.delete("a")
    files.delete("a")
    assert files.names() == ["empty"]
    files.create("b", b"mine")
    with pytest.raises(FileExistsError, match="b"):
        files.create("b", b"theirs")
    assert files.read("b") == b"mine"
    for at in range(5):
        files.write(f"many-{at}", bytes(at))
    assert len(files.names()) == 7


def test_of_two_writers_one_wins(place: str) -> None:
    first, second = (Writer(open_files(place, durable=True), KEEP, seed) for seed in (1, 2))
    first.publish()
    with pytest.raises(TakenOverError, match=r"manifest-000000000001.json: published by another writer"):
        second.publish()
    first.publish()
    tables = replica_tables()
    follower = Follower(open_files(place, durable=True), tables)
    follower.pull()
    assert follower.version == 2
    assert state_of(tables) == first.history[2], "nothing of the other one's"


def test_a_follower_through_compactions(place: str) -> None:
    writer = Writer(open_files(place, durable=True), KEEP)
    tables = replica_tables()
    follower = Follower(open_files(place, durable=True), tables)
    for version in range(1, 12):
        writer.publish()
        if version % 2:
            follower.pull()
            assert follower.version == version
            assert state_of(tables) == writer.history[version]
    files = open_files(place, durable=True)
    bases = manifests.versions(files, base=True)
    assert len(bases) == 2, bases
    assert min(manifests.versions(files, base=False)) > bases[0], "what neither base needs is gone"
    late = replica_tables()
    Follower(files, late).pull()
    assert state_of(late) == writer.history[11]


def test_the_command_line_takes_the_address(place: str) -> None:
    writer = Writer(open_files(place, durable=True), 100)
    for _ in range(3):
        writer.publish()
    done = CliRunner().invoke(cli, ["rollback", "2", "--deltas", place])
    assert done.exit_code == 0, done.output + str(done.exception)
    done = CliRunner().invoke(cli, ["versions", "--deltas", place, "--json"])
    assert '"goes back to 2"' in done.output
    tables = replica_tables()
    Follower(open_files(place, durable=True), tables).pull()
    assert state_of(tables) == writer.history[2]


def test_a_replica_serves_from_the_address(place: str, tmp_path: Path) -> None:
    pipeline, local = make_pipeline(), tmp_path / "local"
    Publisher(pipeline, local).next(0, dense=True)
    files = open_files(place, durable=True)
    for path in local.iterdir():
        files.write(path.name, path.read_bytes())
    server = Server(pipeline, place, tmp_path / "server").start()
    try:
        server.wait()
        assert server.ask("GET", "/v1/status")[1]["sparse_version"] == 1
    finally:
        server.process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"local", "server"}


def test_a_replica_of_a_folder_that_is_not_there_says_so_and_makes_none(tmp_path: Path) -> None:
    folder = tmp_path / "deltas"
    done = CliRunner().invoke(cli, ["serve", str(write_config(make_pipeline(), tmp_path)), "--deltas", str(folder)])
    assert done.exit_code == 1
    assert f"{folder}: --deltas: no such folder; allowed: one that a trainer publishes to" in done.output
    assert not folder.exists()


def test_a_store_that_is_away_is_an_os_error(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a full disk is: the trainer waits and tries again."""
    files: Files = open_files(place.replace("s3://", "s3://no-such-bucket-"), durable=True)
    with pytest.raises(OSError):
        files.write("a", b"")
    with pytest.raises(OSError):
        files.names()


def test_an_address_that_is_none() -> None:
    for address in ("ftp://bucket/prefix", "s4://bucket"):
        with pytest.raises(Problems, match="allowed: a folder, or an address such as s3://bucket/prefix"):
            open_files(address, durable=True)
