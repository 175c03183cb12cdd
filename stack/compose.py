"""What docker-compose.yml says, as local processes.

Commands, environment, dependencies, mounts and restarts are the file's. An image's program is the one of its name here, Kafka's the
same version's server from Maven; a service whose program is not here is left out. Host names and ports become loopback
ports, in mounted files too, and volumes folders.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from stack.kafka import Cluster, kafka_version
from stack.ports import free_ports

ROOT = Path(__file__).parent.parent
_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
KAFKA = "kafka"
"""The broker's service."""

_IMAGE = "apache/kafka:"
_SETTING = "KAFKA_"
_STOP_SECONDS = 60
_RESTART_SECONDS = 1.0
_OURS = ("NODE_ID", "PROCESS_ROLES", "CONTROLLER_QUORUM_VOTERS", "LISTENERS", "ADVERTISED_LISTENERS", "LOG_DIRS")
"""Settings of the broker that say where it is; here they are local."""


def read_compose() -> dict[str, Any]:
    """The compose file."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def published() -> dict[str, int]:
    """The ports that services have on the host, by service."""
    services = read_compose()["services"]
    return {name: int(service["ports"][0].split(":")[1]) for name, service in services.items() if "ports" in service}


class Stack:
    """All services of the compose file without a profile; ``folder`` takes what the volumes would.

    ``ports`` are those that services must have; others get free ones. Arguments that stand in ``instead`` are replaced.
    """

    def __init__(
        self, folder: Path, ports: Mapping[str, int] | None = None, instead: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._instead = instead or {}
        self._services: dict[str, Any] = read_compose()["services"]
        self._ports = dict(zip(self._services, free_ports(len(self._services)), strict=True)) | dict(ports or {})
        image = self._services[KAFKA]["image"]
        assert image == _IMAGE + kafka_version(), f"{image}, but stack/pom.xml has {kafka_version()}"
        settings = {
            name.removeprefix(_SETTING).lower().replace("_", "."): str(value)
            for name, value in self._services[KAFKA]["environment"].items()
            if name.removeprefix(_SETTING) not in _OURS
        }
        self._cluster = Cluster(folder / KAFKA, extra=settings, port=self._ports[KAFKA])
        self.bootstrap = self._cluster.bootstrap
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        always = [name for name, service in self._services.items() if name != KAFKA and "profiles" not in service]
        self.names = [name for name in always if self._program(name)]
        """The services that run here, beside Kafka."""
        self.missing = [name for name in always if name not in self.names]
        """Those whose program is not here."""

    def address(self, name: str) -> str:
        """Where a service answers, as ``host:port``."""
        return f"127.0.0.1:{self._ports[name]}"

    def volume(self, name: str) -> Path:
        """Where a volume is here."""
        return self._folder / "volumes" / name

    def start(self) -> None:
        """Kafka first, since the others depend on it being healthy, then the others."""
        for name in self.names:
            assert self._services[name].get("depends_on", {}).keys() <= {KAFKA}, name
        self._cluster.start()
        for name in self.names:
            self.start_one(name)

    def guide(self) -> str:
        """Where to look, and what to type beside it."""
        services = read_compose()["services"]
        here = [name for name in published() if name in self.names]
        urls = [self.address(name) for name in here if services[name]["image"] == services["produce"]["image"]]
        lines = [f"Kafka at {self.bootstrap}", *(f"{name} at http://{self.address(name)}" for name in here)]
        lines += [f"{name} is left out: its program is not on this machine" for name in self.missing]
        produce = shlex.join(map(str, services["produce"]["command"]))
        lines += [f"Versions and archive are in {self._folder / 'volumes'}; Ctrl-C ends the stack and deletes them."]
        lines += ["In another terminal, in this folder:"]
        lines += [f"  KAFKA_BOOTSTRAP={self.bootstrap} .venv/bin/minutely {produce}"]
        lines += [f"  .venv/bin/minutely freshness {' '.join(urls)}"]
        lines += ["  pkill -f 'minutely join'  # the stack starts them again, with the config as it is then"]
        return "\n".join(lines)

    def start_one(self, name: str, *arguments: str) -> None:
        """Start one service beside the others, as `docker compose run` or `up` does, with other arguments where given."""
        thread = threading.Thread(target=self._keep_running, args=(name, arguments), daemon=True)
        thread.start()
        self._threads.append(thread)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One service to its end, as `docker compose run` does, with other arguments where given."""
        return subprocess.run(
            self._command(name, arguments), env=self._environment(name), cwd=ROOT, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def healthy(self, name: str) -> bool:
        """Whether the health check of a service says that it is well."""
        kind, *command = (self._local(name, part) for part in self._services[name]["healthcheck"]["test"])
        assert kind == "CMD", f"{name}: {kind}"
        done = subprocess.run(command, env=self._environment(name), capture_output=True, timeout=60, check=False)
        return done.returncode == 0

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the process of a service."""
        self._processes[name].send_signal(number)

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """A service stands still, as on a machine that hangs."""
        self.signal(name, signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(name, signal.SIGCONT)

    def runs(self, name: str) -> bool:
        """Whether the process of a service runs."""
        return name in self._processes and self._processes[name].poll() is None

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

    def _keep_running(self, name: str, arguments: tuple[str, ...]) -> None:
        """Start a service again when it ends, as its restart policy says."""
        self._copy_mounted_files(name)
        again = self._services[name].get("restart") == "unless-stopped"
        while not self._stopping.is_set():
            process = subprocess.Popen(
                self._command(name, arguments), env=self._environment(name), cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self._processes[name] = process
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    print(f"{name:>10} | {line}", end="", flush=True)
            print(f"{name:>10} | ended with status {process.wait()}", flush=True)
            if not again:
                return
            self._stopping.wait(_RESTART_SECONDS)

    def _program(self, name: str) -> str | None:
        """The program of the image's name; None where there is none, or where only the image knows how to start it."""
        image = self._services[name]["image"].rpartition("/")[2].partition(":")[0]
        return shutil.which(image, path=_PATH) if "command" in self._services[name] else None

    def _command(self, name: str, instead: tuple[str, ...]) -> list[str]:
        program = self._program(name)
        assert program is not None, name
        return [program, *(self._local(name, str(part)) for part in instead or self._services[name]["command"])]

    def _local(self, name: str, text: str) -> str:
        """A text of a service with the addresses and folders that are meant, here."""
        if text in self._instead:
            return self._instead[text]
        names = "|".join(map(re.escape, self._services))
        text = re.sub(
            rf"(?<![\w.-])({names}|0\.0\.0\.0|127\.0\.0\.1):\d+",
            lambda found: self.address(found[1] if found[1] in self._services else name),
            text,
        )
        folders = self._mounts(name)
        targets = "|".join(map(re.escape, folders)) or "$."
        return re.sub(rf"(?<![\w./-])({targets})(?![\w.-])", lambda found: str(folders[found[1]]), text)

    def _mounts(self, name: str) -> dict[str, Path]:
        """Where a service's folders are here, by where its container has them."""
        parts = [volume.split(":") for volume in self._services[name].get("volumes", [])]
        return {
            target: self._folder / "mounts" / name / source if source.startswith(".") else self.volume(source)
            for source, target, *_ in parts
        }

    def _copy_mounted_files(self, name: str) -> None:
        """The repository's files that a service is given, with what they say of other services true here."""
        for volume in self._services[name].get("volumes", []):
            source, target = volume.split(":")[:2]
            for file in sorted((ROOT / source).rglob("*")) if source.startswith(".") else ():
                if file.is_file():
                    copy = self._mounts(name)[target] / file.relative_to(ROOT / source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_text(self._local(name, file.read_text(encoding="utf-8")), encoding="utf-8")

    def _environment(self, name: str) -> dict[str, str]:
        wanted = self._services[name].get("environment", {})
        return {**os.environ, "PATH": _PATH, **{key: self._local(name, str(value)) for key, value in wanted.items()}}
