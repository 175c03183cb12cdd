"""Features: the named inputs of an impression's score, as the configuration describes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Discriminator, Field, PrivateAttr, Tag, model_validator

from basis.settings import Section, matching, pair

FLOAT32_MAX = 3.4028234663852886e38
"""Training uses float32, so larger numbers are refused on entry."""
NUMBERS_ALLOWED = "allowed: numbers that are finite in 32 bits"
WEIGHTS_ALLOWED = "allowed: weights of 0 or more that are finite in 32 bits"

Name: TypeAlias = Annotated[
    str, matching(r"[A-Za-z_][A-Za-z0-9_]*", "a name of letters, digits and _, with no digit first")
]
MAX_VECTOR = 65_536
Packed: TypeAlias = bytes | tuple[bytes, bytes]
"""A feature's column in a record: little-endian values; for lists, int32 lengths and then the values of all lists."""
Unit: TypeAlias = Literal["s", "ms", "us", "ns"]
"""What times as numbers count."""
OfRequest: TypeAlias = Literal["size"]
"""What a feature may say of the request: ``size`` is the number of its impressions."""


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise ValueError("no time zone; allowed: names such as Europe/Berlin and America/Sao_Paulo") from None
    return name


TimeZone: TypeAlias = Annotated[str, AfterValidator(_known_zone)]


class _Feature(Section):
    scope: Literal["impression", "request"] = "impression"
    """``request``: the same for all impressions of a request (user, context), and logged once."""
    _definition: str | None = PrivateAttr(None)

    @property
    def definition(self) -> str | None:
        """What decides a live feature's numbers, as JSON: which they are, and its part of the config's ``live`` section, with
        defaults."""
        return self._definition

    def defined(self, definition: str, **update: Any) -> Self:
        """Return the feature with its definition, and what else follows from that."""
        found = self.model_copy(update=update)
        found._definition = definition
        return found


class SparseFeature(_Feature):
    """Ids that are looked up in a table. They come from a column, the event time, the request, two other features, crossed, a live
    number or a live list."""

    kind: Literal["sparse"] = "sparse"
    column: str | None = None
    side: str | None = None
    """The side table that holds the column; by default, the impressions hold it."""
    time: Literal["hour", "weekday"] | None = None
    zone: TimeZone | None = None
    """The time zone of ``time``, such as ``Europe/Berlin``; UTC by default."""
    request: OfRequest | None = None
    cross: Annotated[tuple[str, str], pair("[one sparse feature, another]")] | None = None
    live: str | None = None
    """The number of the config's ``live`` section that it buckets, such as ``rates.item.click.1d``, or the list that it pools, such
    as ``sequences.clicked.item``."""
    step: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Turns a live number into the id floor(number / step)."""
    split: Annotated[str, Field(min_length=1)] | None = None
    """The separator of a text column that holds lists."""
    bucket: Literal["log2"] | None = None
    """Turns a number into the id floor(log2(1 + number))."""
    pool: Literal["first", "mean", "sum"] | None = None
    """How the ids of a list become one row."""
    last: Annotated[int, Field(ge=1)] | None = None
    """How many ids of a list count, from its end; all by default."""
    table: Name | None = None
    """The table that holds the rows; by default, the feature's own. Features may share one."""

    @model_validator(mode="after")
    def _one_origin(self) -> SparseFeature:
        origins = (self.column, self.time, self.request, self.cross, self.live)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("needs exactly one of column, time, request, cross, live")
        if self.live is None and self.step is not None:
            raise ValueError("step goes with live")
        if self.live is not None and (self.step is not None) == self.is_list:
            allowed = "step, such as 0.25, makes a number a bucket, pool: mean or sum takes a list"
            raise ValueError(
                f"a sparse live feature needs one of step and pool: {allowed}; a vector of numbers has neither"
            )
        if self.column is None and any((self.side, self.split, self.pool and not (self.live and self.is_list))):
            raise ValueError("side and split go with column, pool with column or a live list")
        if self.bucket and self.column is None and self.request is None:
            raise ValueError("bucket goes with column or request")
        if self.bucket and (self.split or self.pool):
            raise ValueError("bucket needs one number per impression, so it does not go with split or pool")
        if self.zone is not None and self.time is None:
            raise ValueError("zone goes with time")
        if self.last is not None and not self.is_list:
            raise ValueError("last goes with a list: pool: mean or sum")
        if self.split and self.pool is None:
            raise ValueError("split makes lists, so it needs pool; allowed: pool: first, mean or sum")
        return self

    @property
    def is_list(self) -> bool:
        """Whether an impression has any number of ids, pooled by mean or sum."""
        return self.pool in ("mean", "sum")


