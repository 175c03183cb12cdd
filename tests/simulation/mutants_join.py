"""Faults planted in the joiner, for `tests.simulation.mutants`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import msgspec
from msgspec.structs import replace

from basis.decoding import why
from streaming.join import core as join_core
from streaming.join import recovery as join_recovery
from streaming.join.commit import Committed
from streaming.join.core import Joiner
from streaming.join.negatives import Negatives
from streaming.join.output import JoinOutput, Output
from streaming.join.partition import JoinPartition
from streaming.join.policy import Rereading
from streaming.join.recovery import Recovery, Restored
from streaming.join.sent import Sent
from streaming.join.service import JoinService
from streaming.join.state import Head, JoinState
from streaming.join.upgrades import Upgrades
from streaming.join.watermark import Reached
from streaming.log import IMPRESSIONS
from streaming.loop.brokers import Fetched, OutputRecord
from streaming.loop.service import Member
from streaming.records import json_requests
from streaming.records.events import BadRecord, Request
from streaming.records.examples import Published
from tests.simulation.brokers import HistoryOf
from tests.simulation.planting import wrap
from tests.simulation.world import World


def offsets_committed_before_the_outbox() -> Any:
    def make(send: Any) -> Any:
        def changed(self: JoinPartition) -> None:
            outbox, self._outbox = self._outbox, []
            send(self)
            if outbox:
                self._outbox = outbox
                send(self)

        return changed

    return wrap(JoinPartition, "_send", make)


def _resumed(before: Callable[[JoinPartition, Committed], None]) -> Any:
    """Something else happens to a joiner that lives when it finds out how its last transaction ended."""

    def make(recover: Any) -> Any:
        def changed(self: JoinPartition) -> Generator[None]:
            outlet: Any = self._outlet
            committed = outlet.open()
            if self._restored and committed is not None and committed.state_id == self._head.state_id:
                before(self, committed)
            yield from recover(self)

        return changed

    return wrap(JoinPartition, "recover", make)


def outbox_sent_again_whatever_the_sequence() -> Any:
    def before(self: JoinPartition, committed: Committed) -> None:
        if self._outbox is not None and committed.sequence == self._head.sequence:
            self._head.sequence += 1

    return _resumed(before)


def outbox_not_sent_again() -> Any:
    def before(self: JoinPartition, committed: Committed) -> None:
        if self._outbox is not None and committed.sequence == self._head.sequence - 1:
            self._outbox = []

    return _resumed(before)


@contextmanager
def state_is_written_before_its_transaction_and_believed() -> Iterator[None]:
    send, leads_to = JoinPartition._send, Recovery._leads_to

    def written(self: JoinPartition) -> None:
        self.state.write(self._head)
        send(self)

    def believed(self: Recovery, head: Head, committed: Committed) -> bool:
        return leads_to(self, head, replace(committed, sequence=max(head.sequence, committed.sequence)))

    with patch.object(JoinPartition, "_send", written), patch.object(Recovery, "_leads_to", believed):
        yield


def older_state_goes_on_as_it_is() -> Any:
    def make(go_on: Any) -> Any:
        def changed(self: Recovery, head: Head, committed: Committed) -> Generator[None, None, Restored]:
            restored: Restored = yield from go_on(self, head, replace(committed, sequence=head.sequence))
            return restored

        return changed

    return wrap(Recovery, "_go_on", make)


def entries_do_not_learn_what_was_emitted() -> Any:
    return patch.object(join_recovery, "note_examples", lambda state, published: None)


def a_batch_is_as_large_as_what_is_due() -> Any:
    return patch.object(Output, "add", lambda self, decided, size: self._ready.append(decided))


def state_id_not_checked() -> Any:
    return patch.object(World, "new_id", lambda self: "always this one")


def state_written_in_two_batches() -> Any:
    def make(write: Any) -> Any:
        def changed(self: JoinState, head: Head) -> None:
            dirty, dropped, memory = self._dirty, self._dropped, self.memory_bytes
            self._dirty, self._dropped, self.memory_bytes = set(), {}, 1 << 40
            write(self, head)
            self._dirty, self._dropped, self.memory_bytes = dirty, dropped, memory
            write(self, head)

        return changed

    return wrap(JoinState, "write", make)


def emitted_ids_not_read_again() -> Any:
    return patch.object(Sent, "emitted", lambda self, request_id, served_at, ids: bytearray(len(ids)))


@contextmanager
def impressions_known_by_id_and_time() -> Iterator[None]:
    """As all were before: of two requests of one millisecond that show the same item, a crash loses an example."""

    def noted(self: Sent, published: Published) -> None:
        known = [(name.partition("/")[2], served_at, revision) for name, served_at, revision in published.examples]
        note(self, Published(1, known))

    note = Sent.note_emitted
    with patch.object(Sent, "note_emitted", noted):
        yield


def negatives_by_impression_id() -> Any:
    return wrap(Negatives, "keeps", lambda keeps: lambda self, name: keeps(self, name.partition("/")[2]))


def late_requests_vanish() -> Any:
    def make(refuse: Any) -> Any:
        def changed(
            self: Joiner, topic: str, offset: int, payload: bytes, bad: BadRecord, *, accepted: bool = False
        ) -> None:
            if (topic, bad.reason) != (IMPRESSIONS, "late"):
                refuse(self, topic, offset, payload, bad, accepted=accepted)

        return changed

    return wrap(Joiner, "_refuse", make)


def refusals_are_not_read_again() -> Any:
    return patch.object(Sent, "note_letters", lambda self, letters: None)


def _stepped(change: Callable[[JoinService, Member[JoinPartition], int], int]) -> Any:
    """Before the service steps a member something happens to it, which gives the time (ms) that ends are as of."""

    def make(step: Any) -> Any:
        def changed(self: JoinService, member: Member[JoinPartition], ends: Any, as_of_ms: int) -> bool:
            stepped: bool = step(self, member, ends, change(self, member, as_of_ms))
            return stepped

        return changed

    return wrap(JoinService, "_step", make)


def marks_of_transactions_are_waited_for() -> Any:
    def change(self: JoinService, member: Member[JoinPartition], as_of_ms: int) -> int:
        member.read_to.clear()
        return as_of_ms

    return _stepped(change)


def an_end_is_as_of_the_time_after_the_read() -> Any:
    return _stepped(lambda self, member, as_of_ms: self._clock.now_ms())


def what_was_on_its_way_is_taken_again() -> Any:
    """Records from before a position are taken like others: to the service it seems to be where they begin."""

    def make(take: Any) -> Any:
        def changed(self: JoinService) -> None:
            read = self._brokers.read

            def placed() -> Fetched:
                fetched = read()
                for (topic, partition), records in fetched.records.items():
                    if (member := self._positioned(partition)) is not None:
                        member.work._offsets[topic] = min(member.work.offsets[topic], records[0].offset)
                return fetched

            with patch.object(self._brokers, "read", placed):
                take(self)

        return changed

    return wrap(JoinService, "_take", make)


def what_is_behind_an_open_transaction_is_not_waited_for() -> Any:
    """A rebuild takes what may be read now for all that was sent, and sends the rest again."""

    def make(end: Any) -> Any:
        def changed(self: HistoryOf, topic: str) -> int:
            return min(end(self, topic), self._brokers.topics[topic, self._partition].stable)

        return changed

    return wrap(HistoryOf, "end", make)


def a_transaction_of_unknown_end_is_taken_for_committed() -> Any:
    def make(broken: Any) -> Any:
        def changed(self: JoinService, member: Member[JoinPartition], error: Exception) -> None:
            if member.positioned:
                member.retry.failed(error)
            else:
                broken(self, member, error)

        return changed

    return wrap(JoinService, "_broken", make)


def rebuild_sends_what_was_sent() -> Any:
    def make(drain: Any) -> Any:
        def changed(self: Joiner) -> JoinOutput:
            return JoinOutput([], [], []) if isinstance(self.policy, Rereading) else drain(self)

        return changed

    return wrap(Joiner, "drain", make)


def rebuild_begins_one_point_too_late() -> Any:
    def make(send: Any) -> Any:
        def changed(self: JoinPartition) -> None:
            outlet = self._outlet
            sends = outlet.send

            def late(items: Sequence[OutputRecord], commit: Committed) -> Mapping[str, int]:
                return sends(items, replace(commit, lowest=self._head.rebuild_points[-1].offsets))

            with patch.object(outlet, "send", late):
                send(self)

        return changed

    return wrap(JoinPartition, "_send", make)


def timer_closes_windows_while_input_is_unread() -> Any:
    def make(watermark: Any) -> Any:
        return lambda self, ended, as_of_ms: watermark(self, dict.fromkeys(ended, True), as_of_ms)

    return wrap(Reached, "watermark", make)


def a_request_id_used_again_is_a_repeat() -> Any:
    return patch.object(join_core, "xxh3_64_intdigest", lambda payload: 1)


def a_record_moves_the_watermark_as_far_as_it_claims() -> Any:
    def make(take: Any) -> Any:
        return lambda self, topic, claimed_ms, appended_at: take(self, topic, claimed_ms, claimed_ms)

    return wrap(Reached, "take", make)


def rebuild_begins_by_how_far_the_watermark_may_come() -> Any:
    """Not by the newest event taken: what is far ahead is not read again, though it is still pending."""

    def make(take: Any) -> Any:
        def changed(self: Reached, topic: str, claimed_ms: int, appended_at: int) -> None:
            take(self, topic, claimed_ms, appended_at)
            self.newest = max(self.inputs.values())

        return changed

    return wrap(Reached, "take", make)


def watermark_told_while_more_is_due() -> Any:
    def make(advance: Any) -> Any:
        def changed(self: Joiner, watermark: int, at_most: int | None = None) -> bool:
            advance(self, watermark, at_most)
            return True

        return changed

    return wrap(Joiner, "advance", make)


def pending_requests_are_not_taken_over() -> Any:
    return patch.object(Joiner, "_take_over", lambda self, request_id, pending: None)


@contextmanager
def refusals_of_a_rebuild_are_drained() -> Iterator[None]:
    """What is read again is judged by the new config, and its dead letter passed over with those that were sent before."""

    def judged(self: Upgrades, request: Request, fingerprint: str) -> None:
        self.accept(request, None)

    def passed_over(self: Recovery, restored: Restored, committed: Committed) -> None:
        restored.joiner.drain()
        pass_over(self, restored, committed)

    pass_over = Recovery._pass_over
    with patch.object(Upgrades, "_accept_again", judged), patch.object(Recovery, "_pass_over", passed_over):
        yield


def engagements_wait_without_bound() -> Any:
    return patch.object(Joiner, "_check_waiting", lambda self, request_id, pending, size: None)


def decoding_catches_a_list_of_types() -> Any:
    @contextmanager
    def listed(refusal: Callable[[str], Exception], *passes: type[Exception]) -> Iterator[None]:
        try:
            yield
        except passes:
            raise
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise refusal(why(error)) from None

    return patch.object(json_requests, "refusing", listed)
