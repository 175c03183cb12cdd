"""The ``source`` section: how logged files become requests and engagements."""

from __future__ import annotations

import codecs
from collections import Counter
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from basis.settings import Day, DurationMs, Section, parse_size
from streaming.features.kinds import Name, Unit
from streaming.records.labels import Action as ActionName

Texts = Annotated[list[str], Field(min_length=1)]


def _known_encoding(name: str) -> str:
    try:
        codecs.lookup(name)
        "".encode(name)
    except LookupError:
        raise ValueError(
            "no encoding of texts; allowed: utf-8, latin-1, utf-16, cp1252 and others that Python knows"
        ) from None
    return name


Encoding = Annotated[str, AfterValidator(_known_encoding)]


def _as_texts(value: Any) -> Any:
    """One value or several, as the texts by which they are compared."""
    values = value if isinstance(value, list) else [value]
    return [
        str(each).lower() if isinstance(each, bool) else str(each) if isinstance(each, int) else each for each in values
    ]


def _markers(value: Any) -> Any:
    """One text or several. An unquoted NULL is none in YAML."""
    found = value if isinstance(value, list) else [value]
    if None in found:
        raise ValueError('null is no text in YAML; allowed: texts in quotes, such as ["NULL"]')
    return found


class WhenEquals(Section):
    """Where a column has one of some values."""

    column: str
    equals: Annotated[Texts, BeforeValidator(_as_texts)]


class File(Section):
    """Rows in the source's folder: Parquet, CSV or JSON lines, by the ending unless ``format`` is set; also compressed, as
    ``.gz`` or ``.zst``."""

    file: str
    """A file, a pattern such as ``day=*/part-*.parquet``, or a folder, of which all files are read but those that begin with
    ``.`` or ``_``. Folders such as ``day=2024-01-31`` are a column."""
    format: Literal["parquet", "csv", "jsonl"] | None = None
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    decimal: Literal[".", ","] = "."
    """What separates the fraction of a number that is a text."""
    columns: Texts | None = None
    """The names of a CSV file's columns, where it has no header line."""
    encoding: Encoding | None = None
    """A CSV file's encoding, such as ``latin-1`` or ``utf-16``; UTF-8 by default."""
    missing: Annotated[Texts, BeforeValidator(_markers)] = []
    """Texts that mean that a value is missing, such as ``NULL``."""
    when: WhenEquals | None = None
    """Which rows are read, such as the impressions among events of all kinds; by default all."""


class TimeColumn(Section):
    """A column of times: numbers since 1970 in ``unit``, timestamps, or texts: ISO 8601, or as ``format`` says."""

    column: str
    unit: Unit = "ms"
    format: str | None = None
    """How they are written, in the codes of ``strptime``, such as ``%m/%d/%Y %I:%M:%S %p``."""


class EachItem(Section):
    """What an item holds that is a text of several values, such as ``N1-0``: their columns, and what separates them."""

    split: Annotated[str, Field(min_length=1)]
    columns: Annotated[list[str], Field(min_length=2)]

    @model_validator(mode="after")
    def _each_once(self) -> EachItem:
        twice = [column for column, count in Counter(self.columns).items() if count > 1]
        if twice:
            raise ValueError(f"columns: {twice[0]} is given twice; allowed: once")
        return self


class Explode(Section):
    """Columns of lists that have an item for each impression of their row; ``split`` separates items in texts."""

    columns: Texts
    split: Annotated[str, Field(min_length=1)] | None = None
    each: EachItem | None = None

    @property
    def made(self) -> list[str]:
        """The columns that items have values of their own in."""
        return self.columns if self.each is None else [*self.columns, *self.each.columns]

    @model_validator(mode="after")
    def _of_one_column(self) -> Explode:
        if self.each is not None and len(self.columns) > 1:
            raise ValueError(f"each: of {len(self.columns)} columns; allowed: one, whose items hold all values")
        return self


def _explode_columns(value: Any) -> Any:
    return {"columns": value} if isinstance(value, list) else value


class ImpressionFile(File):
    """The file with one row per impression, or per request with ``explode``."""

    time: TimeColumn
    explode: Annotated[Explode, BeforeValidator(_explode_columns)] | None = None
    request: Texts | None = None
    """Columns whose values together name the request; by default, every row of the file is a request of its own."""
    impression: Texts | None = None
    """Columns whose values name the impression within its request, for engagements in a file of their own."""


def _text_keys(value: Any) -> Any:
    """Keys as the texts by which they are compared."""
    return {_as_texts(key)[0]: name for key, name in value.items()} if isinstance(value, dict) else value


class ActionColumn(Section):
    """The column that names the action, and what some of its values are called in the config; the others keep their names."""

    column: str
    names: Annotated[dict[str, ActionName], BeforeValidator(_text_keys)]


class OneAction(Section):
    """What every row of a file is."""

    name: ActionName


def _action_kind(value: Any) -> str:
    if isinstance(value, str):
        return "column"
    return (
        "one action"
        if isinstance(value, OneAction) or (isinstance(value, dict) and "name" in value)
        else "named values"
    )


ActionOf = Annotated[
    Annotated[str, Tag("column")]
    | Annotated[ActionColumn, Tag("named values")]
    | Annotated[OneAction, Tag("one action")],
    Discriminator(_action_kind),
]


