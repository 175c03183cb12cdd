"""Which columns are features, of which kind, and which are left out because nothing can be learned from them in advance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minutely.init.labels import Outcomes, is_flag
from minutely.init.lines import Line, free_name
from minutely.init.profile import Column
from minutely.init.roles import Layout, Side
from minutely.init.tables import Table, is_same_within
from minutely.init.times import TimeGuess
from minutely.init.words import CALENDAR, KINDS, LISTED, PLACES, QUANTITIES, is_id, names, words
from streaming.features.kinds import MAX_VECTOR

_FEW = 100
"""Numbers of fewer different values are kinds of something rather than amounts."""
_WIDE = 100.0
"""Numbers that reach so far from 0 are taken by their logarithm."""
_PAIRS = r"^\S+[-:_][01]( \S+[-:_][01])+$"
_FREE_TEXT = 0.5
"""The share of texts that differ from all others from which on they are no ids."""


class Features:
    """The features, and alternatives among them that are comments."""

    def __init__(self, layout: Layout, outcomes: Outcomes) -> None:
        self.lines: list[Line] = []
        self._layout = layout
        self._group = layout.requests()
        self._is_evident = layout.is_evident(self._group)
        table = layout.impressions
        first = [column for column in (layout.user, layout.item) if column is not None]
        for column in first:
            name = "user" if column is layout.user else _thing(column.name)
            doubt = layout.unsure.get("user" if column is layout.user else "item")
            said = f"unsure: {doubt}" if doubt else ""
            self._add(name, {"column": column.name, **self._scope(column, column is layout.user)}, said)
        self._add("hour", {"time": "hour", "scope": "request"})
        named = {layout.time.name, *(each.name for each in first), *outcomes.used}
        keys = {*(layout.request or ()), *(layout.impression or ())} - {each.name for each in first}
        for column in table.columns.values():
            if column.name not in named:
                why = (
                    "it names the request or the impression"
                    if column.name in keys and not names(column.name, PLACES)
                    else None
                )
                self._column(table, column, None, why)
        for side in layout.sides:
            for column in side.table.columns.values():
                if column.name != side.key:
                    self._column(side.table, column, side, None)
        self.came = sorted(outcomes.used & set(table.columns))
        """The columns that say what came of the impression."""

    def _column(self, table: Table, column: Column, side: Side | None, why: str | None) -> None:
        where = {} if side is None else {"side": side.name}
        value, said = self._guess(table, column)
        shown = {key: each for key, each in value.items() if key != "column"}
        if "kind" in shown:
            line = {"kind": shown.pop("kind"), "column": column.name, **where, **shown}
        else:
            line = {"column": column.name, **where, **shown}
        again = side is not None and column.name in self._layout.impressions.columns
        out = why or ("the impressions have it, too" if again else self._useless(table, column))
        if out is not None:
            self._left_out(column.name, line, out)
            return
        line |= self._scope_of(column, side, line)
        if not said and table is self._layout.impressions and is_flag(column) and "scope" not in line:
            said = "unsure: leave it out if it says what came of the impression"
        self._add(column.name, line, said)

    def _useless(self, table: Table, column: Column) -> str | None:
        """Why a column is no feature, None where it is one."""
        time = next((each for each in table.times if each.name == column.name), None)
        if column.kind == "nothing":
            return "missing everywhere"
        if column.kind == "other":
            return f"values of type {column.values.type}"
        if column.kind == "texts" and _is_slate_of_pairs(column):
            return (
                "a list of items, each with a 0 or 1: `explode` with `each` makes impressions of it, see docs/data.md"
            )
        if column.kind == "lists" and _list_kind(column) is None:
            return "lists of numbers of different lengths"
        if column.distinct == 1:
            return "one value everywhere"
        if table is self._layout.impressions and names(column.name, PLACES):
            return "a place is what comes of the ranking, and is not known before it"
        if table is self._layout.impressions and (
            (time is not None and self._is_clock(time)) or self._is_calendar(column)
        ):
            return "it says when; hour and weekday come from the time"
        if time is None and column.kind == "texts" and column.separator is None and _is_free(column):
            return "free text: an embedding of it may be a vector"
        if (
            time is None
            and table is self._layout.impressions
            and column.is_unique
            and column.kind in ("integers", "texts")
        ):
            return "each row has a value of its own"
        return None

    def _is_clock(self, time: TimeGuess) -> bool:
        """Whether a time follows that of the serving closely, as that of the arrival in the log does."""
        apart = pc.abs(pc.subtract(time.at, self._layout.time.at)).drop_null()
        return len(apart) > 0 and float(np.quantile(apart.to_numpy(), 0.5)) <= 86_400_000

    @staticmethod
    def _is_calendar(column: Column) -> bool:
        return column.kind in ("integers", "texts", "times") and set(words(column.name)) <= CALENDAR

    def _guess(self, table: Table, column: Column) -> tuple[dict[str, Any], str]:
        """The feature that a column makes, and what is unsure about it."""
        time = next((each for each in table.times if each.name == column.name), None)
        if time is not None:
            if time.setting.format is not None:
                return {}, f"a time as {time.setting.format} would write it; an age needs ISO 8601, so it is an id"
            unit = {"unit": time.setting.unit} if "unit" in time.setting.model_fields_set else {}
            return {"kind": "dense", "transform": "age", **unit}, time.unsure
        if column.kind == "lists":
            return _list_kind(column) or {}, ""
        if column.separator is not None:
            unsure = "" if names(column.name, LISTED) else "unsure: or one id, without split and pool"
            return {"split": column.separator, "pool": "mean"}, unsure
        if column.kind == "numbers":
            return {"kind": "dense", **_transform(column)}, ""
        if column.kind != "integers" or is_id(column.name) or names(column.name, KINDS):
            return {}, ""
        if column.distinct <= _FEW:
            amount = column.distinct > 10 and names(column.name, QUANTITIES)
            return ({"kind": "dense", **_transform(column)}, "") if amount else ({}, "")
        if names(column.name, QUANTITIES):
            return {"kind": "dense", **_transform(column)}, ""
        return {"kind": "dense", **_transform(column)}, f"unsure: or ids: {{column: {column.name}}}"

    def _scope(self, column: Column, by_nature: bool) -> dict[str, str]:
        """`scope: request` for what is the same within each request; the item never is."""
        may_be_shared = column is not self._layout.item and (self._is_evident or by_nature)
        return {"scope": "request"} if may_be_shared and is_same_within(self._group, column) else {}

    def _scope_of(self, column: Column, side: Side | None, line: dict[str, Any]) -> dict[str, str]:
        if line.get("pool") in ("mean", "sum"):
            return {}  # lists are logged with each impression
        if side is None:
            return self._scope(column, False)
        on = self._layout.impressions.columns[side.on]
        is_user = self._layout.user is not None and side.on == self._layout.user.name
        return self._scope(on, is_user)

    def _add(self, name: str, value: dict[str, Any], why: str = "", out: bool = False) -> None:
        taken = [line.name for line in self.lines]
        side = value.get("side")
        wanted = f"{side}_{name}" if side and free_name(name, taken) != free_name(name, ()) else name
        self.lines.append(Line(free_name(wanted, taken), value, why, out))

    def _left_out(self, name: str, value: dict[str, Any], why: str) -> None:
        self._add(name, value, f"left out: {why}", True)


def _is_slate_of_pairs(column: Column) -> bool:
    """Whether most texts are like ``N1-0 N2-1``, as in logs of MIND's form."""
    return float(pc.mean(pc.match_substring_regex(column.present, _PAIRS)).as_py() or 0) > _FREE_TEXT


