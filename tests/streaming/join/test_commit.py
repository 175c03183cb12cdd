"""What a transaction says of itself, as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.features.kinds import Feature, SparseFeature
from streaming.join.commit import UnknownPlaceError, decode_commit, encode_commit
from streaming.join.configs import MANY, ConfigSince, followed_by, since_offset, was_due
from streaming.join.spec import JoinSpec
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.labels import Label
from tests.streaming.join.commits import a_commit

COMMIT = a_commit((1, 2, 3, 4))
NUMBERS = st.integers(-1, 2**62)
TAKEN = st.builds(ConfigSince, st.text(), *[NUMBERS] * 5)


@given(st.text(), NUMBERS, NUMBERS, NUMBERS, st.lists(NUMBERS, min_size=6, max_size=6), st.lists(TAKEN, min_size=1))
def test_a_commit_comes_back_as_it_was(
    state_id: str, sequence: int, watermark: int, due: int, offsets: list[int], taken: list[ConfigSince]
) -> None:
    commit = a_commit(
        (offsets[2], offsets[3], offsets[4], offsets[5]),
        state_id=state_id,
        sequence=sequence,
        published=watermark,
        decided_until=due,
        offsets={IMPRESSIONS: offsets[0], ENGAGEMENTS: offsets[1]},
        configs=tuple(taken),
    )
    assert decode_commit(encode_commit(commit)) == commit


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[1]", "\x00", "[" * 5000, '{"state_id": 1}'),
        encode_commit(COMMIT).replace('"dead-letters":4', '"dead":4'),
        encode_commit(COMMIT).replace('"engagements":4', '"engagement":4'),
        encode_commit(a_commit(configs=())),
    ],
)
def test_text_that_no_joiner_wrote(text: str) -> None:
    with pytest.raises(UnknownPlaceError, match="no joiner's"):
        decode_commit(text, lambda why: UnknownPlaceError(f"no joiner's: {why}"))


def test_what_requests_were_taken_under_is_known_as_far_back_as_a_rebuild_reads() -> None:
    """A config's own comes last, from where it begins to take, and the oldest of many are one."""
    features: dict[str, Feature] = {"item": SparseFeature(column="item")}
    specs = [JoinSpec(features, {"like": Label(action="like", window=f"{number + 1}s")}) for number in range(20)]
    taken: list[ConfigSince] = []
    for number, spec in enumerate(specs):
        taken = followed_by(taken, spec, 10 * number, 100 * number, 16_000, number)
        assert taken == followed_by(taken, spec, 10 * number + 5, 2000, 2000, 2000), "it goes on"
    known = [
        ConfigSince.of(specs[at], 10 * at, 100 * at)._replace(forgotten_ms=15_000, engaged_ms=at)
        for at in range(13, 20)
    ]
    assert taken == [ConfigSince(MANY, 0, 13_000, 0, 0), *known]
    assert followed_by(taken, specs[0], 190, 1900, 50_000, 0)[-1].forgotten_ms == 30_000


@pytest.mark.parametrize(
    ("offset", "served_at", "watermark", "due"),
    [
        (5, 8_999, 15_000, True),  # under its own config, in force up to 10 s
        (5, 9_000, 15_000, False),
        (5, 9_000, 30_000, True),
        (5, 8_000, 9_000, True),
        (25, 9_000, 15_000, False),
        (25, 9_999, 20_000, True),
        (25, 10_000, 20_000, False),
        (25, 0, 10_000, False),  # the watermark has not moved since: not all may have been looked at
    ],
)
def test_what_was_due_under_the_configs_since(offset: int, served_at: int, watermark: int, due: bool) -> None:
    taken = [ConfigSince("a", 0, 1_000, 0, 0), ConfigSince("b", 20, 10_000, 0, 10_000)]
    assert was_due(since_offset(taken, offset), served_at, watermark) is due


def test_a_request_may_wait_for_the_window_that_it_was_taken_under() -> None:
    since = [ConfigSince("a", 0, 10_000, 0, 5_000), ConfigSince("b", 20, 1_000, 0, 5_000)]
    assert not was_due(since, 4_000, 14_000)
    assert was_due(since, 4_000, 14_001)


@pytest.mark.parametrize(
    "text", [encode_commit(COMMIT).replace('"version":3', '"version":4'), '{"version":2,"id":"a1"}']
)
def test_a_commit_of_another_version_is_a_joiners_all_the_same(text: str) -> None:
    """What to do about it is to run the right program, not to throw the topics away."""
    with pytest.raises(UnknownPlaceError, match=r"another version of Minutely .* this one reads 3.*: run that version"):
        decode_commit(text, lambda why: UnknownPlaceError(f"no joiner's: {why}"))
