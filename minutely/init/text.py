"""The config as a text: every decision on a line, and beside it what is unsure; alternatives are comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from basis.printable import printable
from minutely.init.features import Features
from minutely.init.labels import Outcomes
from minutely.init.lines import Line
from minutely.init.roles import Engagements, Layout
from minutely.init.tables import Table
from minutely.yaml_file import one_line

UNSURE = "unsure: "
"""How a comment begins that says what may be otherwise."""
_NO_NAME = re.compile(r"[^A-Za-z0-9_-]+")


def config_text(name: str, folder: Path, layout: Layout, outcomes: Outcomes, features: Features) -> str:
    """Return the config of a layout."""
    lines = [
        "# A first config by `minutely init`, from the first rows of each file. docs/own-logs.md says what every key means.",
        "# Choose the labels, and look at what is `unsure`, if anything is. A line in a comment is an alternative: remove its "
        "`# ` to take it.",
        _item("name", name),
        "",
        "source:",
        f"  {_item('dir', str(folder))}",
        *_impressions(layout),
        *_engagements(layout),
        *_sides(layout),
    ]
    if outcomes.actions:
        lines += ["  actions: # what columns of the impressions record", *_section(outcomes.actions, 4)]
    lines += [_comment(f"  # {file} is not used: {why}") for file, why in layout.unused.items()]
    lines += ["", "features: # only what was known when the impression was served", *_section(features.lines, 2)]
    lines += (
        [_comment(f"  # left out, since they say what came of it: {', '.join(features.came)}")] if features.came else []
    )
    lines += ["", "labels: # choose: what the model is to predict", *_section(outcomes.labels, 2), ""]
    return "\n".join(lines)


def config_name(text: str) -> str:
    """A pipeline's name out of that of a file or a folder."""
    return _NO_NAME.sub("-", text).strip("-")[:64] or "logs"


def _impressions(layout: Layout) -> list[str]:
    return _files("impressions", [(part, _impressions_of(layout, part)) for part in layout.parts])


def _impressions_of(layout: Layout, part: Table) -> list[str]:
    unsure = layout.unsure
    lines = [_comment(f"# unsure: {unsure['impressions']}")] if "impressions" in unsure else []
    lines += [_with_why(_item("time", layout.time.section()), _joined(part.times[0].span, unsure.get("time")))]
    if layout.slate is not None:
        split = layout.slate.explode.split
        columns = layout.slate.explode.columns
        explode: Any = columns if split is None else {"columns": columns, "split": split}
        lines.append(_with_why(_item("explode", explode), "each item becomes an impression"))
    if layout.request is not None:
        lines.append(_with_why(_item("request", layout.request), _unsure(unsure.get("request"))))
    elif "request" in unsure:
        lines.append(_comment(f"# unsure: {unsure['request']}"))
    if layout.impression is not None:
        names = "names the impression within its request"
        lines.append(
            _with_why(_item("impression", layout.impression), _joined(names, _unsure(unsure.get("impression"))))
        )
    others = {name: other for other in layout.parts for name in part.columns if name not in other.columns}
    return lines + [
        _comment(f"# column {name} is not used: {other.source.file.file} has none") for name, other in others.items()
    ]


def _engagements(layout: Layout) -> list[str]:
    return _files("engagements", [(events.table, _engagements_of(events)) for events in layout.engagements])


def _engagements_of(events: Engagements) -> list[str]:
    lines = [_with_why(_item("time", events.time.section()), events.time.span)]
    lines += [_item("request", events.request), _item("impression", events.impression)]
    if isinstance(events.action, str):
        lines.append(f"{_item('action', {'name': events.action})} # by the file's name")
    else:
        lines.append(_item("action", events.action.name))
    return lines if events.amount is None else [*lines, _item("value", events.amount.name)]


def _files(key: str, files: Sequence[tuple[Table, list[str]]]) -> list[str]:
    """A key with one file, or with a list of several."""
    if len(files) == 1:
        ((table, lines),) = files
        return [f"  {key}: # {table.source.seen}", *(f"    {line}" for line in _file(table) + lines)]
    made = [f"  {key}:"] if files else []
    for table, lines in files:
        first, *rest = _file(table) + lines
        made += [f"    - {first} # {table.source.seen}", *(f"      {line}" for line in rest)]
    return made


def _sides(layout: Layout) -> list[str]:
    lines = []
    for side in layout.sides:
        value = {**_file_keys(side.table), "key": side.key, **({} if side.on == side.key else {"on": side.on})}
        lines.append(f"    {_item(side.name, value)} # {side.table.source.seen}")
    return ["  sides:", *lines] if lines else []


def _file_keys(table: Table) -> dict[str, Any]:
    return {
        key: value for key, value in table.source.file.model_dump().items() if key in table.source.file.model_fields_set
    }


def _file(table: Table) -> list[str]:
    why = {"missing": "; ".join(f"unsure: {said}" for said in texts_for(table))}
    lines = [_with_why(_item(key, value), why.get(key)) for key, value in _file_keys(table).items()]
    return lines + [_comment(f"# {each.place} is not used: {each.value}") for each in table.source.unusable]


def texts_for(table: Table) -> list[str]:
    """What stands for missing values, and where."""
    return [f"{text} in {column} is taken for a missing value" for text, column in table.source.missing.items()]


def _section(lines: Iterable[Line], indent: int) -> list[str]:
    return [
        _with_why(f"{' ' * indent}{'# ' if line.out else ''}{_item(line.name, line.value)}", line.why) for line in lines
    ]


def _item(key: str, value: Any) -> str:
    """A key and its value on one line."""
    return one_line({key: value})[1:-1]


def _with_why(text: str, why: str | None) -> str:
    return _comment(f"{text} # {why}") if why else text


def _comment(text: str) -> str:
    """A line with words of others in its comment, which cannot end it."""
    return printable(text)


def _joined(*parts: str | None) -> str:
    return "; ".join(part for part in parts if part)


def _unsure(text: str | None) -> str | None:
    return None if text is None else f"unsure: {text}"
