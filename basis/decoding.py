"""The boundary where bytes that others wrote become values: whatever goes wrong there is a refusal of these bytes.

Lists of what decoders raise were incomplete each time: nested lists (``RecursionError``), 2**64 (``OverflowError``), a lone
surrogate. So every decoder stands in `refusing`, or on hot paths in a ``try`` with ``except Exception``, beside nothing but pure
code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SHOWN = 300


@contextmanager
def refusing(refusal: Callable[[str], Exception], *passes: type[Exception]) -> Iterator[None]:
    """Decode and check bytes. What is raised within becomes ``refusal(why)``, except ``passes``, which are refusals already, and
    a `MemoryError`, which is not the bytes' fault."""
    try:
        yield
    except MemoryError:
        raise
    except passes:
        raise
    except Exception as error:
        raise refusal(why(error)) from None


def why(error: Exception) -> str:
    """What is wrong with the bytes, in one line that any record can hold."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    lines = str(error).splitlines() or [""]
    line = lines[0][:_SHOWN].encode("utf-8", "backslashreplace").decode()
    if isinstance(error, LookupError | AttributeError) or not line:  # these say no more than a name
        return f"{type(error).__name__} {line}".rstrip()
    return line
