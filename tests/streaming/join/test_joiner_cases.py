"""What the joiner does with events that are early, late, repeated or of no use, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.labels import Label
from tests.streaming.join.join_world import (
    CLICK,
    END,
    Done,
    Expected,
    Served,
    SpillingState,
    arrived,
    by_id,
    engagement_record,
    make_joiner,
    reasons,
    request_record,
)


def test_a_label_is_decided_at_once_or_when_the_window_closes() -> None:
    core = make_joiner(CLICK)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 2))))
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.1", "click", 1020, 1.0))))
    core.advance(1020)
    assert core.drain().examples == [], "an earlier event may still come at 1020"
    core.advance(1021)
    assert by_id(core, core.drain().examples) == {"r1.1": Expected(1000, (1.0,), 1020, 1020)}
    core.advance(1100)
    assert core.drain().examples == [], "a click may still come at the window's last millisecond"
    core.advance(1101)
    assert by_id(core, core.drain().examples) == {"r1.0": Expected(1000, (0.0,), 1100, 1000)}


def test_at_one_millisecond_the_positive_action_goes_before_the_deciding_one() -> None:
    labels = {"like": Label(action="like", decided_by="end", window="100ms")}
    for order in (("like", "end"), ("end", "like")):
        core = make_joiner(labels)
        core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 1))))
        for offset, action in enumerate(order):
            core.add(ENGAGEMENTS, arrived(offset, engagement_record(Done("r1", "r1.0", action, 1010, 1.0))))
        core.advance(2000)
        assert by_id(core, core.drain().examples)["r1.0"].labels == (1.0,)


def test_what_falls_on_the_watermark_still_waits_when_its_neighbour_goes() -> None:
    labels = {"like": Label(action="like", decided_by="end", window="100ms")}
    core = make_joiner(labels)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 2))))
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "end", 1010, 1.0))))
    core.add(ENGAGEMENTS, arrived(1, engagement_record(Done("r1", "r1.1", "end", 1020, 1.0))))
    core.advance(1020)
    assert by_id(core, core.drain().examples).keys() == {"r1.0"}
    core.add(ENGAGEMENTS, arrived(2, engagement_record(Done("r1", "r1.1", "like", 1020, 1.0))))
    core.advance(1021)
    assert by_id(core, core.drain().examples) == {"r1.1": Expected(1000, (1.0,), 1020, 1020)}


def test_a_negative_value_too_goes_before_the_deciding_action_of_its_millisecond() -> None:
    labels = {"change": Label(action="trade", decided_by="end", window="100ms", loss="squared")}
    core = make_joiner(labels)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 1))))
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "trade", 1010, -5.0))))
    core.add(ENGAGEMENTS, arrived(1, engagement_record(Done("r1", "r1.0", "end", 1010, 1.0))))
    core.advance(2000)
    assert by_id(core, core.drain().examples)["r1.0"].labels == (-5.0,)


def test_an_event_that_would_change_an_emitted_label_is_late() -> None:
    labels = {"like": Label(action="like", decided_by="end", window="100ms")}
    core = make_joiner(labels)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 1))))
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "end", 1020, 1.0))))
    core.advance(1050)
    assert by_id(core, core.drain().examples)["r1.0"].labels == (0.0,)
    like = engagement_record(Done("r1", "r1.0", "like", 1010, 1.0))
    core.add(ENGAGEMENTS, arrived(1, like))
    output = core.drain()
    assert output.examples == []
    assert reasons(output.dead_letters) == [(ENGAGEMENTS, 1, "late")]
    assert output.dead_letters[0].payload == like
    assert core.counts.refused["late"] == 1


@pytest.mark.parametrize("emit", ["decided", "window"])
def test_an_event_that_changes_an_emitted_label_corrects_it_while_its_request_is_known(
    emit: str, tmp_path: Path
) -> None:
    labels = {"like": Label(action="like", decided_by="end", window="100ms")}
    state = SpillingState(tmp_path)
    core = make_joiner(labels, state, lateness=500, late="correct", emit=emit)
    for name in ("r1", "r2"):
        core.add(IMPRESSIONS, arrived(0, request_record(Served(name, 1000, 2))))
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "end", 1020, 1.0))))
    core.advance(1150)
    first = by_id(core, core.drain().examples)
    assert first["r1.0"] == Expected(1000, (0.0,), 1100 if emit == "window" else 1020, 1020)
    core.add(ENGAGEMENTS, arrived(1, engagement_record(Done("r1", "r1.0", "like", 1010, 1.0))))
    core.add(ENGAGEMENTS, arrived(2, engagement_record(Done("r1", "r1.0", "like", 1010, 1.0))))
    output = core.drain()
    assert by_id(core, output.examples) == {"r1.0": Expected(1000, (1.0,), 1150, 1010)}
    assert [batch.column("revision").to_pylist() for batch in output.examples] == [[1]]
    core.add(ENGAGEMENTS, arrived(3, engagement_record(Done("r1", "r1.0", "end", 1005, 1.0))))
    output = core.drain()
    assert by_id(core, output.examples) == {"r1.0": Expected(1000, (0.0,), 1150, 1005)}
    assert [batch.column("revision").to_pylist() for batch in output.examples] == [[2]]
    assert core.counts.corrected == 2
    core.advance(1701)  # the request is forgotten
    core.add(ENGAGEMENTS, arrived(4, engagement_record(Done("r1", "r1.0", "like", 1001, 1.0))))
    output = core.drain()
    assert output.examples == []
    assert reasons(output.dead_letters) == [(ENGAGEMENTS, 4, "unmatched")]
    state.close()


def test_an_event_that_changes_nothing_any_more_is_only_counted() -> None:
    core = make_joiner(CLICK)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 1))))
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "click", 1010, 1.0))))
    core.advance(1050)
    core.drain()
    core.add(ENGAGEMENTS, arrived(1, engagement_record(Done("r1", "r1.0", "click", 1060, 1.0))))
    assert core.drain() == ([], [], [])
    assert core.counts.redundant == 1


def test_an_action_that_no_label_uses_is_only_counted() -> None:
    core = make_joiner(CLICK)
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "hover", 1000, 1.0))))
    core.advance(END)
    assert core.drain() == ([], [], [])
    assert core.counts.unused == 1


@pytest.mark.parametrize("engagement_first", [False, True])
def test_happened_before_served(engagement_first: bool) -> None:
    core = make_joiner(CLICK)
    early = engagement_record(Done("r1", "r1.0", "click", 999, 1.0))
    request = request_record(Served("r1", 1000, 1))
    for step in ("engagement", "request") if engagement_first else ("request", "engagement"):
        core.add(ENGAGEMENTS, arrived(5, early)) if step == "engagement" else core.add(IMPRESSIONS, arrived(0, request))
    output = core.drain()
    assert reasons(output.dead_letters) == [(ENGAGEMENTS, 5, "before_served")]
    assert output.dead_letters[0].payload == early
    core.advance(END)
    assert by_id(core, core.drain().examples)["r1.0"].labels == (0.0,)


def test_after_the_window() -> None:
    core = make_joiner(CLICK)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 1))))
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "click", 1101, 1.0))))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 0, "late")]


def test_an_impression_that_the_request_does_not_have() -> None:
    core = make_joiner(CLICK)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 1))))
    core.add(ENGAGEMENTS, arrived(7, engagement_record(Done("r1", "r1.9", "click", 1001, 1.0))))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 7, "unmatched")]


def test_an_engagement_waits_for_its_request_and_no_longer() -> None:
    core = make_joiner(CLICK, lateness=30)
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "click", 1000, 1.0))))
    core.advance(1130)
    assert core.drain().dead_letters == []
    core.advance(1131)
    output = core.drain()
    assert reasons(output.dead_letters) == [(ENGAGEMENTS, 0, "unmatched")]
    core.add(ENGAGEMENTS, arrived(1, engagement_record(Done("r2", "r2.0", "click", 1000, 1.0))))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 1, "unmatched")]


def test_a_request_whose_window_closed_is_late_however_often_it_comes() -> None:
    core = make_joiner(CLICK, lateness=30)
    request = request_record(Served("r1", 1000, 1))
    core.add(IMPRESSIONS, arrived(0, request))
    core.advance(5000)
    assert len(by_id(core, core.drain().examples)) == 1
    core.add(IMPRESSIONS, arrived(1, request))
    core.advance(6000)
    output = core.drain()
    assert output.examples == []
    assert reasons(output.dead_letters) == [(IMPRESSIONS, 1, "late")]
    assert output.dead_letters[0].payload == request


def test_a_request_that_comes_again_before_and_after_its_examples_is_one() -> None:
    core = make_joiner(CLICK, lateness=1000)
    for offset, watermark in enumerate((900, 1150, 1150)):
        core.add(IMPRESSIONS, arrived(offset, request_record(Served("r1", 1000, 2))))
        core.advance(watermark)
    assert len(by_id(core, core.drain().examples)) == 2
    assert core.counts.repeated == 2


@pytest.mark.parametrize(
    "again",
    [
        request_record(Served("r1", 1000, 3)),
        request_record(Served("r1", 1010, 2)),
        request_record(Served("r1", 1000, 2), sparse_version=7),
    ],
    ids=["other impressions", "another time", "another version"],
)
@pytest.mark.parametrize("watermark", [900, 1150], ids=["before its examples", "after them"])
def test_a_request_id_used_again_is_a_dead_letter(again: bytes, watermark: int) -> None:
    core = make_joiner(CLICK, lateness=1000)
    first = request_record(Served("r1", 1000, 2))
    core.add(IMPRESSIONS, arrived(0, first))
    core.advance(watermark)
    before = dict(core.reached.inputs)
    core.add(IMPRESSIONS, arrived(1, again))
    assert core.reached.inputs == before
    core.add(IMPRESSIONS, arrived(2, first))
    core.advance(END)
    output = core.drain()
    assert reasons(output.dead_letters) == [(IMPRESSIONS, 1, "request_id used again")]
    assert output.dead_letters[0].payload == again
    assert "request r1 was served at 1000 ms with 2 impressions" in output.dead_letters[0].detail
    found = by_id(core, output.examples)
    assert set(found) == {"r1.0", "r1.1"} and all(example.served_at == 1000 for example in found.values())
    assert core.counts.repeated == 1


def test_a_request_may_have_an_id_that_only_engagements_had() -> None:
    core = make_joiner(CLICK)
    core.add(ENGAGEMENTS, arrived(0, engagement_record(Done("r1", "r1.0", "click", 1001, 1.0))))
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 1))))
    core.advance(END)
    assert core.drain().dead_letters == []


def test_too_many_engagements_of_one_impression() -> None:
    labels = {"like": Label(action="like", min_value=4, window="10s")}
    core = make_joiner(labels)
    core.add(IMPRESSIONS, arrived(0, request_record(Served("r1", 1000, 1))))
    for offset in range(1001):
        core.add(ENGAGEMENTS, arrived(offset, engagement_record(Done("r1", "r1.0", "like", 1000 + offset, 1.0))))
    assert reasons(core.drain().dead_letters) == [(ENGAGEMENTS, 1000, "too_many")]
