"""What a replay published is served, as docs/serving.md says it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from stack.ports import free_ports
from tests.commands import ROOT, execute

SERVE = "minutely serve examples/shop/shop.yaml --deltas shop-run/deltas --listen 127.0.0.1:8080"
ASK = (
    "curl -s localhost:8080/v1/rank -H 'Content-Type: application/json' -d "
    '\'{"features": {"user": "u1"}, "candidates": {"ids": ["a", "b"], "features": {"item": ["i17", "i3"]}}}\''
)


def test_what_a_replay_published_is_served(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command in (
        "python examples/shop/make_logs.py shop-logs",
        "minutely replay examples/shop/shop.yaml --out shop-run",
    ):
        done = execute(command, tmp_path)
        assert done.returncode == 0, done.stderr
    port = str(free_ports(1)[0])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    *_, body = shlex.split(ASK)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/rank", body.encode(), {"Content-Type": "application/json"}
    )
    with subprocess.Popen(shlex.split(SERVE.replace("8080", port)), cwd=tmp_path, env=environment) as serving:
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(request, timeout=10) as answer:
                        said = json.loads(answer.read())
                    break
                except OSError:
                    assert serving.poll() is None and time.monotonic() < until
                    time.sleep(0.2)
        finally:
            serving.terminate()
    assert serving.returncode == 0
    assert sorted(said["ids"]) == ["a", "b"] and said["scores"]["click"], said
