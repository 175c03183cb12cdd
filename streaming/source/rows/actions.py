"""Actions that columns of the impression record: on which impressions each happened, when, and with which value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, Problems
from streaming.features.arrow_columns import lists_of, split_texts, to_ms
from streaming.features.columns import Ids
from streaming.features.ids import IDS_ALLOWED, MISSING, NO_ID
from streaming.features.kinds import NUMBERS_ALLOWED
from streaming.records.events import fits_float32
from streaming.source.logged_events import Bools
from streaming.source.rows.raw import equal, key_ids, numbers
from streaming.source.rows.rows import Rows
from streaming.source.settings import Action, DelayColumn, WhenContains, WhenEquals


def columns_of(action: Action) -> list[str]:
    """Return the impressions' columns that an action is made from."""
    when = action.when
    found = [when] if isinstance(when, str) else []
    if isinstance(when, WhenEquals | WhenContains):
        found = [when.column]
    if isinstance(when, WhenContains):
        found.append(when.contains)
    if action.value is not None:
        found.append(action.value)
    if isinstance(action.delay, DelayColumn):
        found.append(action.delay.column)
    return found


def happened_on(rows: Rows, action: Action) -> tuple[Bools, Ids, npt.NDArray[np.float64]]:
    """Return on which impressions an action happened, after how long (ms), and with which value."""
    count = rows.table.num_rows
    happened = np.ones(count, np.bool_) if action.when is None else _when(rows, action.when)
    values = np.ones(count)
    delays = np.zeros(count, np.int64)
    if action.value is not None:
        found = numbers(rows, action.value)
        happened &= np.asarray(found.is_valid().to_numpy(zero_copy_only=False))
        values = plain_numbers(found)
        happened = usable_values(rows, action.value, values, happened)
    if isinstance(action.delay, DelayColumn):
        happened, delays = _delays(rows, action.delay, happened)
    else:
        delays[:] = action.delay
    return happened, delays, values


def usable_values(rows: Rows, column: str, values: npt.NDArray[np.float64], given: Bools) -> Bools:
    """Return which of the ``given`` values an engagement may have; the others are rejected."""
    usable = given & fits_float32(values)
    rows.reject(pa.array(given & ~usable), column, rows.column(column), "malformed", NUMBERS_ALLOWED)
    return usable


def plain_numbers(values: pa.Array) -> npt.NDArray[np.float64]:
    """Return numbers as float64 [n], 0 where missing."""
    return np.asarray(values.fill_null(0).to_numpy(zero_copy_only=False), np.float64)


def _when(rows: Rows, when: str | WhenEquals | WhenContains) -> Bools:
    """Return the rows for which a condition holds."""
    if isinstance(when, str):
        is_true: Bools = plain_numbers(numbers(rows, when)) != 0
        return is_true
    if isinstance(when, WhenEquals):
        return equal(rows, when)
    values = rows.column(when.column)
    try:
        lists, broken = lists_of(values if when.split is None else split_texts(values.cast(pa.string()), when.split))
    except (TypeError, pa.ArrowException) as error:
        allowed = "allowed: lists, or texts with split"
        raise Problems([Problem(rows.name, f"column {when.column}", str(error), allowed)]) from None
    rows.reject_broken(broken, when.column, values, NO_ID, IDS_ALLOWED)
    owner = np.repeat(np.arange(len(values)), np.diff(lists.offsets))
    is_there = np.zeros(len(values), np.bool_)
    is_there[owner[(lists.values == key_ids(rows, when.contains)[owner]) & (lists.values != MISSING)]] = True
    return is_there


def _delays(rows: Rows, delay: DelayColumn, happened: Bools) -> tuple[Bools, Ids]:
    """Return which actions have a delay, and it in ms. An action without one is refused: nobody knows when it happened."""
    raw, found = rows.column(delay.column), to_ms(numbers(rows, delay.column), delay.unit)
    missing = pc.and_(pa.array(happened), raw.is_null(nan_is_null=True))
    negative = pc.less(found, 0).fill_null(False)
    rows.reject(missing, delay.column, raw, "malformed", "an action without its delay")
    rows.reject(negative, delay.column, raw, "malformed", "a negative delay")
    usable = pc.and_not(found.is_valid(), negative)
    happened = happened & np.asarray(usable.to_numpy(zero_copy_only=False))
    return happened, np.asarray(found.fill_null(0).to_numpy(zero_copy_only=False), np.int64)
