"""How commands end: in order when they are asked to; with an exit status for each kind of end, and on standard error what, where
and what is allowed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from basis.problems import (
    BadFile,
    CannotListen,
    GapError,
    GuardedError,
    NoAnswerError,
    NoRoomError,
    NotFiniteError,
    Problems,
    UnreadableError,
)
from minutely.terminal import Terminal, literal


class Ending(IntEnum):
    """Exit statuses. 2, a command line that is wrong, is click's; the last two are what shells make of SIGINT and SIGPIPE."""

    FAULT = 1
    HELD = 3
    CANNOT_LISTEN = 4
    NO_ANSWER = 5
    INTERRUPTED = 130
    CUT_OFF = 141


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Whether the process was asked to end, by SIGINT or SIGTERM; asked a second time, it ends at once."""
    caught: list[int] = []

    def note(number: int, _frame: object) -> None:
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def errors_as_statuses() -> Iterator[None]:
    """Run a command: what it raises becomes lines on standard error and a status."""
    Terminal.cut_off = False
    try:
        yield
    except Problems as error:
        _end(Ending.FAULT, "error", *map(str, error.problems))
    except NoAnswerError as error:
        _end(Ending.NO_ANSWER, "no answer", str(error))
    except (NotFiniteError, GuardedError) as error:
        _end(Ending.HELD, "not published", str(error))
    except CannotListen as error:
        _end(Ending.CANNOT_LISTEN, "cannot listen", str(error))
    except (
        OSError,
        BadFile,
        GapError,
        UnreadableError,
    ) as error:  # such as a full disk, a run that was damaged, lost records
        _end(Ending.FAULT, "error", str(error))
    except NoRoomError as error:
        _end(Ending.FAULT, "no room", str(error))
    except MemoryError as error:
        _end(Ending.FAULT, "no room", str(error) or "this machine has too little memory for what it was asked to do")
    except KeyboardInterrupt:
        sys.exit(Ending.INTERRUPTED)
    if Terminal.cut_off:
        sys.exit(Ending.CUT_OFF)


def _end(status: Ending, kind: str, *lines: str) -> None:
    console = Terminal(stderr=True)
    for line in lines:
        console.print(f"[red]{kind}[/red] {literal(line)}")
    sys.exit(status)
