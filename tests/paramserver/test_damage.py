"""A follower and damaged or missing files: what is wrong is named, and what is there stays one version, whole."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import msgspec
import numpy as np
import pytest

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta import TableDelta, encode_rows, encode_state
from paramserver.follower import Follower
from paramserver.manifest import Manifest
from paramserver.table import Table
from tests.paramserver.published import DIMS, at_version, flipped, make_rows, published, replica_tables, state_of


@pytest.mark.parametrize("damage", ["flip", "cut off", "longer", "empty"])
def test_a_damaged_rows_file_is_named_and_changes_nothing(damage: str) -> None:
    files, writer = published(4)
    follower, tables = at_version(files, 2)
    name = manifests.read_manifest(files, 3, base=False).shards[0].rows.name
    good = files.content[name]
    for at in range(0, len(good), 97):
        bad = {"flip": flipped(good, at), "cut off": good[:at], "longer": good + b"\0", "empty": b""}[damage]
        files.content[name] = bad
        with pytest.raises(BadFile, match=name):
            follower.pull()
        assert follower.version == 2
        assert state_of(tables) == writer.history[2]
    files.content[name] = good
    follower.pull()
    assert state_of(tables) == writer.history[4]


@pytest.mark.parametrize("at_base", [False, True])
def test_a_damaged_manifest_is_named_and_changes_nothing(at_base: bool) -> None:
    """Whatever byte it is: a wrong number in it would otherwise be followed."""
    files, writer = published(4, keep=4 if at_base else 1000)
    version = 4 if at_base else 3
    name = manifests.manifest_name(version, base=at_base)
    good = files.content[name]
    if at_base:
        for old in range(1, 4):
            files.delete(manifests.manifest_name(old, base=False))
    missed = []
    for at in range(len(good)):
        files.content[name] = good
        follower, tables = (Follower(files, replica_tables()), {}) if at_base else at_version(files, 2)
        files.content[name] = flipped(good, at)
        with patch.object(files, "read", at_most(50, files.read)):
            try:
                follower.pull()
                outcome = "went on"
            except BadFile as error:
                outcome = "refused" if name in str(error) else "another file named"
            except OSError:
                outcome = "another file missed"
            except TooOften:
                outcome = "no end"
        if outcome != "refused":
            missed.append((outcome, flipped(good, at)[max(0, at - 20) : at + 10]))
        elif not at_base:
            assert state_of(tables) == writer.history[2]
    outcomes = dict(missed)
    assert not missed, f"{len(missed)} of {len(good)} flips were not refused by name, such as {outcomes}"


class TooOften(Exception):
    """Something was done more often than it can be needed."""


def at_most(times: int, do: Callable[[str], bytes]) -> Callable[[str], bytes]:
    def counted(name: str) -> bytes:
        nonlocal times
        times -= 1
        if times < 0:
            raise TooOften(name)
        return do(name)

    return counted


def test_a_manifest_under_another_version_s_name_is_refused() -> None:
    files, _ = published(4)
    follower, _ = at_version(files, 2)
    files.content[manifests.manifest_name(3, base=False)] = files.content[manifests.manifest_name(4, base=False)]
    with pytest.raises(BadFile, match="manifest-000000000003"):
        follower.pull()
    assert follower.version == 2


def test_a_manifest_of_a_later_format_is_refused() -> None:
    files, writer = published(1)
    assert writer.log.newest is not None
    files.delete(manifests.manifest_name(1, base=False))
    manifests.write_manifest(files, msgspec.structs.replace(writer.log.newest, format=manifests.FORMAT + 1))
    with pytest.raises(BadFile, match=f"format {manifests.FORMAT + 1}"):
        Follower(files, replica_tables()).pull()


def test_a_newer_base_leads_past_a_damaged_delta() -> None:
    """`pull` raises only where no other way leads past the damage."""
    files, writer = published(4)
    follower, tables = at_version(files, 2)
    writer.log.fold()
    name = manifests.read_manifest(files, 3, base=False).shards[0].rows.name
    files.content[name] = flipped(files.content[name], 50)
    follower.pull()
    assert follower.version == 4
    assert state_of(tables) == writer.history[4]


def test_a_base_alone_is_enough_to_start_from() -> None:
    files, writer = published(4)
    writer.log.fold()
    for version in range(1, 5):
        files.delete(manifests.manifest_name(version, base=False))
    follower = Follower(files, tables := replica_tables())
    follower.pull()
    assert follower.version == 4
    assert state_of(tables) == writer.history[4]


def test_a_follower_of_other_tables_is_told_so() -> None:
    files, _ = published(2)
    wide = {"user": Table(8, name="user"), "item": Table(2, name="item")}
    with pytest.raises(BadFile, match="table user: rows of 3 values, this replica's have 8"):
        Follower(files, wide).pull()
    assert not len(wide["item"])
    partial = {"item": Table(2, name="item")}
    Follower(files, partial).pull()
    assert len(partial["item"]), "a replica may hold some of the tables only"


def test_a_replica_that_does_not_descend_from_the_parent_starts_over() -> None:
    """After a rollback the next version's parent is an older one."""
    files, _ = published(3)
    follower, tables = at_version(files, 3)
    rows = {name: make_rows([99], [], dim) for name, dim in DIMS.items()}
    delta = {name: TableDelta(part, np.array([4])) for name, part in rows.items()}
    names = {"rows": encode_rows(delta), "state": encode_state(delta)}
    refs = {}
    for kind, data in names.items():
        files.write(f"rolled.{kind}", data)
        refs[kind] = manifests.FileRef.of(f"rolled.{kind}", data)
    shard = manifests.Shard(rows=refs["rows"], state=refs["state"], changed=2, expired=0)
    for version, parent in ((4, -1), (4, 2)):
        manifests.write_manifest(
            files,
            Manifest(
                version=version,
                parent=parent,
                watermark=0,
                published_at=0,
                fingerprint="form",
                shards=[shard],
                offsets={},
            ),
        )
    follower.pull()
    assert follower.version == 4
    assert {name: table.export().ids.tolist() for name, table in tables.items()} == {"user": [99], "item": [99]}
