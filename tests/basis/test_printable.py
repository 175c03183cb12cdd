"""What others write stays within its line, and says nothing to a terminal."""

from __future__ import annotations

import unicodedata

from basis.printable import printable


def test_control_characters_are_escaped_and_nothing_else() -> None:
    characters = [chr(code) for code in range(0x3000)]
    changed = [each for each in characters if printable(each) != each]
    assert changed == [each for each in characters if unicodedata.category(each) == "Cc"]
    assert printable("Zoë\n\r\t\x1b[31m\x7f\x85\x9b2J [bold]") == r"Zoë\n\r\t\x1b[31m\x7f\x85\x9b2J [bold]"
