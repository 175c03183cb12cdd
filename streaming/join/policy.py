"""How the joiner treats new records, and records that it re-reads in recovery.

After a crash, the joiner re-reads records of committed transactions to restore its state. What they led to is in `examples`
already, so it must not be published again, and records must not be judged by how late they are now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from streaming.join.configs import ConfigSince, since_offset, waited_before, was_due
from streaming.join.pending import Pending
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.log import IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, MIN_TIME_MS, BadRecord, Request


class Earlier(NamedTuple):
    """How a request was taken when it was first read: under which ``config``, if the schema of that is not ours; and if it became a
    dead letter later, because of its schema, why."""

    config: ConfigSince | None
    outdated: str | None


class Living:
    """The policy for new records. Times in ms."""

    def __init__(self, spec: JoinSpec) -> None:
        self.earliest_ms = spec.earliest_ms
        self._wait_ms = spec.wait_ms
        self._max_future = spec.settings.max_future

    def latest_ms(self, appended_at: int) -> int:
        """Return the latest event time of a record that its broker took at ``appended_at``, whenever it is read."""
        return appended_at + self._max_future

    def is_late(self, closed_at: int, at: int) -> bool:
        """Whether ``at`` is too late for what closed at ``closed_at``."""
        return closed_at < at

    def waited_before(self, watermark: int) -> int:
        """Return until when engagements happened that do not wait for their requests any more."""
        return watermark - self._wait_ms

    def earlier(self, offset: int) -> Earlier | None:
        """Return how the request at this offset was taken before; None for a new one."""
        return None

    def was_due(self, offset: int, served_at: int, watermark: int) -> bool:
        """Whether the window of the request at this offset closed before ``watermark``, so that it was decided."""
        return False

    def check_unused(self, request: Request, pending: Pending) -> None:
        """Refuse a request whose id ``pending``, which is another record, already has."""
        ours, theirs = (
            f"served at {served_at} ms with {len(ids)} impressions"
            for served_at, ids in ((each.served_at, each.impression_ids) for each in (pending, request))
        )
        detail = f"request {request.request_id} was {ours}; this one, {theirs}, is another record; request ids must not be reused"
        raise BadRecord("request_id used again", detail)

    def decides(self) -> bool:
        """Whether to decide what is open, and again where an engagement comes later, after converting it to the config's schema."""
        return True

    def check_schema(self, pending: Pending) -> None:
        """Refuse an engagement whose request became a dead letter because of its schema."""
        if pending.outdated:
            raise BadRecord("schema", f"its request is a dead letter: {pending.outdated}")


class Rereading(Living):
    """The policy for re-read records. Where a window closed under the config of its time, what is not in `examples` was dropped
    by sampling; all else stays open. Any time is accepted: what was accepted once is accepted again."""

    def __init__(self, spec: JoinSpec, state: JoinState, configs: Sequence[ConfigSince]) -> None:
        super().__init__(spec)
        self.earliest_ms = MIN_TIME_MS
        self._state = state
        self._configs = configs
        self._ours = spec.schema.fingerprint

    def latest_ms(self, appended_at: int) -> int:
        """Return the latest of all, even if ``max_future`` is shorter now."""
        return MAX_TIME_MS

    def is_late(self, closed_at: int, at: int) -> bool:
        """Return False: what was in time once is so again. Requests that were dropped since get their engagements, too."""
        return False

    def waited_before(self, watermark: int) -> int:
        """Go by the configs of then. What is from before counted for a request that is not read again: what waited in vain has a
        dead letter."""
        return waited_before(self._configs, watermark)

    def earlier(self, offset: int) -> Earlier:
        """Look up its config in the commit, and its dead letter among those that were found."""
        config = since_offset(self._configs, offset)[0]
        outdated = self._state.sent.letters(IMPRESSIONS, [offset]).get(offset)
        return Earlier(None if config.fingerprint == self._ours else config, outdated)

    def was_due(self, offset: int, served_at: int, watermark: int) -> bool:
        """Go by the configs since it was taken."""
        return was_due(since_offset(self._configs, offset), served_at, watermark)

    def check_unused(self, request: Request, pending: Pending) -> None:
        """Refuse nothing: the request was taken, so the first had been dropped by then."""

    def decides(self) -> bool:
        """Return False: what was due was decided before, under the config of its time. The rest waits for the recovery's end."""
        return False

    def check_schema(self, pending: Pending) -> None:
        """Refuse nothing: the engagement counted when it was first taken."""
