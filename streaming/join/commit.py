"""The metadata that a joiner commits with the inputs' offsets, for the partition's next owner.

It names the transaction, as the state's `Head` does. So the next owner knows whether a state is that of the last transaction, of an
earlier one, or of neither.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec

from basis.decoding import refusing
from streaming.join.configs import ConfigSince
from streaming.join.head import Head, Offsets
from streaming.log import INPUTS, TOPICS
from streaming.loop.brokers import UnknownPlaceError

_VERSION = 3


class Committed(msgspec.Struct, kw_only=True):
    """What the last transaction committed: its identity, the inputs' next offsets, and where a rebuild must read from.

    Everything due by ``published`` is out. While more is due than one batch takes, ``decided_until`` is ahead of it, and some of
    what is due by then is out. ``configs`` says what requests were taken under.
    """

    version: int = _VERSION
    state_id: str
    sequence: int
    published: int
    decided_until: int
    offsets: dict[str, int]
    lowest: Offsets
    configs: Annotated[tuple[ConfigSince, ...], msgspec.Meta(min_length=1)]


class _Version(msgspec.Struct):
    version: int


_decoder = msgspec.json.Decoder(Committed)
_version_decoder = msgspec.json.Decoder(_Version)


def commit_of(head: Head) -> Committed:
    """Return the commit of the transaction that leads to a state."""
    return Committed(
        state_id=head.state_id,
        sequence=head.sequence,
        published=head.published,
        decided_until=max(head.decided_until, head.published),
        offsets={topic: head.offsets[topic] for topic in INPUTS},
        lowest=head.rebuild_points[0].offsets,
        configs=tuple(head.configs),
    )


def encode_commit(commit: Committed) -> str:
    """Encode a commit as a line of JSON, some 400 characters long."""
    return msgspec.json.encode(commit).decode()


def decode_commit(text: str, refusal: Callable[[str], UnknownPlaceError] = UnknownPlaceError) -> Committed:
    """Decode a commit. Raise ``refusal``, with the reason, for text that no joiner wrote, and `UnknownPlaceError` for a commit of
    another version, which may be right."""
    with refusing(refusal):
        version = _version_decoder.decode(text).version
    if version != _VERSION:
        raise UnknownPlaceError(
            f"a joiner of another version of Minutely committed last (commits of version {version}; this one reads {_VERSION}): "
            "run that version, or start with empty topics, another kafka.prefix"
        )
    with refusing(refusal):
        found = _decoder.decode(text)
        if found.lowest.keys() != set(TOPICS) or found.offsets.keys() != set(INPUTS):
            raise ValueError(f"offsets of {', '.join(found.offsets | found.lowest)}; allowed: of every topic")
    return found
