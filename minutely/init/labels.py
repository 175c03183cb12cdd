"""Which columns say what came of an impression: actions with their delays, and the labels that could be made of them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from basis.settings import format_duration
from minutely.init.lines import Line, free_name
from minutely.init.profile import Column, Numbers
from minutely.init.roles import Engagements, Layout
from minutely.init.tables import grouped, is_same_within
from minutely.init.words import (
    ACTIONS,
    DELAYS,
    DURATIONS,
    RATINGS,
    SHOWN,
    STAYS,
    UNWANTED,
    is_id,
    names,
    words,
)
from minutely.logs.advice import bound_of
from minutely.logs.own_logs import NAME_A_COLUMN
from streaming.features.arrow_columns import to_ms
from streaming.features.columns import Ids
from streaming.features.kinds import Unit
from streaming.records.labels import MAX_WINDOW_MS

_MINUTE = 60_000
_WINDOWS = tuple(_MINUTE * each for each in (10, 30, 60, 6 * 60, 24 * 60, 7 * 24 * 60))
_GUESSED_DELAY = "10s"
_MOST_LABELS = 3
_RARE = 0.005
"""The share of positives below which a label is an alternative only."""
_SELDOM = 0.5
_MOST_STARS = 21
_UNITS: dict[str, Unit] = {"ms": "ms", "millis": "ms", "s": "s", "sec": "s", "second": "s", "seconds": "s", "us": "us"}
_LONG_MS = 5_000
"""A stay of more than this many of its unit at the median is one in milliseconds."""


class _Done(NamedTuple):
    """How often an action is in a file, its delays (ms), and the name and the values of its amounts."""

    rows: int
    delays: Ids
    amount: str
    values: Numbers


class Outcomes:
    """Actions and labels, and the columns that they use up: what came of an impression is no feature of it."""

    def __init__(self, layout: Layout) -> None:
        self.actions: list[Line] = []
        self.labels: list[Line] = []
        self.used: set[str] = set()
        self._layout = layout
        self._columns = layout.impressions.columns
        self._keys = {layout.time.name, *(layout.request or []), *(layout.impression or [])}
        self._shares: dict[str, float] = {}
        requests = layout.requests()
        self._requests = requests if layout.is_evident(requests) else None
        self._from_files(layout)
        if layout.slate is not None:
            self._from_slate()
        self._from_columns()
        if not self._shares and not self.labels:
            self._from_anything()
        self._choose()

    def _from_files(self, layout: Layout) -> None:
        """A label for each action in the files of engagements."""
        found: defaultdict[str, list[_Done]] = defaultdict(list)
        for events in layout.engagements:
            delays, actions, amount = _delays(layout, events), events.actions, events.amount
            for action in dict.fromkeys(each for each in actions if each):
                of_action = actions == action
                values = amount.row_numbers[of_action] if amount is not None else np.empty(0)
                name = amount.name if amount is not None else ""
                found[action].append(_Done(int(of_action.sum()), delays[of_action], name, values[values > 0]))
        for action, done in sorted(found.items(), key=lambda each: -sum(of_file.rows for of_file in each[1])):
            count = sum(of_file.rows for of_file in done)
            delays = np.concatenate([of_file.delays for of_file in done])
            label = {"action": action, "window": _window(delays[delays >= 0])}
            name = self._add_label(action, label, count / layout.impressions.height, f"{count:,} in the rows looked at")
            values = np.concatenate([of_file.values for of_file in done])
            if len(np.unique(values)) > 2 and not names(action, SHOWN):
                amount_name = next(of_file.amount for of_file in done if of_file.amount)
                self._add_value(f"{name}_{amount_name}", action, values, label["window"])

    def _from_slate(self) -> None:
        """The items that were clicked of those shown."""
        slate = self._layout.slate
        assert slate is not None
        if slate.is_flag:
            return  # a column of 0 and 1, once each item has a row
        self.used.add(slate.clicked)
        when = {"column": slate.clicked, "contains": slate.shown, **({"split": slate.split} if slate.split else {})}
        self._add_action("click", {"when": when, "delay": _GUESSED_DELAY}, _NO_DELAY)
        self._add_label("click", {"action": "click", "window": "10m"}, 1.0, "")

    def _from_columns(self) -> None:
        """Columns of 0 and 1, ratings, columns that name an action, and how long somebody stayed."""
        table = self._layout.impressions
        stay = next((each for each in self._columns.values() if self._is_stay(each)), None)
        if table.action is not None and table.action.name not in self._keys:
            self._from_action_column(table.action)
        for column in self._columns.values():
            if column.name in self._keys or column.name in self.used:
                continue
            if is_flag(column) and names(column.name, ACTIONS):
                self._from_flag(column, stay)
            elif (
                column.kind in ("integers", "numbers")
                and names(column.name, RATINGS)
                and column.distinct <= _MOST_STARS
            ):
                self._from_rating(column)
        for column in self._columns.values():
            is_outcome = self._is_duration(column)
            is_seldom = names(column.name, ACTIONS | STAYS) and column.missing > _SELDOM  # such as the id of a purchase
            if is_outcome or is_seldom or (names(column.name, DELAYS) and column.kind in _NUMBERS):
                self.used.add(column.name)
        if stay is not None:
            unit = _unit(stay)
            delay = {"column": stay.name, "unit": unit}
            given = "stay" if "play" not in words(stay.name) else "play"
            why = (
                "unsure: how long somebody stayed with what was shown, by its name"
                if not names(stay.name, _LOOKS)
                else ""
            )
            name = self._add_action(given, {"value": stay.name, "delay": delay}, why)
            window = _window(_in_ms(stay.numbers, unit))
            self._add_value(stay.name, name, stay.numbers[stay.numbers > 0], window)

    def _is_stay(self, column: Column) -> bool:
        """Whether a column says how long somebody stayed with what was shown, for every impression."""
        return (
            self._is_duration(column)
            and column.missing == 0
            and _are_delays(column.numbers, _unit(column))
            and not _side_visits(column)
        )

    def _is_duration(self, column: Column) -> bool:
        """Whether a column says how long something lasted that came of an impression: what is the same in all rows of each request,
        as the nights of a search for hotels are, was known before."""
        is_named = names(column.name, STAYS) and names(column.name, DURATIONS) and column.kind in _NUMBERS
        return is_named and (self._requests is None or not is_same_within(self._requests, column))

    def _from_flag(self, column: Column, stay: Column | None) -> None:
        plain = " ".join(word for word in words(column.name) if word not in ("is", "has", "was", "did"))
        self.used.add(column.name)
        delay = self._delay_of(column)
        label: dict[str, Any] = {"window": "10m"}
        given: dict[str, str] | str | None
        why = ""
        if delay is not None:
            given, ms = delay
            label["window"] = _window(ms)
        elif stay is not None and "click" not in plain:
            given = {"column": stay.name, "unit": _unit(stay)}
            label = {"window": _window(_in_ms(stay.numbers, _unit(stay)))}
        elif stay is not None:
            given, why = None, "taken to come at once, before the stay"
            label = {"window": _window(_in_ms(stay.numbers, _unit(stay)))}
        else:
            given, why = _GUESSED_DELAY, _NO_DELAY
        action = self._add_action(plain, {"when": column.name, **({} if given is None else {"delay": given})}, why)
        share = float(column.numbers.mean()) if len(column.numbers) else 0.0
        if stay is not None and delay is None:
            label = {"decided_by": "play" if "play" in words(stay.name) else "stay", **label}
        self._add_label(plain, {"action": action, **label}, share, f"{share:.2%} positive")

    def _delay_of(self, column: Column) -> tuple[dict[str, str], Ids] | None:
        """The column that says how long after the serving an action came, which all that happened have."""
        happened = column.row_numbers != 0
        for other in self._columns.values():
            if names(other.name, DELAYS) and other.kind in _NUMBERS and _are_of_one_action(other.name, column.name):
                delays = other.row_numbers[happened]
                unit = _unit(other)
                if len(delays) and not np.isnan(delays).any() and _are_delays(delays, unit):
                    return {"column": other.name, "unit": unit}, _in_ms(delays, unit)
        return None

    def _from_rating(self, column: Column) -> None:
        """A rating is positive from four fifths of the best on."""
        self.used.add(column.name)
        action = self._add_action("rate", {"value": column.name, "delay": _GUESSED_DELAY}, _NO_DELAY)
        least = round(0.8 * float(column.numbers.max()), 2)
        share = float((column.numbers >= least).mean())
        label = {
            "action": action,
            "min_value": least if least % 1 else int(least),
            "decided_by": action,
            "window": "10m",
        }
        said = f"{column.name} is {column.numbers.min():g} to {column.numbers.max():g}; {share:.0%} positive"
        self._add_label("like", label, share, said)
        self.labels.append(
            Line(free_name("stars", self._names()), {"action": action, "window": "10m", "loss": "squared"}, "", True)
        )

    def _from_action_column(self, column: Column) -> None:
        """Rows that each say what was done."""
        self.used.add(column.name)
        for action, count in sorted(_counts(column).items(), key=lambda each: -each[1]):
            if not names(action, SHOWN):
                when = {"column": column.name, "equals": action}
                name = self._add_action(action, {"when": when, "delay": _GUESSED_DELAY}, _NO_DELAY)
                share = count / max(1, self._layout.impressions.height)
                self._add_label(action, {"action": name, "window": "10m"}, share, f"{share:.2%} positive")

    def _from_anything(self) -> None:
        """Nothing is called like an action: any column of 0 and 1 may be one; else the reader has to name a column."""
        for column in self._columns.values():
            if is_flag(column) and column.name not in self._keys and column.name not in self.used:
                self._from_flag(column, None)
        if not self._shares:
            why = "choose: no column looks like an action; `when` names one of 0 and 1, or {column, equals}"
            self.actions.append(Line("chosen", {"when": NAME_A_COLUMN, "delay": _GUESSED_DELAY}, why))
            self.labels.append(Line("chosen", {"action": "chosen", "window": "10m"}))

    def _names(self) -> list[str]:
        return [line.name for line in self.labels]

    def _add_action(self, name: str, value: dict[str, Any], why: str = "") -> str:
        found = free_name(name, [line.name for line in self.actions])
        self.actions.append(Line(found, value, why))
        return found

    def _add_label(self, name: str, value: dict[str, Any], share: float, why: str) -> str:
        found = free_name(name, self._names())
        self.labels.append(Line(found, value, why))
        self._shares[found] = 0.0 if names(name, UNWANTED) or set(words(name)) <= SHOWN else share
        return found

    def _add_value(self, name: str, action: str, values: Numbers, window: str) -> None:
        """A label of a value, as an alternative."""
        if len(values):
            scale = 10.0 ** np.floor(np.log10(np.median(values)))
            scaled = {"scale": int(scale) if scale >= 1 else float(scale)} if scale != 1 else {}
            bound = float(bound_of(values)[1])
            value = {"action": action, "window": window, "loss": "tweedie", **scaled}
            value |= {"max_value": int(bound) if bound.is_integer() else bound, "weight": 0.1}
            self.labels.append(Line(free_name(name, self._names()), value, "", True))

    def _choose(self) -> None:
        """Leave the labels with the most positives, and make the others alternatives; all if none is frequent."""
        ranked = sorted(self._shares, key=lambda name: -self._shares[name])
        kept = [name for name in ranked if self._shares[name] >= _RARE][:_MOST_LABELS] or ranked[:1]
        kept = kept or [self.labels[0].name]
        ordered = sorted(self.labels, key=lambda line: line.name not in kept)
        self.labels = [line._replace(out=line.name not in kept) for line in ordered]


_NUMBERS = ("integers", "numbers")
_LOOKS = STAYS - {"stay", "spent"}
"""Of stays, those with what was shown: nobody plays or watches a hotel."""
_NO_DELAY = "unsure: no column says how long after the serving it came"


def _side_visits(column: Column) -> bool:
    """Whether a stay is one elsewhere, as on profiles and in comments."""
    return not {"profile", "comment"}.isdisjoint(words(column.name))


def _are_of_one_action(delay: str, column: str) -> bool:
    """Whether a delay is that of an action: ``click_delay`` of ``clicked``, and ``delay`` of all."""
    own = [word for word in words(delay) if word in ACTIONS]
    return not own or any(word.startswith(mine) for mine in own for word in words(column))


def is_flag(column: Column) -> bool:
    """Whether a column holds 0 and 1, both of them."""
    return column.kind == "integers" and not is_id(column.name) and set(np.unique(column.numbers).tolist()) == {0, 1}


def _unit(column: Column) -> Unit:
    """The unit of a duration: by its name, else by its size."""
    named = next((_UNITS[word] for word in words(column.name) if word in _UNITS), None)
    return named or ("ms" if float(np.median(column.numbers)) > _LONG_MS else "s")


def _are_delays(values: Numbers, unit: Unit) -> bool:
    """Whether numbers are times from a serving to what came of it, which no window of more than 90 days waits for."""
    ms = _in_ms(values, unit)
    return bool(ms.min() >= 0 and ms.max() <= MAX_WINDOW_MS)


def _in_ms(values: Numbers, unit: Unit) -> Ids:
    return np.asarray(to_ms(pa.array(values), unit).drop_null().to_numpy(), np.int64)


def _counts(column: Column) -> dict[str, int]:
    counted = column.present.value_counts()
    return {str(each["values"]): int(each["counts"]) for each in counted.to_pylist() if str(each["values"])}


def _window(delays: Ids) -> str:
    """The first of some round times that nearly all delays stay below."""
    most = float(np.quantile(delays, 0.99)) if len(delays) else 0.0
    return format_duration(next((each for each in _WINDOWS if each > most), _WINDOWS[-1]))


def _delays(layout: Layout, events: Engagements) -> Ids:
    """How long after its impression each event came, in ms; -1 for those whose impression is not among the rows looked at."""
    own, other = layout.impressions.columns, events.table.columns
    count = layout.impressions.height
    code: Ids = np.zeros(count + events.table.height, np.int64)
    for name in (*events.request, *events.impression):
        one, two = own[name].ids, other[name].ids
        assert one is not None and two is not None
        code = grouped(code, np.concatenate((one, two)))
    served = np.full(int(code.max()) + 1, -1, np.int64)
    served[code[:count]] = np.asarray(layout.time.at.fill_null(-1).to_numpy(zero_copy_only=False))
    at = np.asarray(events.time.at.fill_null(-1).to_numpy(zero_copy_only=False))
    of_event = served[code[count:]]
    return np.where((of_event >= 0) & (at >= of_event), at - of_event, -1)
