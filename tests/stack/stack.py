"""`make stack`: what docker-compose.yml says, as local processes, without Docker.

Commands, environment, dependencies and restarts are the file's; Kafka's image is replaced by the same version's server from
Maven, host names and ports by loopback ports, and named volumes by folders.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import yaml

from tests.commands import ROOT
from tests.kafka.broker import Cluster, free_ports, kafka_version

_PROGRAMS = Path(sys.executable).parent
_KAFKA = "kafka"
_IMAGE = "apache/kafka:"
_KAFKA_PORT = "9092"
_METRICS = "0.0.0.0:9464"
_SETTING = "KAFKA_"
_STOP_SECONDS = 60
_RESTART_SECONDS = 1.0
_OURS = ("NODE_ID", "PROCESS_ROLES", "CONTROLLER_QUORUM_VOTERS", "LISTENERS", "ADVERTISED_LISTENERS", "LOG_DIRS")
"""Settings of the broker that say where it is; here they are local."""


def read_compose() -> dict[str, Any]:
    """The compose file."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


class Stack:
    """All services of the compose file without a profile; ``folder`` takes what the volumes would."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._folder = folder
        compose = read_compose()
        self._services: dict[str, Any] = compose["services"]
        image = self._services[_KAFKA]["image"]
        assert image == _IMAGE + kafka_version(), f"{image}, but tests/kafka/pom.xml has {kafka_version()}"
        settings = {
            name.removeprefix(_SETTING).lower().replace("_", "."): str(value)
            for name, value in self._services[_KAFKA]["environment"].items()
            if name.removeprefix(_SETTING) not in _OURS
        }
        self._cluster = Cluster(folder / _KAFKA, extra=settings, port=port)
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.metrics = dict(zip(self._services, free_ports(len(self._services)), strict=True))
        self.bootstrap = self._cluster.bootstrap

    @property
    def names(self) -> list[str]:
        """The services that are processes of ours."""
        return [name for name, service in self._services.items() if name != _KAFKA and "profiles" not in service]

    def start(self) -> None:
        """Kafka first, since the others depend on it being healthy, then the others."""
        assert all(
            self._services[name]["depends_on"] == {_KAFKA: {"condition": "service_healthy"}} for name in self.names
        )
        self._cluster.start()
        for name in self.names:
            self.start_one(name)

    def start_one(self, name: str) -> None:
        """Start one service beside the others, as `docker compose run` or `up` does."""
        thread = threading.Thread(target=self._keep_running, args=(name,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One service to its end, as `docker compose run` does, with other arguments where given."""
        return subprocess.run(
            self._command(name, list(arguments)), env=self._environment(name), cwd=ROOT, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def volume(self, path: str) -> Path:
        """Where a service's folder is here."""
        return self._folder / "volumes" / path.strip("/")

    def stop(self) -> None:
        """End everything, in order."""
        self._stopping.set()
        for process in list(self._processes.values()):
            process.send_signal(signal.SIGTERM)
        for thread in self._threads:
            thread.join(_STOP_SECONDS)
        for process in self._processes.values():
            process.kill()
        self._cluster.stop()

    def _keep_running(self, name: str) -> None:
        """Start a service again when it ends, as its restart policy says."""
        again = self._services[name].get("restart") == "unless-stopped"
        while not self._stopping.is_set():
            process = subprocess.Popen(
                self._command(name, []), env=self._environment(name), cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self._processes[name] = process
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    print(f"{name:>8} | {line}", end="", flush=True)
            print(f"{name:>8} | ended with status {process.wait()}", flush=True)
            if not again:
                return
            self._stopping.wait(_RESTART_SECONDS)

    def _command(self, name: str, instead: list[str]) -> list[str]:
        arguments = instead or [str(part) for part in self._services[name]["command"]]
        return [str(_PROGRAMS / "minutely"), *(self._local(name, part) for part in arguments)]

    def _local(self, name: str, part: str) -> str:
        if part == _METRICS:
            return f"127.0.0.1:{self.metrics[name]}"
        targets = [volume.split(":")[1] for volume in self._services[name].get("volumes", [])]
        return str(self.volume(part)) if part in targets else part

    def _environment(self, name: str) -> dict[str, str]:
        wanted = {key: str(value) for key, value in self._services[name]["environment"].items()}
        local = {key: value.replace(f"{_KAFKA}:{_KAFKA_PORT}", self.bootstrap) for key, value in wanted.items()}
        return {**os.environ, **local}


def main() -> None:
    """Run the stack until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="minutely-stack-") as folder:
        stack = Stack(Path(folder), int(_KAFKA_PORT))
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        try:
            stack.start()
            command = shlex.join(map(str, read_compose()["services"]["produce"]["command"]))
            print(f"Kafka at {stack.bootstrap}. Now, elsewhere: .venv/bin/minutely {command}", flush=True)
            while not stopped.wait(1):
                pass
        finally:
            stack.stop()


if __name__ == "__main__":
    main()
