"""Which columns are times: the unit of numbers by the dates that they would be, and how texts are written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minutely.init.profile import Column
from minutely.init.words import ACTIONS, DELAYS, IDS, PAST, TIMES, names, words
from streaming.features.columns import Ids
from streaming.features.kinds import Unit
from streaming.source.rows.time_bounds import TimeBounds
from streaming.source.rows.times import read_times
from streaming.source.settings import SourceSettings, TimeColumn

UNITS: tuple[Unit, ...] = get_args(Unit)
_NEARLY_ALL = 0.99
_DAY_MS = 86_400_000
_FORMATS = (
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y%m%d%H%M%S",
    "%Y%m%d %H:%M:%S",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
    "%Y/%m/%d",
    "%Y%m%d",
)
_BEST = ("timestamp", "time", "ts", "event_time", "served_at", "impression_time", "request_time", "datetime", "time_ms")


class TimeGuess(NamedTuple):
    """A column of times as a config reads it, the times (ms since 1970, null where missing), and what is unsure about it."""

    setting: TimeColumn
    at: pa.Array
    unsure: str

    @property
    def name(self) -> str:
        """The column's name."""
        return self.setting.column

    @property
    def ms(self) -> Ids:
        """The times that are there."""
        return np.asarray(self.at.drop_null().to_numpy(zero_copy_only=False), np.int64)

    @property
    def is_of_days(self) -> bool:
        """Whether it holds days rather than times of the day."""
        return bool((self.ms % _DAY_MS == 0).all())

    @property
    def span(self) -> str:
        """From when to when, in UTC."""
        first, last = (datetime.fromtimestamp(int(at) / 1000, UTC) for at in (self.ms.min(), self.ms.max()))
        return f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"

    def section(self) -> dict[str, str]:
        """The guess as a config has it: a unit where the values are numbers."""
        return {key: value for key, value in self.setting.model_dump().items() if key in self.setting.model_fields_set}


def time_of(column: Column, now_ms: int) -> TimeGuess | None:
    """Return what a column's times are, None where it has none. ``now_ms`` is the wall clock's time: events lie before tomorrow."""
    if column.kind == "times":
        return _within(column, TimeColumn(column=column.name), now_ms)
    if column.kind in ("integers", "numbers"):
        return _by_unit(column, now_ms) or (_by_format(column, now_ms) if column.is_text else None)
    if column.kind != "texts":
        return None
    return _within(column, TimeColumn(column=column.name), now_ms) or _by_format(column, now_ms)


def _by_unit(column: Column, now_ms: int) -> TimeGuess | None:
    """Times as numbers. A number without a name that says so may be anything else; ids are never times."""
    if names(column.name, IDS) or column.distinct < 2:
        return None
    for unit in UNITS:
        guess = _within(column, TimeColumn(column=column.name, unit=unit), now_ms)
        if guess is not None:
            return guess if names(column.name, TIMES | PAST) else guess._replace(unsure="a time by its values alone")
    return None


def _by_format(column: Column, now_ms: int) -> TimeGuess | None:
    """Times as texts; where more than one way to write them fits, the others are said."""
    fitting = [each for each in _FORMATS if _within(column, TimeColumn(column=column.name, format=each), now_ms)]
    if not fitting:
        return None
    guess = _within(column, TimeColumn(column=column.name, format=fitting[0]), now_ms)
    others = " or ".join(repr(each) for each in fitting[1:] if len(each) == len(fitting[0]))
    assert guess is not None
    return guess._replace(unsure=f"{others} fits too") if others else guess


def _within(column: Column, setting: TimeColumn, now_ms: int) -> TimeGuess | None:
    """The guess, if nearly all values are times that events may have."""
    bounds = TimeBounds.of(SourceSettings.model_construct(), now_ms)  # those of a config that does not say
    try:
        at, _ = read_times(column.values, setting)
    except (TypeError, pa.ArrowException):
        return None
    good = pc.and_(pc.greater_equal(at, bounds.earliest), pc.less_equal(at, bounds.latest)).fill_null(False)
    if not len(column.present) or pc.sum(good).as_py() < _NEARLY_ALL * len(column.present):
        return None
    return TimeGuess(setting, at, "")


def of_serving(times: Sequence[TimeGuess]) -> list[TimeGuess]:
    """Return times in the order in which they are likely to be that of the serving, the likeliest first."""

    def rank(guess: TimeGuess) -> tuple[bool, bool, bool, bool, int, int]:
        name = "_".join(words(guess.name))
        return (
            names(guess.name, PAST),
            names(guess.name, ACTIONS | DELAYS),
            guess.is_of_days,
            bool(guess.unsure),
            _BEST.index(name) if name in _BEST else len(_BEST),
            -len(np.unique(guess.ms)),
        )

    return sorted(times, key=rank)
