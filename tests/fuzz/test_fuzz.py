"""Hostile records: every decoder takes them or raises the refusal that it documents, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.commands import ROOT

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split(",")]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_comes_out_of_decoders_but_what_they_document(seed: int) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--records", "20000", "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-3000:])
