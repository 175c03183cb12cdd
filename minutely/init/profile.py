"""What the first rows say of a column: numbers, ids, texts, times or lists, how many of them differ, and how they spread."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from minutely.logs.advice import MARKERS
from streaming.features.arrow_columns import as_numbers, have_decimal_comma
from streaming.features.columns import Ids
from streaming.features.ids import MISSING, as_ids

Kind = Literal["integers", "numbers", "texts", "times", "lists", "nothing", "other"]
Numbers = npt.NDArray[np.float64]
_SEPARATORS = (",", "|", ";", " ")
_SEPARATED = 0.01
"""The share of texts with a separator in them from which on they may be lists."""
_ITEM = r"^[\w.:+#@/-]+$"
_FEW = 0.5
"""Items of lists come again: at most this share of them differ."""
_LONGEST_CELL = 10_000
_NUMBERS = 10
"""Different numbers from which on the one text among them is none of several kinds."""


class Column:
    """A column's first rows."""

    def __init__(self, name: str, values: pa.Array, decimal: str = ".") -> None:
        self.name = name
        self.values = values
        self._decimal = decimal

    @cached_property
    def kind(self) -> Kind:
        """What its values are; texts that are numbers count as such."""
        kind = self.values.type
        if self.missing == 1:
            return "nothing"
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return "times"
        if pa.types.is_list(kind):
            return "lists"
        if self._numbers is not None and not len(self.numbers):
            return "nothing"
        if self._numbers is None:
            return "texts" if pa.types.is_string(kind) else "other"
        found = self.numbers
        return "integers" if bool((found == np.floor(found)).all()) and self.ids is not None else "numbers"

    @property
    def is_text(self) -> bool:
        """Whether its values are texts in the file, whatever they spell."""
        return bool(pa.types.is_string(self.values.type))

    @cached_property
    def missing(self) -> float:
        """The share of rows without a value."""
        return 1 - len(self.present) / max(1, len(self.values))

    @cached_property
    def present(self) -> pa.Array:
        """The values that are there."""
        kept = pc.invert(self.values.is_null(nan_is_null=True))
        return self.values.filter(kept)

    @cached_property
    def _numbers(self) -> pa.Array | None:
        try:
            found, broken = as_numbers(self.values, self._decimal)
        except TypeError:
            return None
        return None if broken is not None and pc.any(broken).as_py() else found

    @cached_property
    def numbers(self) -> Numbers:
        """Those of its values that are there, as float64; none where they are no numbers."""
        found = pa.array([], pa.float64()) if self._numbers is None else self._numbers.drop_null()
        return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)

    @cached_property
    def row_numbers(self) -> Numbers:
        """A number a row, NaN where missing."""
        found = pa.nulls(len(self.values), pa.float64()) if self._numbers is None else self._numbers
        return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)

    @cached_property
    def ids(self) -> Ids | None:
        """An id a row; None where values have none, as numbers with fractions do."""
        values = self.values
        if pa.types.is_temporal(values.type):
            values = values.cast(pa.string())
        try:
            found, broken = as_ids(values)
        except (TypeError, pa.ArrowException):
            return None
        return None if broken is not None and pc.any(broken).as_py() else found

    @cached_property
    def distinct(self) -> int:
        """How many different values there are; of lists, how many different items."""
        values = self.items if self.kind == "lists" else self.present
        return len(values.unique()) if not pa.types.is_nested(values.type) else 0

    @property
    def is_unique(self) -> bool:
        """Whether each row has a value of its own."""
        return self.missing == 0 and len(self.values) > 1 and self.distinct == len(self.values)

    @cached_property
    def items(self) -> pa.Array:
        """The items of its lists, one after the other."""
        return self.present.flatten().drop_null() if pa.types.is_list(self.values.type) else self.present

    @cached_property
    def separator(self) -> str | None:
        """What separates the items of texts that are lists of ids; None where they are single values."""
        if self.kind != "texts" or pc.max(pc.utf8_length(self.present)).as_py() > _LONGEST_CELL:
            return None
        return next((each for each in _SEPARATORS if self._is_separated_by(each)), None)

    def _is_separated_by(self, separator: str) -> bool:
        has = pc.match_substring(self.present, separator)
        if pc.mean(has).as_py() < _SEPARATED:
            return False
        items = pc.split_pattern(self.present, separator).flatten()
        distinct = items.unique()
        are_ids = pc.all(pc.match_substring_regex(distinct, _ITEM)).as_py()
        if separator == " ":  # words of a text are no ids
            are_ids = are_ids and pc.all(pc.match_substring_regex(distinct, r"\d")).as_py()
        return bool(are_ids) and len(distinct) <= _FEW * len(items)

    def as_lists(self, separator: str | None) -> Column:
        """The column with its texts taken apart."""
        return self if separator is None else Column(self.name, pc.split_pattern(self.values, separator))


def has_decimal_comma(table: pa.Table) -> bool:
    """Whether a column of texts holds numbers whose fractions begin with a comma."""
    for column in table.columns:
        if pa.types.is_string(column.type) and len(column.drop_null()):
            is_number = have_decimal_comma(column.drop_null())
            others = column.drop_null().filter(pc.invert(is_number))
            if (
                pc.any(is_number).as_py()
                and pc.all(pc.match_substring_regex(others, r"^\s*[+-]?\d+\s*$")).as_py() is not False
            ):
                return True
    return False


def texts_for_missing(table: pa.Table) -> dict[str, str]:
    """Texts that stand for what is missing, each with a column that has it: what databases write, and, among numbers, the one text
    that comes again."""
    found: dict[str, str] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if not pa.types.is_string(column.type) or not len(column.drop_null()):
            continue
        counted = column.drop_null().value_counts()
        values, is_again = counted.field("values"), pc.greater(counted.field("counts"), 1)
        strange = pc.and_(*(as_numbers(values, decimal)[1] or pa.repeat(False, len(values)) for decimal in (".", ",")))
        texts = values.filter(pc.and_(strange, is_again)).to_pylist()
        others = [text for text in values.filter(strange).to_pylist() if text not in MARKERS]
        numbers = len(values) - int(pc.sum(strange).as_py())
        for text in texts:
            if text in MARKERS or (others == [text] and numbers >= _NUMBERS):
                found.setdefault(text, name)
    return found


def overlap(column: Column, other: Column) -> float:
    """The share of a column's ids, row by row, that are among those of another."""
    if column.ids is None or other.ids is None:
        return 0.0
    own = column.ids[column.ids != MISSING]
    return float(np.isin(own, other.ids).mean()) if len(own) else 0.0
