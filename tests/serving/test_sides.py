"""Side tables whose files go bad: what was read is served on, the problem is told, and what can be read again is."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from basis.problems import Problems
from minutely.config import Pipeline
from serving.sides import Sides
from tests.serving.test_raw_values import CONFIG, MAKERS

NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"bb"]).buffers())
COLUMNS = {"maker": ["a", "b"], "brand": ["x", None], "founded": [1, 2], "wares": [["a"], None]}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "users.csv").write_text("user_id,degree,likes\nu1,d,a b\n")
        yield Path(name)


def sides_of(folder: Path, file: str) -> Sides:
    users = CONFIG["source"]["sides"]["users"]
    sides = {"users": users, "makers": {"file": file, "key": "maker", "on": "made_by"}}
    pipeline = Pipeline.model_validate({**CONFIG, "source": {**CONFIG["source"], "dir": str(folder), "sides": sides}})
    return Sides(pipeline.source, pipeline.features, lambda: folder)


def write_makers(path: Path, **changes: Any) -> None:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table({**COLUMNS, **changes}), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in MAKERS))


@contextmanager
def without_rights(path: Path) -> Iterator[None]:
    """A file that may not be read; root may read all, so it is somebody else meanwhile."""
    user = os.geteuid()
    path.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(0o644)


@pytest.mark.parametrize("file", ["makers.jsonl", "makers.parquet"])
def test_a_file_that_may_not_be_read_is_tried_again(folder: Path, file: str) -> None:
    path = folder / file
    write_makers(path)
    sides = sides_of(folder, file)
    before = sides.tables["makers"]
    path.write_bytes(path.read_bytes())
    os.utime(path, (1, 1))
    with without_rights(path):
        for _ in range(3):
            sides.step()
        assert sides.problem is not None and "makers: " in sides.problem and "Permission denied" in sides.problem
        assert sides.tables["makers"] is before
    sides.step()
    assert sides.problem is None
    assert sides.tables["makers"] is not before


def test_a_key_that_is_no_text_is_a_problem(folder: Path) -> None:
    path = folder / "makers.parquet"
    write_makers(path)
    sides = sides_of(folder, path.name)
    before = sides.tables["makers"]
    write_makers(path, maker=NOT_UTF8)
    sides.step()
    sides.step()
    assert sides.problem is not None and "UTF8" in sides.problem
    assert sides.tables["makers"] is before
    write_makers(path)
    sides.step()
    sides.step()
    assert sides.problem is None and sides.tables["makers"] is not before


@pytest.mark.parametrize("column", ["maker", "brand"])
def test_a_start_with_a_file_of_broken_texts_names_it(folder: Path, column: str) -> None:
    path = folder / "makers.parquet"
    write_makers(path, **{column: NOT_UTF8})
    with pytest.raises(Problems, match=r"makers\.parquet.*UTF8"):
        sides_of(folder, path.name)


def test_a_start_with_a_file_that_may_not_be_read_names_it(folder: Path) -> None:
    path = folder / "makers.jsonl"
    write_makers(path)
    with without_rights(path), pytest.raises(Problems, match=r"makers\.jsonl: file: Permission denied"):
        sides_of(folder, path.name)
