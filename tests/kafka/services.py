"""The services as people start them, in processes that can be killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import yaml

from minutely.config import Pipeline

Program: TypeAlias = Callable[..., None]
_STOP_SECONDS = 60
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [f"minutely.services.{name}" for name in ("archive", "features", "join", "serve", "train")]
)


def write_config(pipeline: Pipeline, folder: Path) -> Path:
    """The pipeline as a file."""
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(pipeline.model_dump(mode="json", exclude_defaults=True), sort_keys=False))
    return path


def _run(program: Program, arguments: Sequence[str], output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.chdir(Path(output).parent)
    program(*arguments)


def _minutely(*arguments: str) -> None:
    from minutely.cli import main

    sys.argv = ["minutely", *arguments]
    main()


class _Fork:
    """A process that has imported everything already, with what we use of `subprocess.Popen`."""

    def __init__(self, program: Program, arguments: Sequence[str], output: Path) -> None:
        self._process = _FORKS.Process(target=_run, args=(program, list(arguments), str(output)))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("minutely", seconds)
        return self._process.exitcode

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Service:
    """One service: ``minutely`` with some arguments; ``state`` is its folder. What it says goes to a file.

    One that ``forks`` is there at once: importing takes several seconds, longer than what some tests look at. It may be
    another ``program``.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        state: Path,
        output: Path,
        *,
        forks: bool = False,
        program: Program = _minutely,
    ) -> None:
        self.name = name
        self.forks = forks
        self._program = program
        self.state = state
        self._arguments = list(arguments)
        self._output = output
        self._said_before = 0
        self._process: subprocess.Popen[bytes] | _Fork | None = None

    def start(self) -> None:
        self._said_before = len(self.output)
        if self.forks:
            self._process = _Fork(self._program, self._arguments, self._output)
            return
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

    def wait(self) -> int:
        """Wait until it ends by itself; the exit status."""
        assert self._process is not None
        status = self._process.wait(_STOP_SECONDS)
        self._process = None
        return status

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    @property
    def said(self) -> str:
        """What it said since it was last started."""
        return self.output[self._said_before :]

    def waits_for(self, *texts: str, seconds: float = 120) -> str:
        """The first of some texts that it says."""
        until = time.monotonic() + seconds
        while True:
            output = self.said
            for text in texts:
                if text in output:
                    return text
            assert self.runs, f"{self.name} ended before it said {texts}:\n{self.output[-3000:]}"
            assert time.monotonic() < until, f"{self.name} did not say {texts}:\n{self.output[-3000:]}"
            time.sleep(0.02)


def joiner(config: Path, folder: Path, name: str, *options: str) -> Service:
    state = folder / name
    return Service(name, ["join", str(config), "--state", str(state), *options], state, folder / f"{name}.log")


def keeper(config: Path, folder: Path, name: str, *options: str) -> Service:
    """One that keeps live features, on brokers alone."""
    return Service(name, ["features", str(config), *options], folder / name, folder / f"{name}.log")


def trainer(config: Path, folder: Path, *options: str) -> Service:
    state = folder / "deltas"
    return Service("trainer", ["train", str(config), "--deltas", str(state), *options], state, folder / "trainer.log")


def archiver(config: Path, folder: Path, *options: str) -> Service:
    state = folder / "archive"
    return Service(
        "archive", ["archive", str(config), "--archive", str(state), *options], state, folder / "archive.log"
    )


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
