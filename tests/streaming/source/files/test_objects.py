"""Logs in an object store: an S3 in a process of its own. What is read is what a folder with the same files has."""

from __future__ import annotations

import gzip
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from basis.problems import Problem, Problems, Unreadable
from serving.sides import Sides
from streaming.features.kinds import FeatureSet
from streaming.source.files.find import Folder, find, folder_of
from streaming.source.files.objects import ObjectFolder
from streaming.source.load import load
from streaming.source.logged_events import LoggedEvents
from streaming.source.rows.walk import read
from streaming.source.settings import File, SourceSettings
from tests.object_store import make_bucket, running
from tests.streaming.source.files.lake_logs import FILE, LOGS, WAYS
from tests.streaming.source.own_logs import (
    FORMATS,
    NOW,
    ROWS,
    USERS,
    Row,
    features,
    ids,
    lists,
    rejects_of,
    source,
    write,
)

WANTED = features(
    item={"column": "item"},
    tags={"column": "tags", "split": "|", "pool": "mean"},
    day={"column": "day"},
    price={"kind": "dense", "column": "price"},
    city={"column": "city", "side": "users"},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty bucket; the temporary folder is one of the test's own, in which nothing may be left."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return make_bucket(server, monkeypatch, request)


def put(bucket: str, **objects: bytes) -> None:
    import boto3

    client = boto3.client("s3")
    for name, data in objects.items():
        client.put_object(Bucket=bucket, Key=name, Body=data)


def put_folder(bucket: str, folder: Path, prefix: str) -> str:
    put(
        bucket,
        **{f"{prefix}/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()},
    )
    return f"s3://{bucket}/{prefix}"


@pytest.mark.parametrize("kind", LOGS)
def test_files_of_a_table_are_refused_whichever_way_they_are_named(kind: str, bucket: str) -> None:
    prefix = kind.split()[1]  # the bucket is that of all kinds
    put(bucket, **{f"{prefix}/{FILE}": b"x"})
    for below, file in WAYS.values():
        assert find(folder_of(f"s3://{bucket}/{prefix}{below}"), File(file=file))
    put(bucket, **{f"{prefix}/{LOGS[kind]}": b"x"})
    for below, file in WAYS.values():
        with pytest.raises(
            Problems, match=rf"^s3://{bucket}/{prefix}/ev.*: file: {kind}, whose files hold deleted rows too"
        ):
            find(folder_of(f"s3://{bucket}/{prefix}{below}"), File(file=file))


def loaded(folder: Folder, settings: SourceSettings, wanted: FeatureSet = WANTED) -> LoggedEvents:
    return load(folder, settings, wanted, NOW)


def make_logs(folder: Path, kind: str) -> None:
    for at, name in enumerate(
        ["day=2024-01-01/part-0", "day=2024-01-01/part-1", "day=2024%2D01%2D02/part 0", "plain/ä"]
    ):
        path = folder / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, [{**row, "t": row["t"] + at, "user": row["user"] + at % 2} for row in ROWS])
    (folder / "day=2024-01-01" / "_SUCCESS").touch()
    (folder / "day=2024-01-01" / ".part-0.crc").write_text("x")
    write(folder / f"users.{kind}", USERS)


def files_of(kind: str, file: str) -> SourceSettings:
    sides = {"users": {"file": f"users.{kind}", "key": "id", "on": "user"}}
    impressions = {"file": file, "time": {"column": "t"}, "request": ["user", "t"]}
    return source(kind, impressions=impressions, sides=sides)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_as_from_a_folder(tmp_path: Path, bucket: str, kind: str) -> None:
    local = tmp_path / "logs"
    make_logs(local, kind)
    folder = folder_of(put_folder(bucket, local, "a/logs"))
    for file in (
        "day=2024-01-01",
        "day=*/*",
        f"**/part-*.{kind}",
        f"day=2024-01-01/part-1.{kind}",
        f"./day=*/part*.{kind}",
    ):
        here, there = (loaded(each, files_of(kind, file)) for each in (local, folder))
        assert here.request_ids.equals(there.request_ids) and here.impressions == there.impressions, file
        for name, column in here.features.items():
            assert repr(column) == repr(there.features[name]), (file, name)
        assert here.matched == there.matched and here.truth is not None
    assert set(np.unique(np.asarray(there.features["day"]))) == set(ids("2024-01-01", "2024-01-02"))
    assert any(lists(there.features["tags"]))
    assert not list((tmp_path / "temporary").iterdir()), "copies are gone"


def test_names_and_folders_as_they_are(tmp_path: Path, bucket: str) -> None:
    """A bucket as a whole is a folder, a name with special letters is a name, and what consoles make of a folder is none."""
    make_logs(tmp_path / "logs", "csv")
    put_folder(bucket, tmp_path / "logs", "logs")
    put(bucket, **{"logs/plain/": b"", "logs/odd [1] 100%.csv": (tmp_path / "logs" / "plain" / "ä.csv").read_bytes()})
    whole = folder_of(f"s3://{bucket}")
    assert [each.name for each in find(whole, File(file="logs/plain"))] == [f"s3://{bucket}/logs/plain/ä.csv"]
    assert [each.name for each in find(folder_of(f"s3://{bucket}/logs/plain/"), File(file="."))] == [
        f"s3://{bucket}/logs/plain/ä.csv"
    ]
    assert read(whole, File(file="logs/odd [1] 100%.csv"), ["user"]).table.num_rows == len(ROWS)
    assert len(find(whole, File(file="**/*.csv"))) == 6


def test_compressed_objects(tmp_path: Path, bucket: str) -> None:
    write(tmp_path / "log.csv", ROWS)
    packed = gzip.compress((tmp_path / "log.csv").read_bytes())
    put(bucket, **{"log.csv.gz": packed, "cut.csv.gz": packed[:-9]})
    settings = source("csv", impressions={"file": "log.csv.gz", "time": {"column": "t"}})
    assert loaded(folder_of(f"s3://{bucket}"), settings, features()).impressions == len(ROWS)
    settings = source("csv", impressions={"file": "cut.csv.gz", "time": {"column": "t"}})
    (problem,) = told(folder_of(f"s3://{bucket}"), settings)
    assert problem.file == f"s3://{bucket}/cut.csv.gz" and "whole compressed file" in problem.allowed
    assert not list((tmp_path / "temporary").iterdir())


def told(folder: Folder, settings: SourceSettings, kind: type[Problems] = Problems) -> list[Problem]:
    with pytest.raises(Problems) as caught:
        loaded(folder, settings, features())
    assert type(caught.value) in (Problems, kind)
    return caught.value.problems


@pytest.mark.parametrize("kind", FORMATS)
def test_refused_rows_have_their_address_and_line(tmp_path: Path, bucket: str, kind: str) -> None:
    rows: list[Row] = [{**row, "t": None if at == 2 else row["t"]} for at, row in enumerate(ROWS)]
    write(tmp_path / f"log.{kind}", rows)
    put(bucket, **{f"logs/log.{kind}": (tmp_path / f"log.{kind}").read_bytes()})
    here, there = (loaded(each, source(kind), features()) for each in (tmp_path, folder_of(f"s3://{bucket}/logs")))
    assert rejects_of(here) == rejects_of(there)
    assert [reject.file for reject in there.rejects] == [f"s3://{bucket}/logs/log.{kind}"]


def test_what_is_not_there_is_told_by_its_address(tmp_path: Path, bucket: str) -> None:
    write(tmp_path / "log.csv", [{"t": 1}])
    put(bucket, **{"logs/log.csv": (tmp_path / "log.csv").read_bytes(), "logs/empty.csv": b"", "logs/log.txt": b"x"})
    folder = folder_of(f"s3://{bucket}/logs")
    assert (f"s3://{bucket}/logs/log.csv", "column user", "missing") in [
        each[:3] for each in told(folder, source("csv"))
    ]
    for file, place, said in (
        ("none.csv", "file", "not there; allowed: a file in the source's folder"),
        ("day=*/*", "file", "no data file there; allowed: at least one"),
        ("empty.csv", "file", "allowed: a file with rows"),
        ("log.txt", "ending", "allowed: format: parquet, csv or jsonl"),
    ):
        settings = source("csv", impressions={"file": file, "time": {"column": "t"}})
        (problem,) = told(folder, settings)
        assert problem[:2] == (f"s3://{bucket}/logs/{file}", place) and problem.allowed == said, problem


def test_a_bucket_that_is_not_there(bucket: str) -> None:
    (problem,) = told(folder_of("s3://no-such-bucket/logs"), source("csv"))
    assert problem.file == "s3://no-such-bucket/logs"
    assert (problem.place, problem.value) == ("list of files", "'log.csv'")
    assert problem.allowed.startswith(
        "NoSuchBucket: The specified bucket does not exist; allowed: a bucket that is there"
    )


@pytest.mark.parametrize("address", ["nope://logs", "ftp://host/logs", "s3://"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(Problems, match="allowed: a folder, or an address such as s3://bucket/prefix, gs:// or az://"):
        folder_of(address)


def test_a_store_that_does_not_answer_may_do_so_later(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (problem,) = told(folder_of(f"s3://{bucket}/logs"), source("csv"), Unreadable)
    assert problem[:3] == (f"s3://{bucket}/logs", "file", "'log.csv'")
    assert "http://127.0.0.1:9" in problem.allowed


def test_without_rights(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of its own, which asks for rights from then on."""
    with running(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server)
        put_later = folder_of(f"s3://{bucket}/logs")
        ask = urllib.request.Request(
            f"{server}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(ask).close()
        (problem,) = told(put_later, source("csv"), Unreadable)
        assert problem[:3] == (f"s3://{bucket}/logs", "file", "'log.csv'") and "403 Forbidden" in problem.allowed
        settings = source("csv", impressions={"file": "*.csv", "time": {"column": "t"}})
        (problem,) = told(put_later, settings, Unreadable)
        assert "InvalidAccessKeyId" in problem.allowed and "credentials" in problem.allowed


def test_an_object_of_several_parts_that_changes_meanwhile(tmp_path: Path, bucket: str) -> None:
    data = np.random.default_rng(1).bytes((20 << 20) + 7)
    put(bucket, large=data)
    folder = folder_of(f"s3://{bucket}")
    assert isinstance(folder, ObjectFolder)
    stored = folder.find(PurePosixPath("large"))
    assert stored is not None
    stored.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    put(bucket, large=data[1:])
    with pytest.raises(Unreadable, match="large"):
        stored.copy_to(tmp_path / "copy")


def test_side_tables_of_replicas(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read again when the object is another one, and kept while the store is away."""
    write(tmp_path / "users.csv", USERS)
    put(bucket, **{"logs/users.csv": (tmp_path / "users.csv").read_bytes()})
    settings = source("csv", sides={"users": {"file": "users.csv", "key": "id", "on": "user"}})
    wanted = features(item={"column": "item"}, city={"column": "city", "side": "users"})
    sides = Sides(settings, wanted, lambda: folder_of(f"s3://{bucket}/logs"))

    def cities() -> list[Any]:
        table = sides.tables["users"]
        return np.asarray(table.take("city", table.find([np.array([1, 9])]))).tolist()

    assert cities() == ids("Bern", "Lyon")
    assert sides.step() == 60, "each look costs"
    write(tmp_path / "users.csv", [{**USERS[0], "city": "Rome"}])
    put(bucket, **{"logs/users.csv": (tmp_path / "users.csv").read_bytes()})
    sides.step()
    sides.step()
    assert cities() == ids("Rome", None) and sides.problem is None
    put(bucket, **{"logs/users.csv": b"id,city\n1,a,b,c\n"})
    sides.step()
    sides.step()
    assert cities() == ids("Rome", None)
    assert sides.problem is not None and f"s3://{bucket}/logs/users.csv" in sides.problem
