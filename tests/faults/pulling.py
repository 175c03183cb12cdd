"""A replica's rows as a process of their own, for tests that kill it: a line for every version that it has, and what drifted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from paramserver.files import LocalFiles
from paramserver.follower import Follower
from tests.paramserver.published import replica_tables


def follow(folder: Path) -> None:
    """For ever."""
    follower = Follower(LocalFiles(folder, durable=False), replica_tables("float32"))
    while True:
        before = follower.version
        follower.pull()
        if follower.version != before:
            print(follower.version, follower.drifted(), flush=True)
        time.sleep(0.002)


if __name__ == "__main__":
    follow(Path(sys.argv[1]))
