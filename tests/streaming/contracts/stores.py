"""The state stores, each as a folder that can be opened again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streaming.join.store import JoinStore, RocksStore
from tests.simulation.process import Process
from tests.simulation.store import Store, StoreFolder

Open = Callable[[], JoinStore]


def rocks(folder: Path) -> Open:
    return lambda: RocksStore(folder / "rocks")


def simulated(_: Path) -> Open:
    folder, process = StoreFolder(), Process("joiner", lambda process: None)
    return lambda: Store(folder, process)


STORES = {"rocks": rocks, "simulated": simulated}
EVERY_STORE = sorted(STORES)
