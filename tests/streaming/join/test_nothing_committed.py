"""A joiner that finds no commit, or a state that it cannot use: it begins where nobody was, and nowhere else."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streaming.join.commit import UnknownPlaceError
from streaming.join.state import JoinState
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import encode
from tests.streaming.join.changing import BEFORE, END, ENDED, FEATURES, START, Pipeline, done, request
from tests.streaming.join.join_lives import Brokers


def joined(folder: Path) -> Pipeline:
    """A pipeline that has emitted two requests, and has one open."""
    pipeline = Pipeline(folder)
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, *(request(number, START, FEATURES) for number in (2, 4)))
    join.step(ENDED, START + 100, 0)
    join.step(ENDED, START + 5000, 0)
    pipeline.take(join, IMPRESSIONS, request(6, START + 5000, FEATURES))
    pipeline.take(join, ENGAGEMENTS, done(6, "like", START + 5100))
    join.step(ENDED, START + 5200, 0)
    pipeline.stop()
    return pipeline


def test_who_committed_once_does_not_begin_from_nothing(tmp_path: Path) -> None:
    """Offsets expire, and so may all of examples, while inputs hold older records."""
    pipeline = joined(tmp_path)
    pipeline.world.brokers.committed = None
    examples = pipeline.world.brokers.topics[EXAMPLES]
    with pytest.raises(UnknownPlaceError, match="examples holds records"):
        pipeline.start(BEFORE)
    examples[:] = [None] * len(examples)
    with pytest.raises(UnknownPlaceError, match="folder is of one that committed"):
        pipeline.start(BEFORE)


def test_another_prefix_begins_anew_in_the_same_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the message advises. Until it begins, the state is there for who goes back to the topics that it is of."""
    pipeline = joined(tmp_path)
    was, pipeline.world.brokers = pipeline.world.brokers, Brokers()
    pipeline.world.prefix = "new."
    pipeline.world.brokers.topics[EXAMPLES] += was.topics[EXAMPLES]
    with pytest.raises(UnknownPlaceError, match="examples holds records"):
        pipeline.start(BEFORE)
    assert pipeline.state is not None and pipeline.state.head is not None and pipeline.state.head.prefix == ""
    pipeline.world.brokers = Brokers()
    join = pipeline.start(BEFORE)
    assert "its folder holds a state of topics with kafka.prefix '', and ours is 'new.': discarding" in caplog.text
    assert join.pending == 0
    pipeline.take(join, IMPRESSIONS, request(8, START, FEATURES))
    join.step(ENDED, START + 100, 0)
    caplog.clear()
    join = pipeline.start(BEFORE)
    assert (join.pending, caplog.text) == (1, "")
    pipeline.world.brokers, pipeline.world.prefix = was, ""
    join = pipeline.start(BEFORE)
    join.step(ENDED, END, 0)
    join.step(ENDED, END + 1000, 0)
    assert sorted(pipeline.names()) == [f"r{number}/{number}.{at}" for number in (2, 4, 6) for at in (0, 1)]
    pipeline.stop()


def test_who_begins_where_others_were_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = joined(tmp_path)
    pipeline.world.brokers.committed = None
    examples = pipeline.world.brokers.topics[EXAMPLES]
    examples[:] = [None] * len(examples)
    pipeline.world.brokers.begins[EXAMPLES] = len(examples)
    pipeline.stop()
    shutil.rmtree(pipeline.folder)
    with caplog.at_level(logging.WARNING):
        join = pipeline.start(BEFORE)
    assert f"examples is empty, held records up to offset {len(examples)} once" in caplog.text
    pipeline.take(join, IMPRESSIONS)
    pipeline.take(join, ENGAGEMENTS)
    join.step(ENDED, END, 0)
    join.step(ENDED, END + 1000, 0)
    assert len(pipeline.names()) == 6
    pipeline.stop()


def test_a_new_joiner_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = Pipeline(tmp_path)
    with caplog.at_level(logging.WARNING):
        pipeline.start(BEFORE)
    assert caplog.text == ""
    pipeline.stop()


def _without(topic: str) -> Callable[[Any], None]:
    return lambda head: head.offsets.pop(topic)


HEADS: dict[str, Callable[[Any], Any]] = {
    "no offset of an input": _without(IMPRESSIONS),
    "no offset of an output": _without(EXAMPLES),
    "an older one without an offset": lambda head: (head.offsets.pop(EXAMPLES), setattr(head, "sequence", 1)),
    "no configs": lambda head: setattr(head, "configs", []),
    "no rebuild points": lambda head: setattr(head, "rebuild_points", []),
    "a rebuild point without an offset": lambda head: head.rebuild_points[0].offsets.pop(EXAMPLES),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_lacks_something_is_rebuilt_from(name: str, tmp_path: Path) -> None:
    pipeline = joined(tmp_path)
    state = JoinState(pipeline.folder, 1 << 20)
    assert state.head is not None
    HEADS[name](state.head)
    batch = state._db.batch()
    batch.put(b"head", encode(state.head))
    state._db.write(batch)
    state.close()
    join = pipeline.start(BEFORE)
    join.step(ENDED, END, 0)
    join.step(ENDED, END + 1000, 0)
    assert sorted(pipeline.names()) == [f"r{number}/{number}.{at}" for number in (2, 4, 6) for at in (0, 1)]
    pipeline.stop()


def test_a_state_of_another_version_stays_until_it_is_rebuilt(tmp_path: Path) -> None:
    """Who goes back to the program that wrote it has it still, where this one cannot read the commit either."""
    pipeline = joined(tmp_path)
    state = JoinState(pipeline.folder, 1 << 20)
    packed: Any = state._db.get(b"p" + b"r6")
    batch = state._db.batch()
    batch.put(b"head", b"\x93\x01\x02\x03")
    state._db.write(batch)
    state.close()
    committed, pipeline.world.brokers.committed = pipeline.world.brokers.committed, '{"version":2,"id":"a"}'
    with pytest.raises(UnknownPlaceError, match="another version of Minutely committed last"):
        pipeline.start(BEFORE)
    pipeline.stop()
    state = JoinState(pipeline.folder, 1 << 20)
    assert (state.head, state._db.get(b"p" + b"r6")) == (None, packed)
    state.close()
    pipeline.world.brokers.committed = committed
    join = pipeline.start(BEFORE)
    join.step(ENDED, END, 0)
    assert len(pipeline.names()) == 6
    pipeline.stop()