class EngagementFile(File):
    """A file with one row per engagement, matched to impressions by equal request and impression values."""

    time: TimeColumn
    request: Texts
    impression: Texts
    action: ActionOf
    """The column that names the action; ``{column, names}`` to call its values otherwise; or ``{name}`` where each row is one."""
    value: str | None = None


class DelayColumn(Section):
    """A column with the time from the serving to the action."""

    column: str
    unit: Unit = "ms"


def _delay_kind(value: Any) -> str:
    return "column" if isinstance(value, dict | DelayColumn) else "constant"


Delay = Annotated[
    Annotated[DurationMs, Tag("constant")] | Annotated[DelayColumn, Tag("column")], Discriminator(_delay_kind)
]


class WhenContains(Section):
    """Where a column's list contains what another column has; ``split`` separates a text's items."""

    column: str
    contains: str
    split: Annotated[str, Field(min_length=1)] | None = None


def _when_kind(value: Any) -> str:
    if isinstance(value, str):
        return "column"
    is_contains = "contains" in value if isinstance(value, dict) else isinstance(value, WhenContains)
    return "contains" if is_contains else "equals"


When = Annotated[
    Annotated[str, Tag("column")] | Annotated[WhenEquals, Tag("equals")] | Annotated[WhenContains, Tag("contains")],
    Discriminator(_when_kind),
]


class Action(Section):
    """An action that columns of the impression record."""

    when: When | None = None
    """The action happened where this column is true or not 0, or equals or contains a value; by default, on every impression."""
    value: str | None = None
    delay: Delay = 0


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


KeyColumns = Annotated[
    Texts,
    BeforeValidator(_as_list),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""A column, or several whose values together are the key."""


class SideFile(File):
    """A file with data about users or items, joined by key."""

    key: KeyColumns
    on: KeyColumns | None = None
    """The impressions' columns that hold the key, in its order; by default, those of the same names."""

    @model_validator(mode="after")
    def _as_many(self) -> SideFile:
        if len(self.on_columns) != len(self.key):
            raise ValueError(f"on: {len(self.on_columns)} columns; allowed: {len(self.key)}, one for each of key")
        return self

    @property
    def on_columns(self) -> list[str]:
        """The impressions' columns that hold the key."""
        return self.on or self.key


Item = TypeVar("Item")


def _how_many(value: Any) -> str:
    return "several sources" if isinstance(value, list) else "one source"


Several = Annotated[
    Annotated[Item, Tag("one source")] | Annotated[list[Item], Field(min_length=1), Tag("several sources")],
    Discriminator(_how_many),
]
"""One, or a list of them."""


_LEAST_MEMORY, _MOST_MEMORY = 512_000_000, 1 << 50


def parse_memory(value: Any) -> int:
    """Return the bytes of a size that the logs may have, such as ``2GB``; ``ValueError`` when it is none, or too small."""
    size = parse_size(value)
    if not _LEAST_MEMORY <= size <= _MOST_MEMORY:
        raise ValueError("allowed: a size of at least 512MB, such as 2GB")
    return size


class SourceSettings(Section):
    """The ``source`` section."""

    dataset: Literal["movielens-100k"] | None = None
    """A public data set that is fetched if no folder has it."""
    dir: str | None = None
    """The folder of the files, or the address of one in an object store. ``--data`` takes precedence; ${NAME} stands for an
    environment variable."""
    earliest: Day = date(1990, 1, 1)
    """The first day (UTC) that events may have. Earlier events are refused: most often their unit is wrong."""
    latest: Day | None = None
    """The last day (UTC) that events may have; tomorrow by default."""
    memory: Annotated[int, BeforeValidator(parse_memory)] | None = None
    """How much of the logs is sorted in memory, such as ``2GB``; the rest is on disk. By default a quarter of the machine's.
    ``--memory`` takes precedence."""
    impressions: Several[ImpressionFile]
    sides: dict[Name, SideFile] = {}
    actions: dict[ActionName, Action] = {}
    engagements: Several[EngagementFile] | None = None

    @property
    def impression_files(self) -> list[ImpressionFile]:
        """Where impressions are."""
        return self.impressions if isinstance(self.impressions, list) else [self.impressions]

    @property
    def engagement_files(self) -> list[EngagementFile]:
        """Where engagements are that have files of their own."""
        found = self.engagements or []
        return found if isinstance(found, list) else [found]

    @property
    def earliest_ms(self) -> int:
        """The earliest time that events may have (ms since 1970), wherever they come from."""
        return round(datetime.combine(self.earliest, time(), UTC).timestamp() * 1000)

    @model_validator(mode="after")
    def _consistent(self) -> SourceSettings:
        if self.dataset is None and self.dir is None:
            raise ValueError("needs dir (the folder of the files) or dataset")
        if not self.actions and self.engagements is None:
            raise ValueError("needs actions or engagements: labels come from them")
        files = self.impression_files
        if self.engagements is not None and not all(file.request and file.impression for file in files):
            raise ValueError("engagements in a file need impressions.request and impressions.impression to match by")
        if len(files) > 1 and not all(file.request for file in files):
            raise ValueError("impressions of several sources need request in each, which names a request among all")
        return self
