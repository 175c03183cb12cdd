"""A run's folder: what a replay leaves behind, and how it is found again."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path

from basis.problems import Problem, Problems
from minutely.config import Pipeline
from minutely.place import require_writable
from minutely.yaml_file import write_yaml

RUNS = Path("runs")
_LATEST = "latest"


class Run:
    """The folder of one run: ``config.yaml``, ``deltas/``, ``summary.json``, ``report.html``,
    ``dead-letters.jsonl``; ``log/`` while it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.deltas = folder / "deltas"
        self.config = folder / "config.yaml"
        self.summary = folder / "summary.json"
        self.report = folder / "report.html"
        self.dead_letters = folder / "dead-letters.jsonl"

    @classmethod
    def create(cls, pipeline: Pipeline, out: Path | None, now_ms: int) -> Run:
        """A new folder: ``out``, which must be empty or absent, or one named after the pipeline and the time."""
        if out is None:
            stamp = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%d-%H%M%S-%f")[:-3]
            out = RUNS / f"{pipeline.name}-{stamp}"
        cls.check_free(out)
        run = cls(out)
        run.deltas.mkdir(parents=True, exist_ok=True)
        # What was said stays, also where it is a default: a table's own settings go before those of all tables.
        write_yaml(run.config, pipeline.model_dump(mode="json", exclude_unset=True))
        if out.parent == RUNS:
            _point_to(RUNS / _LATEST, out.name)
        return run

    @staticmethod
    def check_free(out: Path | None) -> None:
        """`Problems` where no run can be left in ``out``, or in `RUNS` without one. Long work checks this first."""
        require_writable(out or RUNS, "--out")
        if out is not None and out.exists() and any(out.iterdir()):
            run = Run(out)
            unfinished = run.config.is_file() and not run.summary.exists()
            value = "has a run without a summary, at work or ended before it" if unfinished else "is not empty"
            allowed = "allowed: a new or empty folder" + (
                "; if it ended, remove it, or give another" if unfinished else ""
            )
            raise Problems([Problem(str(out), "--out", value, allowed)])

    @classmethod
    def find(cls, folder: Path | None) -> Run:
        """The run in ``folder``, or the latest."""
        found = folder or RUNS / _LATEST
        if not (found / "config.yaml").is_file():
            allowed = "allowed: the folder of one, such as minutely replay leaves in runs/"
            raise Problems([Problem(str(found), "--run", "no run there", allowed)])
        return cls(found)


def _point_to(link: Path, name: str) -> None:
    temporary = link.with_name(f"{link.name}.{secrets.token_hex(8)}")
    temporary.symlink_to(name)
    temporary.replace(link)
