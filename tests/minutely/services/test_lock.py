"""Who holds a folder is told to whoever comes second, also by another process, and while it waits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from basis.problems import Problems
from minutely.services.lock import FileLock
from tests.commands import ROOT

HOLD = "import sys; from pathlib import Path; from minutely.services.lock import FileLock; lock = FileLock(Path(sys.argv[1]))"


def test_the_second_one_is_refused_and_told_who_was_first(tmp_path: Path) -> None:
    code = f"{HOLD}; print(lock.take(), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "writer.lock")]
    lock = FileLock(tmp_path / "writer.lock")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert not lock.take()
        assert lock.holder.startswith(f"pid {other.pid} on ")
        with pytest.raises(Problems, match=rf"--deltas: pid {other.pid} on \S+ publishes there; allowed: one"):
            raise lock.refusal("publishes there", "one")
        assert not lock.wait(0.2, lambda: False), "not in that time"
        assert not lock.wait(60, lambda: True), "not where it is told to stop"
        threading.Timer(0.3, other.kill).start()
        started = time.monotonic()
        assert lock.wait(60, lambda: False), "as soon as the other one is gone, however it went"
        assert time.monotonic() - started < 30
    assert lock.holder.startswith(f"pid {os.getpid()} on ")
    lock.close()
    again = FileLock(tmp_path / "writer.lock")
    assert again.take()
    again.close()


def test_one_that_nobody_ever_held_names_nobody(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "writer.lock")
    assert lock.holder == "an unknown process"
    lock.close()
