"""Running the command line as people do, in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
_BIN = Path(sys.executable).parent


def missing(what: str) -> None:
    """Skip, saying what is missing; in CI, where it must be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"missing in CI: {what}")
    pytest.skip(f"missing: {what}")


def require_kuairand() -> None:
    """Go on only where KuaiRand is."""
    if not Path(os.environ.get("MINUTELY_DATA", "."), "kuairand_pure_14d", "impressions.parquet").is_file():
        missing("KuaiRand-Pure in $MINUTELY_DATA/kuairand_pure_14d (docs/data.md says where to get it)")


def execute(command: str, folder: Path = ROOT, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    """Run a command of the documentation in a folder, with the environment's programs first."""
    environment = {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def run(command: str, out: Path) -> dict[str, Any]:
    """Run a replay or comparison into ``out``; its summary."""
    done = execute(f"{command} --out {shlex.quote(str(out))}")
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert (out / "report.html").stat().st_size > 0
    return summary
