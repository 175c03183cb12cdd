"""`minutely init`: from paths to a config that loads, and a table of what it took each file and column for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.table import Table as TextTable

from basis.problems import Problem, Problems
from minutely.config import load_pipeline
from minutely.init.features import Features
from minutely.init.labels import Outcomes
from minutely.init.roles import Layout, layout_of
from minutely.init.sources import Found, find_sources
from minutely.init.tables import Table, table_of
from minutely.init.text import UNSURE, config_name, config_text, texts_for
from minutely.logs.own_logs import NAME_A_COLUMN
from minutely.place import require_writable
from minutely.terminal import literal


def init(paths: Sequence[Path], out: Path | None, now_ms: int, *, force: bool, console: Console) -> None:
    """Write a config for the logs in ``paths``, and say what was decided. ``now_ms`` is the wall clock's time.

    Raises:
        Problems: a path or a file cannot be used, or the config is there already and is not to be replaced.
    """
    require_writable(Path() if out is None else out.parent, "--out")
    name = config_name(out.name.partition(".")[0] if out is not None else _name_of(paths[0]))
    target = Path(f"{name}.yaml") if out is None else out
    if target.exists() and not force:
        allowed = "is there already; allowed: another file with --out, or --force to replace it"
        raise Problems([Problem(str(target), "file", "", allowed)])
    found = find_sources(paths)
    layout = layout_of([table_of(source, now_ms) for source in found.sources], now_ms)
    outcomes = Outcomes(layout)
    features = Features(layout, outcomes)
    text = config_text(name, found.folder, layout, outcomes, features)
    _write(target, text)
    _show(console, found, layout, outcomes, features)
    config = quote(str(target))
    console.print(
        f"\n{literal(str(target))} is written. Choose its labels"
        + (", look at what is `unsure` in it" if UNSURE in text else "")
        + ", then:",
        soft_wrap=True,
    )
    for command in ("check", "replay"):
        console.print(f"  minutely {command} {literal(config)}", soft_wrap=True, highlight=False)


def _name_of(path: Path) -> str:
    found = path.absolute()
    return found.name if found.is_dir() else found.name.partition(".")[0]


def _write(target: Path, text: str) -> None:
    """Write a config that `minutely check` can load."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".minutely-") as folder:
        made = Path(folder, target.name)
        made.write_text(text, encoding="utf-8")
        load_pipeline(made)
        made.replace(target)


def _show(console: Console, found: Found, layout: Layout, outcomes: Outcomes, features: Features) -> None:
    table = TextTable("what", "where", "how")
    for part in layout.parts:
        table.add_row(
            "impressions", literal(part.source.file.file), literal(_of(part, layout.unsure.get("impressions")))
        )
    for events in layout.engagements:
        table.add_row("engagements", literal(events.table.source.file.file), literal(_of(events.table, None)))
    for side in layout.sides:
        how = f"{side.table.source.seen}, by {side.on}"
        table.add_row(f"side table {side.name}", literal(side.table.source.file.file), literal(how))
    besides = [*(events.table for events in layout.engagements), *(side.table for side in layout.sides)]
    for each in [*layout.parts, *besides]:
        if each.source.missing:
            table.add_row("missing", literal(each.source.file.file), literal("; ".join(texts_for(each))))
    table.add_row(
        "time", literal(layout.time.name), literal("; ".join([layout.time.span, *_listed(layout.unsure.get("time"))]))
    )
    table.add_row(
        "request", literal(", ".join(layout.request or ["each row"])), literal(_doubt(layout.unsure.get("request")))
    )
    for name, column in (("user", layout.user), ("item", layout.item)):
        shown = "none found" if column is None else column.name
        table.add_row(name, literal(shown), literal(_doubt(layout.unsure.get(name))))
    labels = [line.name for line in outcomes.labels if not line.out]
    others = [line.name for line in outcomes.labels if line.out]
    how = f"as comments: {', '.join(others)}" if others else ""
    if NAME_A_COLUMN in (line.value.get("when") for line in outcomes.actions):
        labels, how = (
            ["none found"],
            f"write the column that says what came of an impression in place of {NAME_A_COLUMN}",
        )
    table.add_row("labels", literal(", ".join(labels)), literal(how))
    kept = [line for line in features.lines if not line.out]
    left_out = len(features.lines) - len(kept) + len(features.came)
    table.add_row("features", f"{len(kept)}", f"{left_out} columns are left out, each with its reason")
    for file, why in layout.unused.items():
        table.add_row("not used", literal(file), literal(why))
    for file, why in found.passed_over.items():
        table.add_row("not used", literal(file), literal(why))
    console.print(table)


def _of(table: Table, doubt: str | None) -> str:
    """The rows of a file that are used, and which they are."""
    when = table.source.file.when
    chosen = [] if when is None else [f"where {when.column} is {' or '.join(when.equals)}"]
    return ", ".join([table.source.seen, *chosen, *_listed(_doubt(doubt) or None)])


def _doubt(text: str | None) -> str:
    return f"{UNSURE}{text}" if text else ""


def _listed(text: str | None) -> list[str]:
    return [] if text is None else [text]
