"""What a request holds beyond the config's features may be anything: nobody checks it, so nothing reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streaming.join.settings import JoinSettings
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import FORMAT_VERSION, Request, encode
from tests.streaming.join.changing import (
    BEFORE,
    END,
    ENDED,
    LABELS,
    PACKED,
    START,
    TAKEN_OVER,
    Pipeline,
    both_of,
    done,
)
from tests.streaming.join.join_world import CLICK, R1, arrived, make_joiner, request_record

LARGE = bytes(80_000)
HOSTILE: dict[str, Any] = {
    "no lengths": {"tags": (b"", LARGE)},
    "half a length": {"tags": (b"abc", LARGE)},
    "a length too few": {"tags": (np.array([10_000], "<i4").tobytes(), LARGE)},
    "lists of two counts": {
        "tags": (np.array([1, 2], "<i4").tobytes(), LARGE),
        "more": (np.array([1, 2, 3], "<i4").tobytes(), LARGE),
    },
    "negative lengths": {"tags": (np.array([-(2**31)] * 2, "<i4").tobytes(), LARGE)},
    "large lengths": {"tags": (np.array([2**31 - 1] * 2, "<i4").tobytes(), LARGE)},
    "no list": {"tags": LARGE},
}

PACKED_R1: dict[str, Any] = {
    **{name: PACKED[name] for name in ("item", "price", "embedding")},
    "tags": (np.zeros(2, "<i4").tobytes(), b""),
}


@pytest.mark.parametrize("unknown", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("scope", ["shared", "features"])
def test_a_request_takes_the_room_of_what_becomes_of_it(scope: str, unknown: dict[str, Any]) -> None:
    rooms = []
    for columns in ({}, {f"unknown {name}": each for name, each in unknown.items()}):
        core = make_joiner(CLICK)
        fields = {"shared": {"user": np.int64(1000).tobytes()}, "features": PACKED_R1}
        core.add(IMPRESSIONS, arrived(0, request_record(R1, **{**fields, scope: {**fields[scope], **columns}})))
        core.advance(END)
        rooms.append(core._output.room)
        output = core.drain()
        assert not output.dead_letters and sum(batch.num_rows for batch in output.examples) == 2
    assert rooms[0] == rooms[1]


@pytest.mark.parametrize("unknown", HOSTILE.values(), ids=HOSTILE)
def test_a_config_that_knows_it_later_checks_it_before_it_reads_it(unknown: dict[str, Any], tmp_path: Path) -> None:
    """One request is out when the state is lost, and kept for corrections; one is open."""
    pipeline = Pipeline(tmp_path)
    spec = pipeline.world.spec
    pipeline.world.spec = spec._replace(settings=JoinSettings(lateness="10s", late="correct"))
    join = pipeline.start(BEFORE)
    pipeline.take(join, IMPRESSIONS, _request(2, START, unknown), _request(4, START + 5000, unknown))
    pipeline.take(join, ENGAGEMENTS, *(done(2, action, START + 10) for action in LABELS))
    join.step(ENDED, START + 13_000, 0)
    assert pipeline.names() == both_of(2)
    pipeline.stop()
    shutil.rmtree(pipeline.folder)
    join = pipeline.start(TAKEN_OVER["a list added"])
    for at in (START + 13_500, END, END + 20_000):
        join.step(ENDED, at, 0)
    pipeline.stop()
    assert pipeline.letters() == [("schema", "impressions")] and pipeline.names() == both_of(2)


def _request(number: int, served_at: int, unknown: dict[str, Any]) -> bytes:
    return encode(
        Request(
            version=FORMAT_VERSION,
            request_id=f"r{number}",
            served_at=served_at,
            impression_ids=[f"{number}.0", f"{number}.1"],
            shared={"user": PACKED["user"]},
            features={**{name: PACKED[name] for name in ("item", "price", "embedding")}, **unknown},
        )
    )
