"""Folders that tests of the command line run in."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder `logs` in the current one."""
    monkeypatch.chdir(tmp_path)
    folder = Path("logs")
    folder.mkdir()
    return folder
