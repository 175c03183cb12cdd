"""What a transaction says of itself, as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.join.commit import Committed, ForgottenError, decode_commit, encode_commit
from streaming.join.state import ReadFrom
from streaming.log import ENGAGEMENTS, IMPRESSIONS

COMMIT = Committed("a1", 7, 1000, 1200, {IMPRESSIONS: 5, ENGAGEMENTS: 9}, ReadFrom(-1, 1, 2, 3, 4), 1500)
NUMBERS = st.integers(-1, 2**62)


@given(st.text(), NUMBERS, NUMBERS, NUMBERS, st.lists(NUMBERS, min_size=6, max_size=6), NUMBERS)
def test_a_commit_comes_back_as_it_was(
    state_id: str, sequence: int, watermark: int, due: int, offsets: list[int], newest: int
) -> None:
    of_inputs = {IMPRESSIONS: offsets[0], ENGAGEMENTS: offsets[1]}
    commit = Committed(state_id, sequence, watermark, due, of_inputs, ReadFrom(-1, *offsets[2:]), newest)
    assert decode_commit(encode_commit(commit)) == commit


def test_the_text_of_a_joiner_that_ran_before_is_read() -> None:
    """Its offsets are the group's alone, and of dead letters it read none."""
    before = '{"id":"a1","sequence":7,"watermark":1000,"due":1200,"lowest":[1,2,3],"newest":1500}'
    assert decode_commit(before) == COMMIT._replace(offsets={}, lowest=ReadFrom(-1, 1, 2, 3, 0))


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "\x00", "[" * 5000, encode_commit(COMMIT).replace("[1,2,3]", "[1,2]"), '{"id": 1}']
)
def test_text_that_no_joiner_wrote(text: str) -> None:
    with pytest.raises(ForgottenError, match="no joiner's"):
        decode_commit(text, lambda why: ForgottenError(f"no joiner's: {why}"))