def _thing(column: str) -> str:
    """What an id is of: ``video_id`` is a video's."""
    found = [word for word in words(column) if word not in ("id", "shown", "inview")]
    return "_".join(found) or column


def _list_kind(column: Column) -> dict[str, Any] | None:
    """Ids to be pooled, or a vector; None for lists that are neither."""
    items = column.items
    if pa.types.is_floating(items.type) or pa.types.is_decimal(items.type):
        lengths = pc.unique(pc.list_value_length(column.present)).to_pylist()
        whole = len(lengths) == 1 and 1 <= lengths[0] <= MAX_VECTOR
        return {"kind": "vector", "size": lengths[0]} if whole else None
    return {"pool": "mean"} if pa.types.is_integer(items.type) or pa.types.is_string(items.type) else None


def _transform(column: Column) -> dict[str, str]:
    is_wide = float(column.numbers.min()) >= 0 and float(column.numbers.max()) > _WIDE
    return {"transform": "log"} if is_wide else {}


def _is_free(column: Column) -> bool:
    """Whether texts are sentences rather than ids: most differ, and most have spaces."""
    spaced = pc.mean(pc.match_substring(column.present, " ")).as_py()
    return column.distinct > _FREE_TEXT * len(column.present) and spaced > _FREE_TEXT and column.distinct > _FEW
