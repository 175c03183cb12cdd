"""What a transaction says of itself, as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.features.kinds import Feature, SparseFeature
from streaming.join.commit import Committed, ForgottenError, decode_commit, encode_commit, taken_on
from streaming.join.spec import JoinSpec
from streaming.join.state import RebuildPoint, TakenUnder
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.labels import Label

COMMIT = Committed("a1", 7, 1000, 1200, {IMPRESSIONS: 5, ENGAGEMENTS: 9}, RebuildPoint(-1, 1, 2, 3, 4))
NUMBERS = st.integers(-1, 2**62)
TAKEN = st.builds(TakenUnder, st.text(), NUMBERS, NUMBERS)


@given(st.text(), NUMBERS, NUMBERS, NUMBERS, st.lists(NUMBERS, min_size=6, max_size=6), st.lists(TAKEN))
def test_a_commit_comes_back_as_it_was(
    state_id: str, sequence: int, watermark: int, due: int, offsets: list[int], taken: list[TakenUnder]
) -> None:
    of_inputs = {IMPRESSIONS: offsets[0], ENGAGEMENTS: offsets[1]}
    commit = Committed(state_id, sequence, watermark, due, of_inputs, RebuildPoint(-1, *offsets[2:]), tuple(taken))
    assert decode_commit(encode_commit(commit)) == commit


def test_the_text_of_a_joiner_that_ran_before_is_read() -> None:
    """Its offsets are the group's alone, of dead letters it read none, and it said what is the newest event."""
    before = '{"id":"a1","sequence":7,"watermark":1000,"due":1200,"lowest":[1,2,3],"newest":1500}'
    assert decode_commit(before) == COMMIT._replace(offsets={}, lowest=RebuildPoint(-1, 1, 2, 3, 0))


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", "\x00", "[" * 5000, '{"id": 1}'),
        encode_commit(COMMIT).replace("[1,2,3]", "[1,2]"),
        encode_commit(COMMIT).replace('"version":2', '"version":3'),
    ],
)
def test_text_that_no_joiner_wrote(text: str) -> None:
    with pytest.raises(ForgottenError, match="no joiner's"):
        decode_commit(text, lambda why: ForgottenError(f"no joiner's: {why}"))


def test_what_requests_were_taken_under_is_known_as_far_back_as_a_rebuild_reads() -> None:
    """A config's own comes last, from where it begins to take; what took nothing is not named, and 8 are enough."""
    features: dict[str, Feature] = {"item": SparseFeature(column="item")}
    specs = [JoinSpec(features, {"like": Label(action="like", window=f"{number + 1}s")}) for number in range(20)]
    taken: list[TakenUnder] = []
    for number, spec in enumerate(specs):
        taken = taken_on(taken, spec, 10 * number)
        assert taken == taken_on(taken, spec, 10 * number + 5), "it goes on"
    assert [(each.impressions, each.window_ms) for each in taken] == [
        (10 * at, 1000 * (at + 1)) for at in range(12, 20)
    ]
    assert [each.impressions for each in taken_on(taken, specs[0], 190)] == list(range(120, 200, 10))
