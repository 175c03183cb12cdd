"""The metadata that a joiner commits with the inputs' offsets, for the partition's next owner.

It names the transaction, as the state's `Head` does. So the next owner knows whether a state is that of the last transaction, of an
earlier one, or of neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from basis.decoding import refusing
from streaming.join.core import Joiner
from streaming.join.spec import JoinSpec
from streaming.join.state import Head, RebuildPoint
from streaming.join.taken import TakenUnder, keep_ms
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS

_POINTS = 64
_VERSION = 2
"""Version 1 does not have the schemas under which requests were taken."""


class Committed(NamedTuple):
    """What the last transaction committed: its identity, the inputs' next offsets, and where a rebuild must read from.

    Everything due by ``watermark`` is out. While more is due than one batch takes, ``decided_until`` is ahead of it, and some of
    what is due by then is out. ``taken_under`` says what requests were taken under.
    """

    state_id: str
    sequence: int
    watermark: int
    decided_until: int
    offsets: dict[str, int]
    lowest: RebuildPoint
    taken_under: Sequence[TakenUnder] = ()


class ForgottenError(Exception):
    """The brokers have no commit of a joiner, though there must have been one."""


class _Text(msgspec.Struct, kw_only=True):
    id: str
    sequence: int
    watermark: int
    due: int
    lowest: tuple[int, int, int]
    dead_letters: int = 0
    offsets: dict[str, int] = {}
    schemas: list[TakenUnder] = []
    version: int = 1


_decoder = msgspec.json.Decoder(_Text)


def commit_of(head: Head) -> Committed:
    """Return the commit of the transaction that leads to a state."""
    return Committed(
        head.state_id,
        head.sequence,
        head.published,
        max(head.watermark, head.published),
        dict(head.offsets),
        head.rebuild_points[0],
        tuple(head.taken_under),
    )


def encode_commit(commit: Committed) -> str:
    """Encode a commit as a line of JSON, some 400 characters long."""
    text = _Text(
        id=commit.state_id,
        sequence=commit.sequence,
        watermark=commit.watermark,
        due=commit.decided_until,
        lowest=commit.lowest[1:4],
        dead_letters=commit.lowest.dead_letters,
        offsets=commit.offsets,
        schemas=list(commit.taken_under),
        version=_VERSION,
    )
    return msgspec.json.encode(text).decode()


def decode_commit(text: str, refusal: Callable[[str], ForgottenError] = ForgottenError) -> Committed:
    """Decode a commit. Raise ``refusal``, with the reason, for text that no joiner wrote."""
    with refusing(refusal):
        found = _decoder.decode(text)
        if found.version > _VERSION:
            raise ValueError(f"version {found.version}; allowed: up to {_VERSION}")
    lowest, taken_under = RebuildPoint(-1, *found.lowest, found.dead_letters), tuple(found.schemas)
    return Committed(found.id, found.sequence, found.watermark, found.due, found.offsets, lowest, taken_under)


def next_head(
    head: Head,
    spec: JoinSpec,
    joiner: Joiner,
    offsets: Mapping[str, int],
    outputs: Mapping[str, int],
    sequence: int,
    published: int,
) -> Head:
    """Return the head that follows ``head``, with the offsets that a rebuild may read from. ``outputs`` are the offsets after the
    records sent, by topic."""
    rebuild_points, at, keep = head.rebuild_points, joiner.newest, keep_ms(head.taken_under, spec)
    while len(rebuild_points) > 1 and rebuild_points[1].newest < published - keep:
        rebuild_points = rebuild_points[1:]
    is_over = at < published - keep  # nothing that was taken matters any more; without new input, examples still grows
    if (is_over or at >= rebuild_points[-1].newest + keep // _POINTS) and offsets.keys() == joiner.reached.keys():
        ends = outputs[EXAMPLES], outputs[DEAD_LETTERS]
        point = RebuildPoint(at, offsets[IMPRESSIONS], offsets[ENGAGEMENTS], *ends)
        rebuild_points = [point] if is_over else [*rebuild_points, point]
    if len(rebuild_points) > 4 * _POINTS:  # one input is far ahead; with fewer points a rebuild reads a little more
        rebuild_points = [rebuild_points[0], *rebuild_points[1::2]]
    taken = head.taken_under
    while (
        len(taken) > 1
        and taken[1].impressions <= rebuild_points[0].impressions
        and max(taken[1].since_ms, taken[1].engaged_ms) < published - keep
    ):
        taken = taken[1:]  # nor does an engagement wait by it any more, nor was one read by it whose request may come
    return Head(
        head.state_id,
        sequence,
        joiner.watermark,
        published,
        dict(offsets),
        dict(joiner.reached),
        rebuild_points,
        outputs[EXAMPLES],
        dead_letters=outputs[DEAD_LETTERS],
        schemas=dict(joiner.upgrades.known),
        taken_under=taken,
        newest=joiner.newest,
    )
