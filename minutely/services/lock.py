"""Locks in a folder: one process holds each, and the file says which, also after it is gone."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from basis.problems import Problem, Problems

WRITER, RETRAINER = "writer.lock", "retrain.lock"
_TRY_EVERY_SECONDS = 0.1


class FileLock:
    """Taken until it is closed, or its process ends however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a+", encoding="utf-8")

    def take(self) -> bool:
        """Take it if it is free; whether we have it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._file.truncate(0)
        self._file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
        return True

    def wait(self, seconds: float, stop: Callable[[], bool]) -> bool:
        """Take it as soon as it is free; False where ``stop`` or the time came first."""
        until = time.monotonic() + seconds
        while not self.take():
            if stop() or time.monotonic() >= until:
                return False
            time.sleep(_TRY_EVERY_SECONDS)
        return True

    @property
    def holder(self) -> str:
        """The process that holds it, or held it last."""
        return self._path.read_text(encoding="utf-8").strip() or "an unknown process"

    def refusal(self, what: str, allowed: str) -> Problems:
        """The error of one that may not go on since another process has it."""
        return Problems([Problem(str(self._path.parent), "--deltas", f"{self.holder} {what}", f"allowed: {allowed}")])

    def close(self) -> None:
        """Let go of it."""
        self._file.close()
