"""What a replay keeps of its dead letters: all that fit, and how many there were."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from rich.text import Text

from basis.problems import BadFile
from minutely.cli_services import _by_reason
from minutely.replays import run_letters
from minutely.replays.run_letters import KeptLetters, keep_letters, kept_letters
from minutely.services.dead_letters import show_kept
from streaming.embedded_log import EmbeddedLog
from streaming.log import DEAD_LETTERS
from streaming.records.events import DeadLetter, encode


def keep(folder: Path, count: int) -> tuple[list[DeadLetter], Path]:
    letters = [
        DeadLetter(
            topic="impressions", partition=0, offset=at, reason="late", detail=f"it is {at}", payload=b"\xff" * at
        )
        for at in range(count)
    ]
    log = EmbeddedLog(folder / "log", durable=False)
    log.append(DEAD_LETTERS, 0, [encode(letter) for letter in letters])
    keep_letters(log, 0, folder / "kept.jsonl")
    log.close()
    return letters, folder / "kept.jsonl"


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    letters, path = keep(tmp_path, 2500)
    *kept, last = kept_letters(path)
    assert [each.letter for each in kept] == letters
    assert (last.letter, last.count) == (None, 2500)


@pytest.mark.parametrize(("limit", "value"), [("_MOST", 7), ("_MOST_BYTES", 800)])
def test_what_does_not_fit_is_counted(tmp_path: Path, limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_letters, limit, value)
    _, path = keep(tmp_path, 50)
    assert path.stat().st_size < 1100
    out = io.StringIO()
    show_kept(Console(file=out, width=200), path, None, 3)
    assert "7 dead letters, the first 3 shown" in out.getvalue()
    assert "of the first 7 of 50: the run kept no more" in out.getvalue()


def test_a_reason_that_none_has_names_those_there_are(tmp_path: Path) -> None:
    _, path = keep(tmp_path, 5)
    out = io.StringIO()
    show_kept(Console(file=out, width=200), path, "latte", 3)
    assert out.getvalue() == "0 dead letters\nnone of reason latte; there are: late 5\n"


def test_they_are_shown_as_they_are(tmp_path: Path) -> None:
    """Whoever may write to `dead-letters` chooses every text of a letter: none is a style of ours, or ends the command."""
    path, out = tmp_path / "kept.jsonl", io.StringIO()
    letter = DeadLetter(
        topic="[red]topic", partition=0, offset=1, reason="[/x]", detail="[bold]it[/]", payload=b"[/blue]"
    )
    path.write_bytes(msgspec.json.encode(KeptLetters(letter=letter)) + b"\n")
    show_kept(Console(file=out, width=200), path, None, 3)
    for text in ("[red]topic", "[/x]", "[bold]it[/]", "7: [/blue]"):
        assert text in out.getvalue()
    assert Text.from_markup(_by_reason(Counter({"[/x]": 2}))).plain == " ([/x] 2)"


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    path.write_bytes(b'{"count":1}\n{"letter":7}\n')
    with pytest.raises(BadFile, match=r"kept.jsonl: line 2: Expected `object \| null`, got `int`"):
        list(kept_letters(path))
