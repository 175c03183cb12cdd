"""All benchmarks start the same way. What they measure takes minutes, and is not run here."""

from __future__ import annotations

import subprocess
import sys

from tests.commands import ROOT

NAMES = sorted(path.stem for path in ROOT.glob("benchmarks/*.py") if path.stem != "__init__")
_START_EACH = """
import contextlib, io, runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        sys.exit(f"{name} has no --help")
    except SystemExit as end:
        if end.code:
            raise
    if f"python -m benchmarks.{name}" not in " ".join(out.getvalue().split()):
        sys.exit(f"benchmarks/{name}.py: its first lines say nothing of python -m benchmarks.{name}")
"""


def test_each_starts_by_its_name_and_says_how() -> None:
    """In one process, since most of the time goes to importing torch."""
    command = [sys.executable, "-c", _START_EACH, *NAMES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(NAMES) > 5


def test_parts_are_used_by_a_benchmark() -> None:
    """What is no benchmark is in `benchmarks/parts`, and something starts or imports it."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("benchmarks/**/*.py"))
    for path in ROOT.glob("benchmarks/parts/*.py"):
        assert path.stem == "__init__" or f"benchmarks.parts.{path.stem}" in sources, path
