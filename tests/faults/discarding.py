"""Run as ``python -m tests.faults.discarding FOLDER``: opens a state, says what it found, writes it and discards it in processes
that are killed (SIGKILL) before the first, second, ... step of discarding it, until one ends by itself.

Each says the sequence of the state and what is beside it. It forks, since importing takes longer; the parent does nothing.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from streaming.join import store as join_store
from streaming.join.state import Head, JoinState

STEPS: list[tuple[Any, str]] = [(os, "rename"), (os, "unlink"), (os, "rmdir"), (join_store, "Rdict")]


def kill_at_step(steps: int) -> None:
    """Die before the ``steps``-th of `STEPS`."""
    left = count(steps - 1, -1)

    def counted(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)

    for owner, name in STEPS:
        setattr(owner, name, functools.partial(counted, getattr(owner, name)))


def discard(folder: Path, steps: int) -> None:
    state = JoinState(folder, 1 << 20)
    beside = [path.name for path in folder.parent.iterdir()]
    print(json.dumps([state.head and state.head.sequence, beside]), flush=True)
    state.write(Head(state_id="id", sequence=1, published=0, offsets={}, rebuild_points=[]))
    state.close()
    state = JoinState(folder, 1 << 20)  # so that there are files of more than one life
    state.write(Head(state_id="id", sequence=2, published=0, offsets={}, rebuild_points=[]))
    kill_at_step(steps)
    state.discard()
    state.close()


def main(folder: Path) -> None:
    logging.basicConfig(level=logging.WARNING)
    for steps in count(1):
        child = os.fork()
        if child == 0:
            try:
                discard(folder, steps)
                os._exit(0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != -signal.SIGKILL:
            sys.exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
