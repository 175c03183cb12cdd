"""What docs/state-format.md says is what a joiner keeps and sends: by a reader that has nothing of Minutely."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import msgspec

from streaming.join.commit import encode_commit
from streaming.join.configs import ConfigSince
from streaming.join.negatives import Negatives
from streaming.join.state import JoinState
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import DeadLetter
from tests.commands import ROOT
from tests.streaming.join import state_reader
from tests.streaming.join.commits import a_commit
from tests.streaming.join.join_lives import FORMAT, SETTINGS, Brokers, World, fill

MEMORY_BYTES = 1 << 20


def test_the_reader_is_small_and_has_nothing_of_minutely() -> None:
    text = (ROOT / "tests/streaming/join/state_reader.py").read_text()
    assert len(text.splitlines()) <= 80
    assert not re.search(r"^(import|from) (basis|streaming|paramserver|trainer|serving|minutely)", text, re.MULTILINE)


def test_the_page_names_what_there_is() -> None:
    page = (ROOT / "docs/state-format.md").read_text()
    for column in FORMAT.schema.names:
        name = column if "." not in column else column.split(".")[0] + ".NAME"
        assert f"`{name}`" in page, column
    assert len(state_reader.HEAD) == page.split("**`head`**")[1].split("**`p`**")[0].count("\n| ") - 1
    assert len(state_reader.CHANGING) == page.split("**`p`**")[1].split("**`r`**")[0].count("\n| ") - 1


def test_the_reader_reads_what_is_committed_with_the_offsets() -> None:
    taken = [ConfigSince(f"{number:016x}", 10**12, 2**33, 2**33, 10**13, 10**13, 10**13) for number in range(8)]
    commit = a_commit((1, 2, 3, 4), configs=tuple(taken))
    found = state_reader.read_commit(encode_commit(commit))
    assert (found["state_id"], found["sequence"], found["published"], found["decided_until"]) == ("a1", 7, 1000, 1500)
    assert list(found["lowest"].values()) == [1, 2, 3, 4]
    assert found["offsets"] == commit.offsets
    assert [ConfigSince(*each) for each in found["configs"]] == taken
    page = (ROOT / "docs/state-format.md").read_text().split("## What is committed")[1].split("## ")[0]
    assert all(f"`{key}`" in page for key in found)


def test_the_reader_reads_every_state_that_a_joiner_leaves(tmp_path: Path) -> None:
    kinds: dict[str, int] = dict.fromkeys(("open", "marker", "waiting", "dropped", "emitted", "events", "known"), 0)
    for late in ("dead_letter", "correct"):
        rng = random.Random(1)
        join = SETTINGS.model_copy(update={"late": late})
        world = World(rng, tmp_path / late, join=join, negatives=Negatives(0.5, 1))
        fill(world.brokers, rng, 150)
        for _ in range(300):
            done = world.live(rng.randrange(1, 12))
            if world.folders[0].exists():
                check_state(world.folders[0], kinds)
            if done:
                break
        check_examples(world.brokers)
    assert all(kinds.values()), f"not seen: {kinds}"


def check_state(folder: Path, kinds: dict[str, int]) -> None:
    found = state_reader.read_state(folder)
    state = JoinState(folder, MEMORY_BYTES)
    try:
        head = state.head
        if head is None:  # it died before its first write
            assert found["head"] is None
            return
        assert list(found["head"].values()) == msgspec.msgpack.decode(msgspec.msgpack.encode(head))
        taken = found["head"]["configs"]  # none while it is made good: what was committed says it
        assert not taken or taken[-1][0] == FORMAT.made_under.fingerprint
        assert found["head"]["schemas"][FORMAT.made_under.fingerprint] == list(FORMAT.made_under)
        assert found["head"]["pending"] == len(found["requests"]) == len(state)
        assert sorted(found["timers"]) == sorted((item["wake_at"], at) for at, item in found["requests"].items())
        for request_id, item in found["requests"].items():
            check_request(item, state.get(request_id), kinds)
        kinds["known"] += len(found["emitted"])
    finally:
        state.close()


def check_request(item: dict[str, Any], pending: Any, kinds: dict[str, int]) -> None:
    assert (item["wake_at"], item["served_at"]) == (pending.wake_at, pending.served_at)
    assert item["has_request"] == (item["record"] is not None) == (pending.request is not None)
    if item["record"] is not None:
        assert item["record"] == msgspec.msgpack.decode(msgspec.msgpack.encode(pending.request))
        assert item["record"]["schema"] == FORMAT.made_under.fingerprint
    ids = item["record"]["impression_ids"] if item["record"] else item["impression_ids"]
    assert ids == pending.impression_ids
    assert item["emitted"] == bytes(pending.emitted) and len(item["emitted"]) == (len(ids) if ids else 0)
    assert {at: [tuple(one) for one in each] for at, each in item["events"].items()} == pending.events
    assert [tuple(one) for one in item["waiting"]] == pending.waiting
    assert (item["offset"], item["outdated"]) == (pending.offset, "") and (item["offset"] < 0) == (
        item["served_at"] < 0
    )
    assert item["digest"] == pending.digest and bool(item["digest"]) == (item["served_at"] >= 0)
    kinds["open"] += 0 in item["emitted"]
    kinds["dropped"] += 255 in item["emitted"]
    kinds["emitted"] += any(0 < times < 255 for times in item["emitted"])
    kinds["marker"] += item["served_at"] >= 0 and not item["has_request"]
    kinds["waiting"] += bool(item["waiting"])
    kinds["events"] += bool(item["events"])


def check_examples(brokers: Brokers) -> None:
    read = 0
    for value in brokers.topics[EXAMPLES]:
        if value is not None:
            batch, watermark = FORMAT.decode(value)
            found, rows = state_reader.read_examples(value)
            assert found == watermark and str(rows) == str(batch.to_pylist())  # a NaN equals none
            read += batch.num_rows
    assert read


def test_the_reader_reads_what_was_refused(tmp_path: Path) -> None:
    state = JoinState(tmp_path / "state", MEMORY_BYTES)
    state.sent.note_letters(
        [
            a_letter(IMPRESSIONS, 7, "feature age differs", accepted=True),
            a_letter(ENGAGEMENTS, 2**40, "no impression", accepted=False),
        ]
    )
    state.close()
    found = state_reader.read_state(tmp_path / "state")
    assert found["refused"] == {(IMPRESSIONS, 7): "feature age differs", (ENGAGEMENTS, 2**40): ""}


def a_letter(topic: str, offset: int, detail: str, *, accepted: bool) -> DeadLetter:
    return DeadLetter(
        topic=topic, partition=0, offset=offset, reason="schema", detail=detail, payload=b"", accepted=accepted
    )
