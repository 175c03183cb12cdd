"""Deltas: their files read back as what was written, and folding them is replaying them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from basis.problems import BadFile
from paramserver.delta import TableDelta, decode, decode_rows, encode_rows, encode_state
from paramserver.fold import fold
from tests.paramserver.published import COLUMNS, DIMS, MemoryFiles, Writer, make_rows

Replayed = dict[str, dict[int | str, tuple[bytes, bytes, int, int, int]]]


def replay(deltas: list[dict[str, TableDelta]]) -> Replayed:
    """What deltas come to, one row at a time."""
    out: Replayed = {name: {} for name in DIMS}
    for delta in deltas:
        for name, part in delta.items():
            rows = part.rows
            for key in rows.expired.tolist():
                out[name].pop(key, None)
            for at, key in enumerate(rows.ids.tolist()):
                state = (rows.embeddings[at].tobytes(), rows.state[at].tobytes())
                out[name][key] = (*state, int(rows.last_seen_seconds[at]), int(rows.counts[at]), int(part.versions[at]))
            out[name]["default"] = (rows.default_embedding.tobytes(), rows.default_state.tobytes(), 0, 0, 0)
    return out


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_folding_is_the_same_as_replaying(epochs: int, seed: int) -> None:
    writer = Writer(MemoryFiles(), 1000, seed)
    deltas = []
    for version in range(1, epochs + 1):
        writer.learn()
        epoch = writer.seal()
        delta = {name: TableDelta(rows, np.full(len(rows.ids), version)) for name, rows in epoch.items()}
        files = encode_rows(delta), encode_state(delta)
        deltas.append(decode("rows", files[0], "state", files[1]))
    folded = fold(deltas)
    assert replay([folded]) == replay(deltas)
    for part in folded.values():
        assert (np.diff(part.rows.ids) > 0).all(), "by ascending id, as a table exports them"
    assert replay([fold([fold(deltas[:at]), *deltas[at:]]) for at in [max(1, epochs // 2)]]) == replay(deltas)


def test_a_rows_file_reads_back_in_every_shape() -> None:
    delta = {
        "empty": TableDelta(make_rows([], [], dim=4), np.empty(0, np.int64)),
        "gone": TableDelta(make_rows([], [7, 8], dim=1), np.empty(0, np.int64)),
        "both": TableDelta(make_rows([-5, 2**62], [2**62], dim=3), np.array([1, 2])),
    }
    back = decode("rows", encode_rows(delta), "state", encode_state(delta))
    assert list(back) == list(delta)
    for name, part in delta.items():
        for column in (*COLUMNS, "expired"):
            ours, theirs = getattr(part.rows, column), getattr(back[name].rows, column)
            assert theirs.dtype == ours.dtype
            assert np.array_equal(theirs, ours), (name, column)
        assert np.array_equal(back[name].versions, part.versions)


def test_files_that_do_not_belong_together_are_refused() -> None:
    versions = np.array([1, 1])
    one = {"item": TableDelta(make_rows([1, 2], [], dim=2), versions)}
    other = {"user": TableDelta(make_rows([1, 2], [], dim=2), versions)}
    shorter = {"item": TableDelta(make_rows([1], [], dim=2), versions[:1])}
    wide = replace(make_rows([1, 2], [], dim=2), default_state=np.zeros(2, np.float32))
    for wrong in (other, shorter, {"item": TableDelta(wide, versions)}):
        with pytest.raises(BadFile, match="the-state"):
            decode("the-rows", encode_rows(one), "the-state", encode_state(wrong))
    with pytest.raises(BadFile, match="the-rows"):
        decode_rows("the-rows", encode_state(one))
    wide = replace(make_rows([1, 2], [], dim=2), default_embedding=np.zeros(3, np.float32))
    with pytest.raises(BadFile, match="a default row of 3 values, rows of 2"):
        decode_rows("the-rows", encode_rows({"item": TableDelta(wide, versions)}))
    with pytest.raises(BadFile, match="the-rows"):
        decode_rows("the-rows", b"nothing of the kind")
