"""Whoever wrote a file of the delta log, and whatever is in it: it is refused by name, and the process lives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.commands import ROOT

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1,2").split(",")]
TIMES = 3000


@pytest.mark.parametrize("seed", SEEDS)
def test_files_that_were_changed_with_their_checksums_are_refused_and_end_nothing(seed: int) -> None:
    command = [sys.executable, "-m", "tests.paramserver.hostile", str(seed), str(TIMES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert "refused" in done.stdout and "taken" in done.stdout
