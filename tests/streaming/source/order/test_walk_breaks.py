"""What broke logs that are walked: other sources, other pieces, full disks, killed processes, hundreds of columns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from basis.problems import Problems
from streaming.source.load import load
from streaming.source.order.spool import open_spool
from streaming.source.rows import rejects
from streaming.source.rows.rows import Rows
from streaming.source.settings import SourceSettings
from tests.streaming.source.own_logs import NOW, T, features, problems_of, source, write

SHOWN = [{"t": T + at, "user": at % 2, "item": at} for at in range(4)]
FILE = {"file": "log.csv", "time": {"column": "t"}, "request": ["user"], "impression": ["item"]}
KEYS = {"time": {"column": "at"}, "request": ["user"], "impression": ["item"], "action": "what"}


def logs(**changes: Any) -> SourceSettings:
    return SourceSettings.model_validate(
        {"dir": ".", "impressions": FILE, "engagements": {"file": "e.csv", **KEYS}, **changes}
    )


@pytest.mark.parametrize("order", [["e1", "e2"], ["e2", "e1"]])
def test_a_file_whose_times_are_all_wrong_is_a_mistake_whatever_the_others_have(
    tmp_path: Path, order: list[str]
) -> None:
    write(tmp_path / "log.csv", SHOWN)
    clicks = [{"at": T + 10, "user": 0, "item": at, "what": "click"} for at in (0, 2)]
    write(tmp_path / "e2.csv", clicks)
    write(tmp_path / "e1.csv", [{**row, "at": row["at"] // 1000} for row in clicks])
    found = problems_of(tmp_path, logs(engagements=[{"file": f"{name}.csv", **KEYS} for name in order]))
    ((file, place, _, allowed),) = found
    assert (Path(file).name, place) == ("e1.csv", "column at")
    assert "unit: s instead of ms" in allowed


def test_a_source_of_impressions_whose_rows_are_all_wrong_is_a_mistake(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", SHOWN)
    write(tmp_path / "e.csv", [{"at": T + 10, "user": 0, "item": 0, "what": "click"}])
    both = [FILE, {**FILE, "file": "other.csv"}]
    write(tmp_path / "other.csv", [{**row, "t": row["t"] // 1000} for row in SHOWN])
    assert {(Path(file).name, place) for file, place, _, _ in problems_of(tmp_path, logs(impressions=both))} == {
        ("other.csv", "column t")
    }
    write(tmp_path / "other.csv", [{**row, "user": None} for row in SHOWN])
    found = problems_of(tmp_path, logs(impressions=both))
    assert ("other.csv", "rows", "none is usable") in {(Path(file).name, *rest[:2]) for file, *rest in found}


def test_line_ends_that_change_late_in_a_file(tmp_path: Path) -> None:
    rows = [f"{T + at},1,{at}" for at in range(90_000)]
    text = "t,user,item\n" + "\n".join(rows[:80_000]) + "\n" + "\r\n".join(rows[80_000:]) + "\n"
    (tmp_path / "log.csv").write_bytes(text.encode())
    write(tmp_path / "e.csv", [{"at": T + 90_000, "user": 1, "item": 89_999, "what": "click"}])
    settings = logs(impressions={**FILE, "request": ["user", "t"]}, engagements=None, actions={"click": {}})
    events = load(tmp_path, settings, features(), NOW)
    assert np.asarray(events.features["item"]).tolist() == list(range(90_000))


def test_a_file_that_is_damaged_far_within_is_told_as_damaged(tmp_path: Path) -> None:
    rows = pa.table({"t": T + np.arange(100_000), "user": np.arange(100_000), "item": np.arange(100_000)})
    with pq.ParquetWriter(tmp_path / "log.parquet", rows.schema) as writer:
        for _ in range(4):
            writer.write_table(rows)
    whole = bytearray((tmp_path / "log.parquet").read_bytes())
    begin, end = len(whole) * 6 // 10, len(whole) * 9 // 10
    whole[begin:end] = bytes(end - begin)
    (tmp_path / "log.parquet").write_bytes(whole)
    found = problems_of(tmp_path, source("parquet", actions={"click": {}}))
    assert [allowed for *_, allowed in found] == ["allowed: a whole Parquet file"]


def test_what_two_features_find_wrong_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "KEPT", 5)
    rows = [{"t": T + at, "user": at, "price": "many" if at else 1} for at in range(20)]
    write(tmp_path / "log.csv", rows)
    wanted = features(price={"kind": "dense", "column": "price"}, step={"column": "price", "bucket": "log2"})
    events = load(tmp_path, source("csv", actions={"click": {}}), wanted, NOW)
    assert (len(events.rejects), events.more_rejects) == (5, {"malformed": 14})
    told = rejects.as_problems(events.rejects, events.more_rejects)
    assert [(each.place, each.allowed) for each in told[5:]] == [("14 more lines", "malformed")]


def test_what_the_items_of_a_row_share_is_told_once_and_what_differs_for_each(tmp_path: Path) -> None:
    rows = [{"t": T, "user": 1, "item": [1, 1, 2, 3, 3]}, {"t": None, "user": 2, "item": [1, 2, 3]}]
    write(tmp_path / "log.jsonl", rows)
    write(tmp_path / "e.csv", [{"at": T + 10, "user": 1, "item": 1, "what": "click"}])
    settings = logs(impressions={**FILE, "file": "log.jsonl", "explode": ["item"]})
    events = load(tmp_path, settings, features(), NOW)
    told = sorted((each.place, each.value, each.reason) for each in events.rejects)
    repeated = [("line 1, column user+item", f"'1/{item}'", "repeated") for item in (1, 3)]
    assert told == [*repeated, ("line 2, column t", "None", "malformed")]


def test_places_of_rows_of_many_files_read_each_file_once(tmp_path: Path) -> None:
    findings = rejects.Findings(whole=False)
    asked: list[int] = []

    def lines_of(number: int) -> Any:
        def lines() -> Any:
            asked.append(number)
            return np.arange(10) + 2

        return lines

    for number in range(3):
        findings.add_file(f"part-{number}", 10 * number, lines_of(number))
    findings.rows = 30
    rows = Rows("log", pa.table({"x": list(range(30))}), pa.array(np.arange(30)), findings)
    order = pa.array([29, 0, 11, 1, 28, 12])
    shuffled = Rows("log", rows.table.take(order), rows.at.take(order), findings)
    for at in range(6):
        shuffled.reject(pa.array([at == each for each in range(6)]), "x", shuffled.column("x"), "future", f"late {at}")
    told = [(each.file, each.place.split(",")[0]) for each in findings.rejects]
    assert told == [(f"part-{at // 10}", f"line {at % 10 + 2}") for at in order.to_pylist()]
    assert asked == [0, 1, 2]


def test_what_all_files_lack_is_told_once(tmp_path: Path) -> None:
    write(tmp_path / "p-1.csv", [{"t": T, "item": 1, "user": 1}])
    write(tmp_path / "p-2.csv", [{"t": T, "price": 1, "user": 1}])
    (tmp_path / "p-3.csv").write_text('t,item\n"')
    wanted = features(item={"column": "item"}, price={"kind": "dense", "column": "price"}, brand={"column": "brand"})
    file = {"file": "p-*.csv", "time": {"column": "t"}}
    found = problems_of(tmp_path, source("csv", impressions=file, actions={"click": {}}), wanted)
    assert [(Path(file).name, place) for file, place, _, _ in found] == [("p-1.csv", "column brand")]


def test_the_share_of_a_side_table_is_of_the_impressions_that_are_kept(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", [SHOWN[0]] * 9 + [SHOWN[1]])
    write(tmp_path / "e.csv", [{"at": T + 10, "user": 0, "item": 0, "what": "click"}])
    write(tmp_path / "items.csv", [{"item": 1, "brand": "x"}])
    settings = logs(sides={"items": {"file": "items.csv", "key": "item"}})
    events = load(tmp_path, settings, features(brand={"column": "brand", "side": "items"}), NOW)
    assert (events.impressions, events.matched, events.missing) == (2, {"items": 0.5}, {"brand": 0.5})


def test_actions_that_are_true_have_a_name(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", SHOWN)
    write(tmp_path / "e.jsonl", [{"at": T + 10, "user": 0, "item": 0, "what": True}])
    done = {**KEYS, "file": "e.jsonl", "action": {"column": "what", "names": {True: "click"}}}
    assert load(tmp_path, logs(engagements=done), features(), NOW).engagements.actions == ["click"]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("column", ["user", "item"])
def test_keys_that_lost_digits_are_refused_as_ids_are(tmp_path: Path, kind: str, column: str) -> None:
    rows = [{**row, "item": float(row["item"]), "user": float(row["user"])} for row in SHOWN]
    rows[1][column] = 1.344800117571260417e18
    write(tmp_path / f"log.{kind}", rows)
    write(tmp_path / "e.csv", [{"at": T + 10, "user": 0, "item": 0, "what": "click"}])
    events = load(tmp_path, logs(impressions={**FILE, "file": f"log.{kind}"}), features(), NOW)
    assert [(each.place.split("column ")[1], each.detail) for each in events.rejects] == [(column, "no id")]
    assert events.impressions == 3


def test_requests_of_two_sources_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "log.csv", SHOWN)
    write(tmp_path / "other.csv", [{**SHOWN[0], "item": 9}])
    write(tmp_path / "e.csv", [{"at": T + 10, "user": 0, "item": 0, "what": "click"}])
    settings = logs(impressions=[FILE, {**FILE, "file": "other.csv"}])
    assert load(tmp_path, settings, features(), NOW).mixed == (1, "0")


@pytest.mark.parametrize("memory", ["511MB", 2**70, "0GB", "2", "lots"])
def test_memory_has_bounds(memory: Any) -> None:
    with pytest.raises(ValidationError, match="memory"):
        logs(memory=memory)


IN_A_PROCESS = """
import resource, sys
from pathlib import Path
from streaming.source.load import load
from tests.streaming.source.own_logs import NOW, features, source
from basis.problems import Problems
resource.setrlimit(resource.{limit}, ({most}, {most}))
wanted = features(**{{f"f{{at}}": {{"column": "item"}} for at in range({features})}})
try:
    events = load(Path(sys.argv[1]), source("parquet", actions={{"click": {{}}}}), wanted, NOW)
