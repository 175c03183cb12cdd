"""Brings the entries of a joiner's state up to date with what was sent after the state was written."""

from __future__ import annotations

from collections import defaultdict

from streaming.join.state import JoinState
from streaming.log import ENGAGEMENTS
from streaming.records.events import MAX_TIME_MS, BadRecord, DeadLetter, decode_engagement, decode_request
from streaming.records.examples import Published
from streaming.records.identity import ids_of


def note_examples(state: JoinState, published: Published) -> None:
    """Note examples, by request and impression; call this in the order of `examples`."""
    by_request: dict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for name, served_at, revision in published.examples:
        request_id, impression_id = ids_of(name)
        by_request[request_id, served_at][impression_id] = revision + 1
    for (request_id, served_at), times in by_request.items():
        pending = state.get(request_id)
        if pending is not None and pending.served_at == served_at:
            for index, impression_id in enumerate(pending.impression_ids):
                pending.emitted[index] = max(pending.emitted[index], times.get(impression_id, 0))
            state.changed(request_id)


def note_letter(state: JoinState, letter: DeadLetter) -> None:
    """Note a dead letter: of a request that was taken before, or of an engagement that waited."""
    try:
        if letter.topic == ENGAGEMENTS:
            _stop_waiting(state, decode_engagement(letter.payload, MAX_TIME_MS).request_id, letter.offset)
        elif letter.accepted:
            request_id = decode_request(letter.payload, MAX_TIME_MS).request_id
            pending = state.get(request_id)
            if pending is not None and pending.offset == letter.offset and not pending.outdated:
                state.outdate(request_id, letter.detail)
    except BadRecord:  # it was never taken
        pass


def _stop_waiting(state: JoinState, request_id: str, offset: int) -> None:
    pending = state.get(request_id)
    if pending is not None and any(at == offset for at, _ in pending.waiting):
        pending.waiting = [each for each in pending.waiting if each[0] != offset]
        pending.waiting_bytes = sum(len(payload) for _, payload in pending.waiting)
        state.changed(request_id)
