"""Files of a table of a data lake hold rows that were deleted: they are refused whichever way they are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from basis.problems import Problems
from streaming.source.files.find import find
from streaming.source.settings import File
from tests.streaming.source.files.lake_logs import FILE, LOGS, WAYS


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize("way", WAYS)
def test_files_of_a_table_are_refused(way: str, kind: str, tmp_path: Path) -> None:
    below, file = WAYS[way]
    put(tmp_path, FILE)
    assert find(Path(f"{tmp_path}{below}"), File(file=file))
    put(tmp_path, LOGS[kind])
    with pytest.raises(Problems) as raised:
        find(Path(f"{tmp_path}{below}"), File(file=file))
    ((place, _, value, allowed),) = raised.value.problems
    assert (Path(place), value.partition(",")[0]) == (tmp_path / "ev", kind)
    assert "Parquet export" in allowed


def test_other_folders_named_metadata_are_none_of_a_table(tmp_path: Path) -> None:
    put(tmp_path, FILE, "ev/metadata/readme.json", "other/_delta_log/0.json")
    assert [each.path for each in find(tmp_path, File(file="ev/data"))] == [tmp_path / FILE]