except Problems as error:
    print(*error.problems[0], sep="|")
else:
    print(events.impressions)
"""


def in_a_process(folder: Path, limit: str, most: int, count: int) -> str:
    code = IN_A_PROCESS.format(limit=limit, most=most, features=count)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.strip()


def test_hundreds_of_features_open_no_more_files_than_a_process_may(tmp_path: Path) -> None:
    write(tmp_path / "log.parquet", [{"t": T + at, "user": at, "item": at} for at in range(3)])
    assert in_a_process(tmp_path, "RLIMIT_NOFILE", 512, 400) == "3"


def test_a_full_disk_is_told_with_the_folder(tmp_path: Path) -> None:
    """A file that may not grow stands for a disk that is full."""
    rows = np.arange(300_000)
    pq.write_table(pa.table({"t": T + rows, "user": rows, "item": rows}), tmp_path / "log.parquet")
    file, place, _, allowed = in_a_process(tmp_path, "RLIMIT_FSIZE", 1 << 20, 1).split("|")
    assert (file, place) == (tempfile.gettempdir(), "temporary folder")
    assert "TMPDIR" in allowed


HOLDING = """
import time
from streaming.source.order.spool import open_spool
with open_spool(1 << 29):
    print("open", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_and_what_is_used_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", HOLDING], stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with open_spool(1 << 29):
            assert len(list(tmp_path.glob("minutely-spool-*"))) == 2
        os.kill(other.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("minutely-spool-*"))) == 1
    with open_spool(1 << 29):
        assert len(list(tmp_path.glob("minutely-spool-*"))) == 1
    assert not list(tmp_path.glob("minutely-spool-*"))


def test_rows_of_any_size_are_read_by_their_bytes(tmp_path: Path) -> None:
    """Lists of 4,000 ids: a piece of so many rows as others have would be 2 GB."""
    rows, width = 6000, 4000
    lists = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, np.arange(rows * width) % 97)
    pq.write_table(
        pa.table({"t": T + np.arange(rows), "user": np.arange(rows), "item": lists}), tmp_path / "log.parquet"
    )
    wanted = features(item={"column": "item", "pool": "mean"})
    events = load(tmp_path, source("parquet", actions={"click": {}}, memory="2GB"), wanted, NOW)
    assert events.impressions == rows


def test_problems_of_reading_are_no_traceback(tmp_path: Path) -> None:
    """Whatever DuckDB says of a spool."""
    with pytest.raises(Problems, match="temporary folder"), open_spool(1 << 29) as (spool, _):
        spool.add("nowhere", pa.table({"a": [1]}))
