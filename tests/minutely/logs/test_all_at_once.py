"""`check` names every mistake at once, each in as few lines as it can, with what to do."""

from __future__ import annotations

from pathlib import Path

from tests.minutely.init_logs import typed
from tests.streaming.source.own_logs import Row, T, write

CONFIG = """\
name: shop
source:
  dir: .
  impressions: {file: log.csv, time: {column: t}, request: [request], impression: [item]}
  engagements: {file: done.csv, time: {column: t}, request: [request], impression: [item], action: {name: click}}
features:
  item: {column: item}
  price: {kind: dense, column: price}
labels:
  click: {action: click, window: 1m}
"""
SHOWN: list[Row] = [
    {"t": T + 1000 * at, "request": f"r{at}", "item": item, "price": 2.5} for at in range(20) for item in ("a", "b")
]
DONE: list[Row] = [{"t": row["t"] + 500, "request": row["request"], "item": row["item"]} for row in SHOWN[::3]]


def checked(shown: list[Row], done: list[Row], config: str = CONFIG) -> str:
    write(Path("log.csv"), shown)
    write(Path("done.csv"), done)
    Path("shop.yaml").write_text(config)
    made = typed("check", "shop.yaml")
    assert made.exit_code == 1, made.output
    return made.output


def test_rows_and_times_are_told_together(logs: Path) -> None:
    early = [{**row, "t": row["t"] - 60_000} for row in DONE]
    said = checked([*SHOWN, SHOWN[4], SHOWN[7]], early)
    assert said.count("is given twice in its request") == 2
    assert f"action click: {len(early)} of {len(early)} before their impression was served" in said


def test_logs_are_checked_beside_mistakes_of_the_config(logs: Path) -> None:
    """Features that are right are looked for, whatever is wrong with others, or with labels."""
    wrong = CONFIG.replace("column: price}", "column: prise}").replace("window: 1m", "window: 1")
    wrong = wrong.replace("  item: {column", "  size: {kind: dense, column: t, transform: cube}\n  item: {column")
    said = checked(SHOWN, DONE, wrong)
    assert "features.size.transform: 'cube'" in said
    assert "labels.click.window: 1" in said
    assert "features.price: column prise: missing; the file has: t, request, item, price" in said


def test_another_delimiter_is_one_line(logs: Path) -> None:
    Path("log.csv").write_text("t;request;item;price\n" + f"{T};r0;a,b;2\n" * 200)
    write(Path("done.csv"), DONE)
    Path("shop.yaml").write_text(CONFIG)
    (line,) = [line for line in typed("check", "shop.yaml").output.splitlines() if "log.csv" in line]
    assert "delimiter: ','; makes one column; allowed: ';', which makes 4: t, request, item, price" in line


def test_a_refused_row_of_a_file_with_carriage_returns(logs: Path) -> None:
    lines = ["t,request,item,price", f'"{T}","r0","a","2"', f'"{T}","r1","a"', f'"{T}","r2","a","2"']
    write(Path("done.csv"), [{"t": T + 1, "request": "r0", "item": "a"}])
    Path("log.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    Path("shop.yaml").write_text(CONFIG)
    said = typed("check", "shop.yaml").output
    assert f'line 3: \'"{T}","r1","a"\'; 3 columns, 4 expected' in said


def test_the_column_that_init_left_to_its_reader(logs: Path) -> None:
    write(logs / "log.csv", SHOWN)
    assert typed("init", "logs", "--out", "made.yaml").exit_code == 0
    said = typed("check", "made.yaml").output
    assert "column NAME-A-COLUMN: missing; the file has: t, request, item, price; `minutely init` found none" in said
