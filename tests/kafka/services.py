"""The services as people start them, in processes that can be killed."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from minutely.config import Pipeline

_STOP_SECONDS = 60


def write_config(pipeline: Pipeline, folder: Path) -> Path:
    """The pipeline as a file."""
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
    return path


class Service:
    """One service: ``minutely`` with some arguments; ``state`` is its folder. What it says goes to a file."""

    def __init__(self, name: str, arguments: Sequence[str], state: Path, output: Path) -> None:
        self.name = name
        self.state = state
        self._arguments = list(arguments)
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).parent / "minutely"), *self._arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._output.parent,
            )

    def kill(self, *, lose_state: bool = False) -> None:
        """As when the machine takes it away, with or without its disk."""
        self.end(signal.SIGKILL)
        if lose_state:
            shutil.rmtree(self.state, ignore_errors=True)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        try:
            status = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        self._process = None
        return status

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace") if self._output.exists() else ""


def joiner(config: Path, folder: Path, name: str) -> Service:
    state = folder / name
    return Service(name, ["join", str(config), "--state", str(state)], state, folder / f"{name}.log")


def trainer(config: Path, folder: Path) -> Service:
    state = folder / "deltas"
    return Service("trainer", ["train", str(config), "--deltas", str(state)], state, folder / "trainer.log")


def archiver(config: Path, folder: Path) -> Service:
    state = folder / "archive"
    return Service("archive", ["archive", str(config), "--archive", str(state)], state, folder / "archive.log")


def retrainer(config: Path, folder: Path) -> Service:
    """A trainer that begins with the archive, on the folder of the trainer."""
    arguments = ["train", str(config), "--from", "archive", "--archive", str(folder / "archive")]
    state = folder / "deltas"
    return Service("retrainer", [*arguments, "--deltas", str(state)], state, folder / "retrainer.log")


@contextmanager
def started(*services: Service) -> Iterator[None]:
    """The services run, and none is left at the end."""
    try:
        for service in services:
            service.start()
        yield
    finally:
        for service in services:
            service.kill()


def said(services: Sequence[Service], what: str) -> str:
    """What went wrong, with what the services said last."""
    return what + "".join(f"\n--- {service.name}\n{service.output[-2500:]}" for service in services)
