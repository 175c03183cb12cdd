"""A log in a place that strangers can write to: with a key, replicas take nothing that was not signed with it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basis.problems import BadFile
from paramserver.follower import Follower
from paramserver.manifest import manifest_name
from paramserver.signed_files import SignedFiles
from tests.paramserver.published import MemoryFiles, Writer, replica_tables, state_of

KEY, OTHER = b"k" * 32, b"o" * 32


def test_who_has_the_key_follows() -> None:
    under = MemoryFiles()
    writer = Writer(SignedFiles(under, KEY), keep_deltas=3)
    tables = replica_tables()
    follower = Follower(SignedFiles(under, KEY), tables)
    for _ in range(8):
        writer.publish()
        follower.pull()
        assert follower.version == writer.log.version
        assert state_of(tables) == writer.history[follower.version]


@pytest.mark.parametrize("forger", ["without a key", "with another key"])
def test_a_version_of_a_stranger_is_refused(forger: str) -> None:
    """The stranger goes on from the very state of the writer, so everything but the signature fits."""
    under, seen = MemoryFiles(), MemoryFiles()
    writers = [
        Writer(SignedFiles(under, KEY), 1000),
        Writer(seen if forger == "without a key" else SignedFiles(seen, OTHER), 1000),
    ]
    for writer in writers:
        writer.publish()
    tables = replica_tables()
    follower = Follower(SignedFiles(under, KEY), tables)
    follower.pull()
    before = state_of(tables)
    writers[1].publish()
    forged = {name: data for name, data in seen.content.items() if name not in under.content}
    assert manifest_name(2, base=False) in forged
    under.content.update(forged)
    with pytest.raises(BadFile, match=r"manifest-000000000002\.json: not signed with the key in MINUTELY_DELTAS_KEY"):
        follower.pull()
    assert follower.version == 1
    assert state_of(tables) == before


def test_a_signed_file_is_none_under_another_name() -> None:
    under = MemoryFiles()
    files = SignedFiles(under, KEY)
    files.write("pin.json", b"content")
    under.content["hold.json"] = under.content["pin.json"]
    assert files.read("pin.json") == b"content"
    with pytest.raises(BadFile, match=r"hold\.json"):
        files.read("hold.json")


@settings(max_examples=100)
@given(st.binary(max_size=40), st.data())
def test_whatever_is_changed_is_refused(content: bytes, data: st.DataObject) -> None:
    under = MemoryFiles()
    files = SignedFiles(under, KEY)
    files.write("file", content)
    signed = under.content["file"]
    at = data.draw(st.integers(0, len(signed) - 1))
    changed = data.draw(
        st.sampled_from([signed[:at], signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :], signed + b"\0", b""])
    )
    under.content["file"] = changed
    with pytest.raises(BadFile, match="file: not signed"):
        files.read("file")
