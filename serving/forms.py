"""In which form a body came and an answer is wanted, by the headers that say so (RFC 9110, sections 8 and 12)."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import NamedTuple

from serving.answers import JSON, MSGPACK
from serving.inputs import BadRequest

_ALLOWED = f"allowed: {JSON}, {MSGPACK}"
_CHARSETS = ("utf-8", "utf8", "us-ascii")
_MOST = 32  # parts of a header that are looked at: all those of 64 KiB would keep the event loop for 0.1 s


class _Media(NamedTuple):
    kind: str
    parameters: Mapping[str, str]

    @property
    def quality(self) -> float:
        """How much it is wanted; what is no number is as if it were not said."""
        try:
            return float(self.parameters.get("q", "1"))
        except ValueError:
            return 1.0


def _media(text: str) -> _Media:
    kind, *rest = (part.strip().lower() for part in text.split(";")[:_MOST])
    pairs = (part.partition("=") for part in rest)
    return _Media(kind, {name.strip(): value.strip().strip('"') for name, _, value in pairs})


def answered_in_msgpack(headers: Mapping[str, str]) -> bool:
    """Whether the answer is msgpack: what ``Accept`` wants more, else the form of the body."""
    parts = headers.get("accept", "").split(",")[:_MOST]
    accepted = {media.kind: media.quality for media in map(_media, parts)}
    anything = accepted.get("application/*", accepted.get("*/*", 0.0))
    json, msgpack = accepted.get(JSON, anything), accepted.get(MSGPACK, anything)
    return msgpack > json if msgpack != json else _media(headers.get("content-type", "")).kind == MSGPACK


def body_is_msgpack(headers: Mapping[str, str]) -> bool:
    """Whether the body is msgpack and not JSON; `BadRequest` (415) where it is neither, or is encoded once more."""
    said = headers.get("content-type", JSON)
    media, encoding = _media(said), headers.get("content-encoding", "identity")
    if media.kind not in (JSON, MSGPACK):
        raise BadRequest(f"content type {said[:80]}; {_ALLOWED}", 415)
    if encoding.strip().lower() != "identity":
        raise BadRequest(f"content encoding {encoding[:80]}; allowed: none", 415)
    charset = media.parameters.get("charset", "utf-8")
    if media.kind == JSON and charset not in _CHARSETS:
        raise BadRequest(f"charset {charset[:80]}; allowed: utf-8", 415)
    return media.kind == MSGPACK


def json_text(body: bytes) -> bytes:
    """A JSON body without the byte order mark that some editors and libraries write before it."""
    return body.removeprefix(codecs.BOM_UTF8)
