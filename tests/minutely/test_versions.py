"""`minutely versions` and `minutely rollback` on a folder of versions."""

from __future__ import annotations

import json
from pathlib import Path

from paramserver.files import LocalFiles
from paramserver.follower import Follower
from tests.commands import execute
from tests.paramserver.test_delta_log import Writer, replica_tables, state_of


def test_versions_are_listed_and_gone_back_to(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path, durable=False)
    writer = Writer(files, 3, seed=1)
    for _ in range(8):
        writer.publish()

    def listed() -> dict[str, dict[str, object]]:
        done = execute(f"minutely versions --deltas {tmp_path} --json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        return {f"{item['kind']} {item['version']}": item for item in found["versions"]} | {"pin": found["pin"]}

    found = listed()
    assert list(found)[:-1] == ["delta 8", "delta 7", "base 6", "delta 6", "delta 5", "delta 4", "base 3"]
    assert found["base 6"]["held_by"][0] == "base"  # type: ignore[index]
    assert "newest" in found["delta 8"]["held_by"]  # type: ignore[operator]
    assert execute(f"minutely versions --deltas {tmp_path}").stdout.count("\n") > 8

    done = execute(f"minutely rollback 5 --deltas {tmp_path}")
    assert done.returncode == 0, done.stderr
    tables = replica_tables()
    follower = Follower(files, tables)
    follower.pull()
    assert follower.version == 9
    assert state_of(tables) == writer.history[5]
    assert listed()["pin"] == 9
    assert execute(f"minutely rollback --release --deltas {tmp_path}").returncode == 0
    assert listed()["pin"] == 0
    assert execute(f"minutely rollback --deltas {tmp_path}").returncode == 2
    gone = execute(f"minutely rollback 2 --deltas {tmp_path}")
    assert gone.returncode == 1
    assert "manifest-000000000002.json" in gone.stderr
