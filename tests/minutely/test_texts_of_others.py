"""Ids, errors and names that others chose: each stays on its line in logs and in what commands print, and moves no cursor."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from basis.problems import GapError
from minutely.ends import errors_as_statuses
from minutely.replays.run_letters import keep_letters
from minutely.services.dead_letters import show_kept
from minutely.services.freshness import Looked, table
from minutely.services.service import log_to_stderr
from minutely.terminal import Terminal, literal
from streaming.embedded_log import EmbeddedLog
from streaming.join.refusals import RefusalLog
from streaming.log import DEAD_LETTERS, ENGAGEMENTS
from streaming.records.events import DeadLetter, encode
from tests.clocks import SetClock
from tests.commands import ROOT

HOSTILE = "r\n2026-11-30 00:00:00,000 minutely.join ERROR forged\r\x1b[2J\x9b31m\x07"
HARMLESS = r"r\n2026-11-30 00:00:00,000 minutely.join ERROR forged\r\x1b[2J\x9b31m\x07"
LETTER = DeadLetter(topic=ENGAGEMENTS, partition=0, offset=1, reason="unmatched", detail=HOSTILE, payload=b"")


def is_plain(text: str) -> bool:
    """Whether its only control characters are line feeds."""
    return not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the services' log has."""
    root, ours = logging.getLogger(), logging.getLogger("minutely")
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(ours, "level", ours.level)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log_to_stderr()
    return sys.stderr  # type: ignore[return-value]


def test_a_message_is_one_line_of_the_log(logged: io.StringIO) -> None:
    RefusalLog(SetClock(0, 0)).add([LETTER])
    logging.getLogger("other").error("%s", HOSTILE)
    said = logged.getvalue()
    assert said.count("\n") == 2 and said.count(HARMLESS) == 2 and is_plain(said)


def test_a_traceback_keeps_its_lines(logged: io.StringIO) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("minutely.join").exception("failed")
    said = logged.getvalue()
    assert "failed\nTraceback (most recent call last):\n  File " in said
    assert r"\x1b[2J\x9b31m\x07" in said and is_plain(said)


def test_dead_letters_are_listed_on_a_line_each(tmp_path: Path) -> None:
    log, path, console = (
        EmbeddedLog(tmp_path / "log", durable=False),
        tmp_path / "letters",
        Console(file=io.StringIO(), width=300),
    )
    log.append(DEAD_LETTERS, 0, [encode(LETTER), encode(LETTER)])
    keep_letters(log, 0, path)
    show_kept(console, path, None, 20)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.count(HARMLESS) == 2 and is_plain(said)


def test_an_error_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), errors_as_statuses():
        raise GapError(HOSTILE)
    assert capsys.readouterr().err == f"error {HARMLESS}\n"


def test_what_a_replica_says_is_a_line() -> None:
    console = Console(file=io.StringIO(), width=300)
    console.print(table([Looked("127.0.0.1:8081", error=HOSTILE)]))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert HARMLESS in said and is_plain(said)


@pytest.mark.parametrize(
    "text",
    [
        "user:100:7",
        ":warning: [red]",
        *("ends" + count * "\\" for count in range(1, 6)),
        "\\" * 3 + "[/red]",
        "[/]",
        "\\[b]",
    ],
)
def test_a_console_interprets_nothing_in_texts_of_others(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console, shown = Terminal(), Table("x")
    shown.add_row(literal(text))
    console.print(f"[red]{literal(text)}[/red] after")
    console.print(literal(text))
    console.print(shown)
    first, second, *cells = capsys.readouterr().out.splitlines()
    assert (first, second) == (f"{text} after", text)
    assert any(text in cell for cell in cells)


def test_commands_escape_markup_and_control_characters_together() -> None:
    """Markup alone would be half of it."""
    found = [path.name for path in (ROOT / "minutely").glob("*.py") if "rich.markup" in path.read_text()]
    assert found == ["terminal.py"]
