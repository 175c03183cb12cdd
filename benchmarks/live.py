"""What does keeping live features cost? Operations a second of the core, and memory, by the number of keys.

    python -m benchmarks.live [--keys 10000 1000000 5000000] [--operations 4000000]

A definition with three actions and two half-lives. Of seven operations three read a key, three count a serving and one an action.
Few of the keys get most of them, after each was served once.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from streaming.features.columns import Ids
from streaming.live.core import FIRST_ACTION, READ, SERVED, LiveCore, Operations
from streaming.live.settings import LiveSettings

_AT_ONCE = 1 << 18
_ACTIONS = ["click", "like", "buy"]
_DEFINED = {"rates": {"item": {"key": ["item"], "of": _ACTIONS, "half_life": ["1h", "30d"]}}}


def operations(keys: Ids, start_ms: int, rng: np.random.Generator) -> Operations:
    """Reads, servings and actions of these keys, a millisecond apart."""
    what = rng.choice(np.array([READ, READ, READ, SERVED, SERVED, SERVED, FIRST_ACTION], np.int32), len(keys))
    at = start_ms + np.arange(len(keys))
    return Operations(what, at, at, {"rates.item": keys}, {"rates.item": np.ones(len(keys), np.bool_)}, {})


def measure(count: int, total: int) -> tuple[float, float]:
    """Operations a CPU second, and bytes a key, of a core that keeps ``count`` keys."""
    rng = np.random.default_rng(1)
    core = LiveCore(LiveSettings.model_validate(_DEFINED), _ACTIONS)
    names = rng.integers(-(2**63), 2**63, count)
    for first in range(0, count, _AT_ONCE):
        every = names[first : first + _AT_ONCE]
        at = np.full(len(every), 0)
        known = {"rates.item": np.ones(len(every), np.bool_)}
        core.take(Operations(np.full(len(every), SERVED, np.int32), at, at, {"rates.item": every}, known, {}))
    seconds, done = 0.0, 0
    while done < total:
        keys = names[(count * rng.random(_AT_ONCE) ** 3).astype(np.int64)]
        batch = operations(keys, done, rng)
        started = time.process_time()
        core.take(batch)
        seconds += time.process_time() - started
        done += len(keys)
    kept = core.kept()["rates.item"]
    return done / seconds, kept.bytes / kept.keys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000, 1_000_000, 5_000_000])
    parser.add_argument("--operations", type=int, default=4_000_000)
    options = parser.parse_args()
    print(f"{'keys':>10} {'operations/s':>13} {'bytes a key':>12}")
    for count in options.keys:
        speed, each = measure(count, options.operations)
        print(f"{count:10,} {speed:13,.0f} {each:12.0f}")


if __name__ == "__main__":
    main()
