"""The ``live`` section of a config: what the loop keeps, by which key, and the numbers that features may be made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from basis.settings import DurationMs, PositiveDurationMs, Section, format_duration
from streaming.features.kinds import Name
from streaming.records.labels import Action

SERVED, FIRST = "served", "first"
AGE, ACTION = "age", "action"
HALF_LIVES_KEPT = 16
"""A key at which nothing happened for so many of its longest half-lives is forgotten: 0.0015 % of an event are left by then."""


def _no_number_of_ours(action: str) -> str:
    if action in (SERVED, FIRST):
        raise ValueError(f"allowed: actions by other names than {SERVED} and {FIRST}, which are numbers of their own")
    return action


def _each_once(half_lives: list[int]) -> list[int]:
    for at, each in enumerate(half_lives):
        if each in half_lives[:at]:
            raise ValueError(f"{format_duration(each)} is given twice; allowed: once")
    return half_lives


HalfLives: TypeAlias = Annotated[
    list[PositiveDurationMs], Field(min_length=1, max_length=8), AfterValidator(_each_once)
]
Key: TypeAlias = Annotated[list[Name], Field(min_length=1, max_length=8)]
"""Sparse features of one id each; impressions with the same ids have the same key."""
CountedAction: TypeAlias = Annotated[Action, AfterValidator(_no_number_of_ours)]
Actions: TypeAlias = Annotated[list[CountedAction], Field(max_length=16)]


class Rates(Section):
    """How often actions follow on servings, by key, counted with half-lives: log(1 + servings) for each half-life, and for each of
    its actions the log odds of (actions + prior * share) / (servings + prior), where share is that of all servings so far."""

    key: Key
    of: Annotated[list[CountedAction], Field(min_length=1, max_length=16)]
    half_life: HalfLives
    over: Literal["served"] = "served"
    prior: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    """How many servings at the common rate a key begins with."""

    def numbers(self) -> list[str]:
        """Return the names of the numbers, in their order."""
        return [
            f"{what}.{format_duration(each)}" for each in self.half_life for what in (SERVED, *dict.fromkeys(self.of))
        ]


class Age(Section):
    """How long ago a key was first served, last served, and last had each action, as log(1 + seconds)."""

    key: Key
    of: Actions = []
    expire_after: PositiveDurationMs = 90 * 86_400_000
    """A key at which nothing happened for longer is forgotten. What never happened counts as this long ago, except the first
    serving, which counts as now."""

    def numbers(self) -> list[str]:
        """Return the names of the numbers, in their order."""
        return [FIRST, SERVED, *dict.fromkeys(self.of)]


class Seen(Section):
    """How often a key was served without a break longer than ``within``, as log(1 + times), and how long ago it last was, as
    log(1 + seconds); a key that was not counts as ``within`` ago."""

    key: Key
    within: PositiveDurationMs = 7 * 86_400_000

    def numbers(self) -> list[str]:
        """Return the names of the numbers, in their order."""
        return ["times", "since"]


def _no_list_of_ours(field: str) -> str:
    if field in (AGE, ACTION):
        raise ValueError(f"allowed: features by other names than {AGE} and {ACTION}, which are lists of their own")
    return field


class Sequence(Section):
    """The last actions by key, the oldest first: lists of the ids that features have of what they were on, of
    floor(log2(1 + seconds since the action)), and of the action, by its place in ``of``."""

    key: Key
    of: Annotated[list[CountedAction], Field(min_length=1, max_length=16)]
    fields: Annotated[list[Annotated[Name, AfterValidator(_no_list_of_ours)]], Field(min_length=1, max_length=8)]
    last: Annotated[int, Field(ge=1, le=256)] = 50
    """How many actions are kept."""
    within: PositiveDurationMs = 30 * 86_400_000
    """Actions longer ago are forgotten."""

    def numbers(self) -> list[str]:
        """Return the names of the lists, in their order."""
        return [AGE, ACTION, *dict.fromkeys(self.fields)]


Counting: TypeAlias = Rates | Age | Seen
"""What has numbers; a sequence has lists of ids."""
Definition: TypeAlias = Counting | Sequence


def kept_ms(definition: Definition) -> int:
    """Return after how long without an event a key is forgotten."""
    match definition:
        case Rates():
            return HALF_LIVES_KEPT * max(definition.half_life)
        case Age():
            return definition.expire_after
        case Seen() | Sequence():
            return definition.within


class LiveSettings(Section):
    """The ``live`` section.

    >>> from streaming.live.settings import LiveSettings
    >>> live = LiveSettings.model_validate({"rates": {"item": {"key": ["video"], "of": ["click"], "half_life": ["1d"]}}})
    >>> [(name, each.numbers()) for name, each in live.definitions()]
    [('rates.item', ['served.1d', 'click.1d'])]
    """

    visible_after: DurationMs = 2_000
    """Replays see what happened this much later, as live replicas do."""
    rates: dict[Name, Rates] = {}
    age: dict[Name, Age] = {}
    seen: dict[Name, Seen] = {}
    sequences: dict[Name, Sequence] = {}

    def definitions(self) -> Iterator[tuple[str, Definition]]:
        """Yield the address and the settings of each definition."""
        for kind in ("rates", "age", "seen", "sequences"):
            for name, definition in getattr(self, kind).items():
                yield f"{kind}.{name}", definition
