"""Durations, strict sections and mistakes: what every component's configuration rests on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from basis.problems import Problem, ProblemList, Problems
from basis.settings import DurationMs, PositiveDurationMs, Section, format_duration, parse_duration


class Example(Section):
    wait: DurationMs = 0
    every: PositiveDurationMs = 1000
    rate: float = 1.0


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0s", 0),
        ("1ms", 1),
        ("10s", 10_000),
        ("1.5m", 90_000),
        ("24h", 86_400_000),
        ("2 d", 172_800_000),
        (" 7s ", 7000),
        ("0.5ms", 0),
    ],
)
def test_durations(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    "value", ["", "s", "10", "10 weeks", "1e3s", "10S", "ten s", "1s2s", "10s.", 10, 1.5, None, True, ["1s"]]
)
def test_what_is_no_duration(value: Any) -> None:
    with pytest.raises(ValueError, match="allowed"):
        parse_duration(value)


@pytest.mark.parametrize("text", ["-1s", "-0.5h"])
def test_a_duration_cannot_be_negative(text: str) -> None:
    with pytest.raises(ValueError, match="negative"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9" * 400 + "d", "9" * 20 + "d"])
def test_a_duration_beyond_all_clocks_is_a_mistake_too(text: str) -> None:
    """Times are 64-bit milliseconds."""
    with pytest.raises(ValueError, match="allowed"):
        parse_duration(text)


@given(st.integers(0, 10**12))
def test_a_duration_is_written_as_it_is_read(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds)) == milliseconds


def test_sections_are_strict_and_do_not_change() -> None:
    section = Example(wait="5s", every="1m")
    assert (section.wait, section.every) == (5000, 60_000)
    assert section.model_dump(mode="json") == {"wait": "5s", "every": "1m", "rate": 1.0}
    assert Example.model_validate(section.model_dump(mode="json")) == section
    with pytest.raises(ValidationError):
        section.wait = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="extra"):
        Example(unknown=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="longer than 0s"):
        Example(every="0s")


@pytest.mark.parametrize("value", [True, "1.5", None])
def test_no_truth_value_and_no_text_is_a_number(value: Any) -> None:
    with pytest.raises(ValidationError):
        Example(rate=value)
    assert Example(rate=2).rate == 2.0


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_of_a_section_are_finite(number: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Example(rate=number)


def test_problems_are_collected_over_steps_and_told_at_once() -> None:
    first, second = (Problem("a.csv", f"line {at}", "'x'", "allowed: numbers") for at in (3, 4))
    collected = ProblemList()
    collected.raise_any()
    for problem in (first, second):
        with collected.collect():
            raise Problems([problem])
    with collected.collect():
        pass
    with pytest.raises(Problems) as caught:
        collected.raise_any()
    assert caught.value.problems == [first, second]
    assert str(caught.value).splitlines() == [
        "a.csv: line 3: 'x'; allowed: numbers",
        "a.csv: line 4: 'x'; allowed: numbers",
    ]


def test_other_errors_are_not_swallowed() -> None:
    with pytest.raises(KeyError), ProblemList().collect():
        raise KeyError("a bug")