class DenseFeature(_Feature):
    """One number, transformed; ``age`` is the number of seconds from the column's time to the event's."""

    kind: Literal["dense"]
    column: str | None = None
    side: str | None = None
    request: OfRequest | None = None
    transform: Literal["none", "log", "sqrt", "square", "inverse", "age"] = "none"
    floor: Annotated[float, Field(ge=1e-30)] | None = None
    """For ``inverse``: smaller numbers count as this much, so that none gives more than 1 / floor."""
    unit: Unit = "ms"
    """For ``age``: the unit of the column's times, if they are numbers."""

    @model_validator(mode="after")
    def _has_floor(self) -> DenseFeature:
        if (self.transform == "inverse") != (self.floor is not None):
            raise ValueError("floor, such as 0.01, goes with transform: inverse, which needs it")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> DenseFeature:
        if (self.column is None) == (self.request is None):
            raise ValueError("needs exactly one of column, request")
        if self.column is None and (self.side is not None or self.transform == "age"):
            raise ValueError("side and transform: age go with column")
        return self


class WeightFeature(DenseFeature):
    """The dense feature that ``train.weight`` names: what an example's loss is multiplied by, and no input of the model.

    It is 0 or more. A missing one is 1, as if there were no weights, where a missing number is 0: that would leave the example out.
    """


class VectorFeature(_Feature):
    """A list of ``size`` numbers, such as a content embedding; or live numbers, whose size follows from what they are."""

    kind: Literal["vector"]
    column: str | None = None
    side: str | None = None
    live: str | None = None
    """The numbers of the config's ``live`` section: all of a definition, such as ``rates.item``, or some of them."""
    size: Annotated[int, Field(ge=1, le=MAX_VECTOR)]

    @model_validator(mode="before")
    @classmethod
    def _follows_from_its_definition(cls, value: Any) -> Any:
        is_live = isinstance(value, dict) and value.get("live") is not None
        return {"kind": "vector", "size": 1, **value} if is_live else value

    @model_validator(mode="after")
    def _one_origin(self) -> VectorFeature:
        if (self.column is None) == (self.live is None):
            raise ValueError("needs exactly one of column, live")
        if self.column is None and self.side is not None:
            raise ValueError("side goes with column")
        return self


def _kind(value: Any) -> str:
    if not isinstance(value, dict):
        return str(getattr(value, "kind", "sparse"))
    return str(value.get("kind", "vector" if "live" in value and not {"step", "pool"} & value.keys() else "sparse"))


Feature: TypeAlias = Annotated[
    Annotated[SparseFeature, Tag("sparse")]
    | Annotated[DenseFeature, Tag("dense")]
    | Annotated[VectorFeature, Tag("vector")],
    Discriminator(_kind),
]
FeatureSet: TypeAlias = Annotated[dict[Name, Feature], Field(min_length=1, max_length=1000)]
"""The ``features`` section: name to feature, in the order in which models read them."""


def numbers_allowed(feature: Feature) -> str:
    """Return which numbers a feature may have, in words."""
    return WEIGHTS_ALLOWED if isinstance(feature, WeightFeature) else NUMBERS_ALLOWED


def live_address(feature: Feature) -> str | None:
    """Return which live numbers a feature has; None if it has others."""
    return None if isinstance(feature, DenseFeature) else feature.live
