"""What decoders raise at bytes from outside: the one list, so that no decoder is left with a shorter one of its own."""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, RecursionError, UnicodeError)
"""What msgspec raises where bytes are not the JSON or msgpack that is wanted. How deep they may be nested depends on the stack, so
that bytes that were decoded once may be refused elsewhere. Of UTF-8 that is none, it tells differently by where that stands."""


def why(error: Exception) -> str:
    """What is wrong with the bytes, in one line."""
    lines = ["nested too deeply"] if isinstance(error, RecursionError) else str(error).splitlines()
    return lines[0] if lines else type(error).__name__
