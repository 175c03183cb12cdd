"""Records of the log: what was served, what was done with it, and what was refused.

They are msgpack with named fields. Features are packed columns (`streaming.features.columns`), so a request of 50 impressions is
one record of a few kilobytes that decodes in microseconds.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, overload

import msgspec

from basis.decoding import refusing, why
from streaming.features.kinds import FLOAT32_MAX, NUMBERS_ALLOWED, Packed

if TYPE_CHECKING:  # products import this module, and need no numpy
    import numpy as np
    import numpy.typing as npt

FORMAT_VERSION = 1
MAX_RECORD_BYTES = 4 * 1024 * 1024
_JOINERS_BYTES = 1024
"""A request has less than so much more: its `schema` and `columns` do not count, since joiners write them into letters."""
MAX_DETAIL = 2000
MAX_IMPRESSIONS = 10_000
MAX_ID_LENGTH = 256
_BLANKS, _FRAME = b" \t\r\n", b"\0"
MIN_TIME_MS = 0
MAX_TIME_MS = 4_102_444_800_000  # 2100-01-01: rows keep seconds in 32 bits

Int64: TypeAlias = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""msgpack and JSON can hold larger integers, but Arrow and numpy cannot."""
Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
ImpressionIds: TypeAlias = Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_IMPRESSIONS)]


