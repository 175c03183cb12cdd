"""One row of a run, found in its delta log."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console

from basis.problems import Problem, Problems
from minutely.run import Run
from minutely.terminal import TitledTable, literal
from paramserver import manifest as manifests
from paramserver.files import LocalFiles
from paramserver.history import read_version
from streaming.features.ids import text_id


def show_row(console: Console, folder: Path | None, table: str, text: str) -> None:
    """Print a row as of the run's newest version; `Problems` where there is no such run, table or row."""
    run = Run.find(folder)
    files = LocalFiles(run.deltas, durable=False)
    bases = manifests.versions(files, base=True)
    if not bases:
        raise Problems([Problem(str(run.deltas), "base", "none there", "allowed: a run that came to its end")])
    base = manifests.read_manifest(files, bases[-1], base=True)
    tables = read_version(files, base)
    if table not in tables:
        raise Problems([Problem(str(run.folder), "table", table, f"allowed: {', '.join(tables)}")])
    found = tables[table]
    try:
        wanted = text_id(text)
    except ValueError as error:
        raise Problems([Problem(str(run.folder), f"table {table}", text, str(error))]) from None
    at = np.flatnonzero(found.rows.ids == wanted)
    if not len(at):
        allowed = f"not among the {len(found.rows.ids):,} rows of version {base.version}: never trained, or expired"
        raise Problems([Problem(str(run.folder), f"table {table}", text, allowed)])
    row = int(at[0])
    seen = datetime.fromtimestamp(int(found.rows.last_seen_seconds[row]), UTC)
    shown = TitledTable(show_header=False, heading=f"{table} {literal(text)}, version {base.version}")
    shown.add_row("id", str(int(found.rows.ids[row])))
    shown.add_row("embedding norm", f"{np.linalg.norm(found.rows.embeddings[row]):.6g}")
    shown.add_row("count", f"{int(found.rows.counts[row]):,}")
    shown.add_row("last seen", f"{seen:%Y-%m-%d %H:%M:%S} UTC")
    shown.add_row("last changed in version", str(int(found.versions[row])))
    console.print(shown)
