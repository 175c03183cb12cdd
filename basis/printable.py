"""Texts of others, made fit for a log or a terminal: what they hold can neither begin a line nor command a terminal."""

from __future__ import annotations

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_ESCAPED = {code: repr(chr(code))[1:-1] for code in _CONTROLS}


def printable(text: str) -> str:
    r"""Return a text with its control characters (C0, DEL and C1), line breaks among them, as Python writes them.

    >>> print(printable("like\n12:00 ERROR disk full\x1b[2J"))
    like\n12:00 ERROR disk full\x1b[2J
    """
    return text.translate(_ESCAPED)
