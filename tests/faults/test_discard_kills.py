"""A joiner killed by SIGKILL while it discards a state: its folder is whole or empty, and opens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.commands import ROOT


def test_a_state_is_whole_or_gone_whenever_its_joiner_is_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.discarding", str(tmp_path / "0")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not done.stderr, "no folder was damaged"
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 10, "there were files to remove"
    assert [sequence for sequence, _ in found] == [None, 2] + [None] * (len(found) - 2)
    assert all(beside == ["0"] for _, beside in found), "nothing is left behind"
