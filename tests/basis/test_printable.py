"""What others write stays within its line, and says nothing to a terminal."""

from __future__ import annotations

import unicodedata

from basis.printable import printable

_TURNS = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


def test_control_characters_are_escaped_and_nothing_else() -> None:
    characters = [chr(code) for code in range(0x3000)]
    changed = [each for each in characters if printable(each) != each]
    turns = [each for each in characters if unicodedata.bidirectional(each) in _TURNS]
    breaks = [each for each in characters if len(f"a{each}b".splitlines()) > 1]
    controls = [each for each in characters if unicodedata.category(each) == "Cc"]
    marks = ["\u061c", "\u200e", "\u200f"]  # of letters that nobody sees
    assert changed == sorted({*controls, *breaks, *turns, *marks})
    assert printable("Zoë\n\r\t\x1b[31m\x7f\x85\x9b2J [bold]") == r"Zoë\n\r\t\x1b[31m\x7f\x85\x9b2J [bold]"
