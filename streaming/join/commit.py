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
from streaming.join.head import TOPICS, Head, Offsets
from streaming.log import INPUTS

_VERSION = 3


class Committed(msgspec.Struct, kw_only=True):
    """What the last transaction committed: its identity, the inputs' next offsets, and where a rebuild must read from.

    Everything due by ``watermark`` is out. While more is due than one batch takes, ``decided_until`` is ahead of it, and some of
    what is due by then is out. ``configs`` says what requests were taken under.
    """

    version: int = _VERSION
    state_id: str
    sequence: int
    watermark: int
    decided_until: int
    offsets: dict[str, int]
    lowest: Offsets
    configs: Annotated[tuple[ConfigSince, ...], msgspec.Meta(min_length=1)]


class ForgottenError(Exception):
    """The brokers have no commit of a joiner, though there must have been one."""


_decoder = msgspec.json.Decoder(Committed)


def commit_of(head: Head) -> Committed:
    """Return the commit of the transaction that leads to a state."""
    return Committed(
        state_id=head.state_id,
        sequence=head.sequence,
        watermark=head.published,
        decided_until=max(head.watermark, head.published),
        offsets={topic: head.offsets[topic] for topic in INPUTS},
        lowest=head.rebuild_points[0].offsets,
        configs=tuple(head.configs),
    )


def encode_commit(commit: Committed) -> str:
    """Encode a commit as a line of JSON, some 400 characters long."""
    return msgspec.json.encode(commit).decode()


def decode_commit(text: str, refusal: Callable[[str], ForgottenError] = ForgottenError) -> Committed:
    """Decode a commit. Raise ``refusal``, with the reason, for text that no joiner wrote."""
    with refusing(refusal):
        found = _decoder.decode(text)
        if found.version != _VERSION:
            raise ValueError(f"version {found.version}; allowed: {_VERSION}")
        if found.lowest.keys() != set(TOPICS) or found.offsets.keys() != set(INPUTS):
            raise ValueError(f"offsets of {', '.join(found.offsets | found.lowest)}; allowed: of every topic")
    return found
