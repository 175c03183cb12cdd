"""What every component's configuration is made of: strict sections, and what is written as text or list: durations, days, pairs."""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LONGEST_MS = 49_710 * _UNIT_MS["d"]  # rows keep seconds in 32 bits
_FIRST_DAY, _LAST_DAY = date(1970, 1, 1), date(2099, 12, 31)
_SIZE = re.compile(r"(\d{1,6}(?:\.\d+)?)\s*([MG]i?B)")
_UNIT_BYTES = {"MB": 10**6, "GB": 10**9, "MiB": 1 << 20, "GiB": 1 << 30}
_DURATION = re.compile(r"^(-?\d+(?:\.\d+)?)\s*(ms|s|m|h|d)$")


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values are of their type already (``true`` is no number, nor is a text)
    and do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def parse_duration(value: Any) -> int:
    """Milliseconds of a duration such as ``10s``, ``1.5m`` or ``24h``; ``ValueError`` when it is none or negative."""
    allowed = "a number with its unit, one of ms, s, m, h, d, as in 10s or 24h"
    if isinstance(value, str):
        match = _DURATION.match(value.strip())
        if match is None:
            raise ValueError(f"not a duration; allowed: {allowed}")
        milliseconds = float(match[1]) * _UNIT_MS[match[2]]
        if milliseconds < 0:
            raise ValueError("a duration cannot be negative; allowed: 0s and longer")
        if milliseconds > _LONGEST_MS:
            raise ValueError(f"a duration beyond what times can hold; allowed: up to {_LONGEST_MS // _UNIT_MS['d']}d")
        return round(milliseconds)
    raise ValueError(f"a duration needs its unit; allowed: {allowed}")


def _positive(value: Any) -> int:
    milliseconds = parse_duration(value)
    if milliseconds == 0:
        raise ValueError("must be longer than 0s")
    return milliseconds


def format_duration(milliseconds: int) -> str:
    """The shortest text that `parse_duration` reads back as ``milliseconds``."""
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _UNIT_MS[unit] == 0:
            return f"{milliseconds // _UNIT_MS[unit]}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0s"


_as_text = PlainSerializer(format_duration, return_type=str, when_used="json")
DurationMs = Annotated[int, BeforeValidator(parse_duration), _as_text]
PositiveDurationMs = Annotated[int, BeforeValidator(_positive), _as_text]


def parse_size(value: Any) -> int:
    """Bytes of a size such as ``2GB``, ``1.5GiB`` or ``500MB``; ``ValueError`` when it is none."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not float(match[1]):
        raise ValueError("not a size; allowed: a number with its unit, one of MB, GB, MiB, GiB, as in 2GB")
    return round(float(match[1]) * _UNIT_BYTES[match[2]])


def _day(value: Any) -> date:
    allowed = f"allowed: a day from {_FIRST_DAY} to {_LAST_DAY}, as in 2026-01-31"
    try:
        day = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(allowed) from None
    if type(day) is not date or not _FIRST_DAY <= day <= _LAST_DAY:
        raise ValueError(allowed)
    return day


Day = Annotated[date, BeforeValidator(_day)]


def pair(shape: str) -> BeforeValidator:
    """For a tuple of two, which files have as a list; ``shape`` says what it holds, such as ``[low, high]``."""

    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(f"allowed: {shape}")
        return tuple(value)

    return BeforeValidator(check)


def matching(pattern: str, allowed: str) -> AfterValidator:
    """For a text that is as a whole like ``pattern``, which ``allowed`` says in words."""
    whole = re.compile(pattern)

    def check(value: str) -> str:
        if whole.fullmatch(value) is None:
            raise ValueError(f"allowed: {allowed}")
        return value

    return AfterValidator(check)
