"""Apache Kafka's own server, in KRaft mode, as local processes.

The server is one Maven dependency (``pom.xml``), fetched once into the user's cache folder.
"""

from __future__ import annotations

import base64
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import platformdirs

from stack.ports import free_ports

_POM = Path(__file__).with_name("pom.xml")
_PROGRAMS = {"java": "default-jre-headless", "mvn": "maven"}
"""What it needs, with Debian's packages for them."""

_SPACE = "{http://maven.apache.org/POM/4.0.0}"
_FETCH_SECONDS = 600
_START_SECONDS = 60
_HEAP = "-Xmx512m"


class BrokerUnavailable(RuntimeError):
    """Kafka's server cannot run here; the message is what it needs."""


def kafka_version() -> str:
    """The version that the pom names."""
    version = ElementTree.parse(_POM).getroot().findtext(f".//{_SPACE}dependency/{_SPACE}version")
    assert version is not None
    return version


def libraries() -> Path:
    """The folder of Kafka's jars, filled by Maven on first use; `BrokerUnavailable` where that is not possible."""
    missing = {program: package for program, package in _PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        raise BrokerUnavailable(f"{' and '.join(missing)} (Debian: apt-get install {' '.join(missing.values())})")
    root = Path(platformdirs.user_cache_dir("minutely"))
    folder = root / f"kafka-{kafka_version()}"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes start together
        if not folder.is_dir():
            part = root / f"{folder.name}.part"
            command = ["mvn", "-q", "-B", "-f", str(_POM), "dependency:copy-dependencies", f"-DoutputDirectory={part}"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                raise BrokerUnavailable(f"its jars, but {' '.join(command)} took over {_FETCH_SECONDS} s") from None
            if done.returncode:
                raise BrokerUnavailable(f"its jars, but {' '.join(command)} failed: {done.stdout[-400:]}")
            part.replace(folder)
    return folder


class Node:
    """One process, broker and controller at once. ``port`` takes clients."""

    def __init__(self, number: int, port: int, folder: Path, settings: Mapping[str, str]) -> None:
        self.number = number
        self.port = port
        self._folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        folder.mkdir(parents=True)

    def format(self, cluster: str, jars: Path, options: Sequence[str] = ()) -> None:
        """Write the settings and an empty log folder."""
        lines = [f"{key}={value}" for key, value in self._settings.items()]
        self._properties.write_text("\n".join(lines) + "\n")
        command = _java(
            jars, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(self._properties), *options
        )
        done = subprocess.run(command, capture_output=True, text=True, timeout=_START_SECONDS, check=False)
        if "UnsupportedClassVersionError" in done.stderr:
            raise BrokerUnavailable(f"Java 17 or newer; {shutil.which('java')} is older")
        if done.returncode:
            raise RuntimeError(f"Kafka's storage was not formatted: {done.stdout[-1000:]}{done.stderr[-1000:]}")

    def start(self, jars: Path) -> None:
        """Start the process; `wait` for it."""
        self._output = (self._folder / "output.log").open("ab")
        self._process = subprocess.Popen(
            _java(jars, "kafka.Kafka", str(self._properties)),
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            start_new_session=True,  # Ctrl-C goes to the program that started it, which then stops it
        )

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    def wait(self) -> None:
        """Return once it takes connections."""
        assert self._process is not None
        until = time.monotonic() + _START_SECONDS
        while True:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"Kafka's node {self.number} did not start: {self.tail()}")
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, by default as a machine that lost power."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_START_SECONDS)
            self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def tail(self) -> str:
        """The end of what it wrote."""
        return (self._folder / "output.log").read_text(errors="replace")[-2000:]

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"


class Cluster:
    """Nodes that know each other; ``bootstrap`` is what clients are told."""

    def __init__(self, folder: Path, nodes: int = 1, extra: Mapping[str, str] | None = None, port: int = 0) -> None:
        self._jars = libraries()
        ports = free_ports(2 * nodes)
        clients, controllers = ports[:nodes], ports[nodes:]
        if port:
            clients[0] = port
        voters = ",".join(f"{at + 1}@127.0.0.1:{where}" for at, where in enumerate(controllers))
        # Of a random one, every 64th begins with a dash, which the storage tool takes for an option.
        cluster = base64.urlsafe_b64encode(b"0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        self.nodes = []
        for at, (client, controller) in enumerate(zip(clients, controllers, strict=True)):
            settings = _settings(at + 1, nodes, client, controller, voters, folder / f"node-{at + 1}") | dict(
                extra or {}
            )
            settings = {key: value.replace("{port}", str(client)) for key, value in settings.items()}
            self.nodes.append(Node(at + 1, client, folder / f"node-{at + 1}", settings))
        self._cluster = cluster
        self.bootstrap = ",".join(f"127.0.0.1:{client}" for client in clients)

    def start(self, options: Sequence[str] = ()) -> None:
        """Format and start all nodes; returns when they take connections."""
        for node in self.nodes:
            node.format(self._cluster, self._jars, options)
        for node in self.nodes:
            node.start(self._jars)
        for node in self.nodes:
            node.wait()

    def restart(self, node: Node) -> None:
        """Start a node that was killed, on what it had on disk."""
        node.start(self._jars)
        node.wait()

    def stop(self) -> None:
        """End all nodes; what they stored is of no further use."""
        for node in self.nodes:
            node.kill()


@contextmanager
def running(
    folder: Path, nodes: int = 1, extra: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[Cluster]:
    """A cluster that is stopped at the end; ``options`` go to the storage tool."""
    cluster = Cluster(folder, nodes, extra)
    try:
        cluster.start(options)
        yield cluster
    finally:
        cluster.stop()


def _java(jars: Path, main: str, *arguments: str) -> list[str]:
    return ["java", _HEAP, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}{os.sep}*", main, *arguments]


def _settings(number: int, nodes: int, client: int, controller: int, voters: str, folder: Path) -> dict[str, str]:
    copies = str(min(nodes, 3))
    return {
        "process.roles": "broker,controller",
        "node.id": str(number),
        "controller.quorum.voters": voters,
        "listeners": f"CLIENT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{client}",
        "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(folder / "data"),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": copies,
        "offsets.topic.num.partitions": "3",
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": "1" if nodes < 3 else "2",
        "transaction.state.log.num.partitions": "3",
        "min.insync.replicas": "1" if nodes < 3 else "2",
        "share.coordinator.state.topic.replication.factor": copies,
        "group.initial.rebalance.delay.ms": "0",
        "log.flush.interval.messages": "9223372036854775807",
        "num.io.threads": "2",
        "num.network.threads": "2",
    }