class Request(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """The impressions served together; ``served_at`` in ms of event time.

    ``shared`` holds the features of the request, one value each; ``features`` those of its n impressions, n each.
    ``scores`` is float32 [n, labels], ``positions`` int32 [n] (if empty, the order of the list). ``schema`` is the fingerprint of
    the `Schema` they were made under, empty if the producer has no config of ours. ``columns`` says how much of that schema's
    features is there: ``all``; ``some``, where others are missing values, since the replica did not have them; or ``reread``, where
    a joiner with another config could not read all that there were.
    """

    version: int
    request_id: Id
    served_at: int
    impression_ids: ImpressionIds
    shared: dict[str, Packed] = {}
    features: dict[str, Packed] = {}
    positions: bytes = b""
    scores: bytes = b""
    sparse_version: Int64 = 0
    dense_version: Int64 = 0
    schema: Annotated[str, msgspec.Meta(max_length=MAX_ID_LENGTH)] = ""
    columns: Literal["all", "some", "reread"] = "all"


class Engagement(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """An action on an impression; ``happened_at`` in ms of event time."""

    version: int
    request_id: Id
    impression_id: Id
    action: str
    happened_at: int
    value: float = 1.0


class DeadLetter(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A refused record: where it was, why (``reason`` from a short list, ``detail`` for people), and its bytes.

    It fits into `dead-letters`, whatever it is about: a long detail is cut, and so is the payload beyond what a record may have.
    """

    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    payload: bytes
    cut_from: int = 0
    """How many bytes the record has, where ``payload`` has only the first of them."""
    accepted: bool = False
    """Whether the record was accepted before: a request that a changed config could not take over."""

    def __post_init__(self) -> None:
        if len(self.payload) > MAX_RECORD_BYTES + _JOINERS_BYTES:
            self.cut_from = len(self.payload)
            self.payload = self.payload[:MAX_RECORD_BYTES]
        if len(self.detail) > MAX_DETAIL:
            self.detail = f"{self.detail[: MAX_DETAIL - 1]}…"


class _Version(msgspec.Struct):
    version: int


class BadRecord(ValueError):
    """A record breaks the contract; ``reason`` is the short word that dead letters are counted by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(Request)
_engagement_decoder = msgspec.msgpack.Decoder(Engagement)
_json_engagement_decoder = msgspec.json.Decoder(Engagement)
_version_decoder = msgspec.msgpack.Decoder(_Version)
_json_version_decoder = msgspec.json.Decoder(_Version)
_letter_decoder = msgspec.msgpack.Decoder(DeadLetter)
encode = _encoder.encode


def check_size(size: int, room: int = 0) -> None:
    """Raise `BadRecord` for a record of more bytes than one may have, and ``room``."""
    if size > MAX_RECORD_BYTES + room:
        raise BadRecord("too_large", f"{size} bytes; allowed: {MAX_RECORD_BYTES}")


def bad_record(payload: bytes, said: str, allowed: int) -> BadRecord:
    """Return why a record cannot be decoded, of which a decoder ``said`` something. A version that is not the ``allowed`` one may
    have another shape, and comes to be read when the program is updated."""
    try:
        found = (
            _json_version_decoder.decode(unmarked(payload)) if is_json(payload) else _version_decoder.decode(payload)
        )
        version = found.version
    except Exception:
        version = allowed
    if version != allowed:
        return BadRecord("version", f"record version {version}; allowed: {allowed}")
    if payload.startswith(_FRAME):
        said += "; it begins as what Confluent's serializers write (0, a schema's id of 4 bytes); allowed: JSON or msgpack alone"
    return BadRecord("malformed", said)


def _checked(payload: bytes, decoder: msgspec.msgpack.Decoder[Any] | msgspec.json.Decoder[Any], room: int = 0) -> Any:
    check_size(len(payload), room)
    try:
        record = decoder.decode(payload)
    except MemoryError:
        raise
    except Exception as error:
        raise bad_record(payload, why(error), FORMAT_VERSION) from None
    if record.version != FORMAT_VERSION:
        raise BadRecord("version", f"record version {record.version}; allowed: {FORMAT_VERSION}")
    return record


def is_json(payload: bytes) -> bool:
    """Whether a record is JSON, also behind a mark of its byte order or blanks. As msgpack, the first byte of any of these would be
    a number rather than a map."""
    return unmarked(payload).lstrip(_BLANKS).startswith(b"{")


def unmarked(payload: bytes) -> bytes:
    """Return JSON without a mark of its byte order, which some writers put before it and no decoder takes."""
    return payload.removeprefix(BOM_UTF8)


@overload
def fits_float32(values: float) -> bool: ...
@overload
def fits_float32(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]: ...
def fits_float32(values: Any) -> Any:
    """Whether values of engagements, wherever they come from, can be used as float32."""
    return abs(values) <= FLOAT32_MAX  # False for NaN


def _check_time(name: str, milliseconds: int, latest: int, earliest: int) -> None:
    earliest, most = max(earliest, MIN_TIME_MS), min(latest, MAX_TIME_MS)
    if not earliest <= milliseconds <= most:
        reason = "future" if latest < milliseconds <= MAX_TIME_MS else "malformed"  # beyond that, no time will come
        units = {"seconds": milliseconds * 1000, "microseconds": milliseconds // 1000}
        likely = max(earliest, most // 2)
        hints = [f"; {ms} if these are {unit}" for unit, ms in units.items() if likely <= ms <= most]
        raise BadRecord(reason, f"{name} {milliseconds} ms; allowed: {earliest} to {most}{''.join(hints)}")


def decode_request(payload: bytes, latest: int, earliest: int = MIN_TIME_MS) -> Request:
    """Decode a request; `BadRecord` if it breaks the contract or was not served between these times (ms)."""
    request: Request = _checked(payload, _request_decoder, _JOINERS_BYTES)
    if len(payload) > MAX_RECORD_BYTES:
        own = msgspec.structs.replace(request, schema="", columns="all")
        check_size(len(payload) - (len(encode(request)) - len(encode(own))))
    check_served(request.served_at, request.impression_ids, latest, earliest)
    return request


def check_served(served_at: int, impression_ids: list[str], latest: int, earliest: int) -> None:
    """Raise `BadRecord` for a request that was not served between these times (ms), or that names an impression twice."""
    _check_time("served_at", served_at, latest, earliest)
    if len(impression_ids) > 1 and len(set(impression_ids)) != len(impression_ids):
        raise BadRecord("malformed", "an impression_id is given twice")


def decode_engagement(payload: bytes, latest: int, earliest: int = MIN_TIME_MS) -> Engagement:
    """Decode an engagement; `BadRecord` if it breaks the contract or did not happen between these times (ms)."""
    if is_json(payload):
        engagement: Engagement = _checked(unmarked(payload), _json_engagement_decoder)
    else:
        engagement = _checked(payload, _engagement_decoder)
    _check_time("happened_at", engagement.happened_at, latest, earliest)
    if not fits_float32(engagement.value):
        raise BadRecord("malformed", f"value {engagement.value}; {NUMBERS_ALLOWED}")
    return engagement


def decode_letter(payload: bytes) -> DeadLetter:
    """Decode a dead letter; `BadRecord` for anything else."""
    with refusing(partial(BadRecord, "malformed")):
        return _letter_decoder.decode(payload)
