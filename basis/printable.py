"""Texts of others, made fit for a log or a terminal: what they hold can neither begin a line nor command a terminal."""

from __future__ import annotations

_TURNS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *_TURNS)
_ESCAPED = {code: repr(chr(code))[1:-1] for code in _CONTROLS}


def printable(text: str) -> str:
    r"""Return a text with its control characters (C0, DEL and C1), all line breaks, and what turns the direction of text, as Python
    writes them.

    >>> print(printable("like\n12:00 ERROR disk full\x1b[2J"))
    like\n12:00 ERROR disk full\x1b[2J
    """
    return text.translate(_ESCAPED)
