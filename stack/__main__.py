"""`make stack`: the stack until Ctrl-C, at the ports that the compose file publishes where they are free."""

from __future__ import annotations

import signal
import socket
import tempfile
import threading
from pathlib import Path

from stack.compose import KAFKA, Stack, published
from stack.kafka import BrokerUnavailable

_KAFKA_PORT = 9092


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def main() -> None:
    """Start everything, say where it is, and stop it when asked to."""
    wanted = {KAFKA: _KAFKA_PORT, **published()}
    ports = {name: port for name, port in wanted.items() if _is_free(port)}
    for name, port in wanted.items():
        if name not in ports:
            print(f"port {port} is in use: {name} takes another", flush=True)
    with tempfile.TemporaryDirectory(prefix="minutely-stack-") as folder:
        try:
            _run(Stack(Path(folder), ports))
        except BrokerUnavailable as error:
            raise SystemExit(f"make stack: Kafka's server needs {error}") from None


def _run(stack: Stack) -> None:
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        stack.start()
        print(stack.guide(), flush=True)
        while not stopped.wait(1):
            pass
    finally:
        stack.stop()


if __name__ == "__main__":
    main()
