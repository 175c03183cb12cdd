"""What a log says of records that are gone."""

from __future__ import annotations

import pytest

from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, LostRange


def test_of_an_input_records_are_lost() -> None:
    assert "records from offset 2 to 5 were deleted before they were read: up to 3 lost" in LostRange(
        ENGAGEMENTS, 2, 5
    ).told(1)


@pytest.mark.parametrize("topic", [EXAMPLES, DEAD_LETTERS])
def test_of_an_output_it_is_what_was_sent_that_is_not_known(topic: str) -> None:
    said = LostRange(topic, 2, 5).told(1)
    assert said.startswith(f"{topic}/1: records from offset 2 to 5 are gone") and "may come twice" in said
    assert "lost" not in said
