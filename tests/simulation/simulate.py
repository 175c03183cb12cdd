"""`make simulate SEEDS=n` runs n seeds, `make simulate SEED=k` one of them again, with its trace."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Iterable, Iterator

import torch

from tests.simulation.traffic import START
from tests.simulation.world import World


def failure(seed: int) -> str:
    """Runs a seed; what went wrong and what happened before, at most 50 lines, or nothing."""
    world = World(seed)
    logging.disable(logging.CRITICAL)  # components say what they meet; the trace is what people need
    try:
        world.run()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(where.filename)}:{where.lineno}"  # noqa: PTH119
        lines = [f"seed {seed} failed after {world.turns} turns; replay it with: make simulate SEED={seed}"]
        lines += [f"  {(now - START) / 1000:9.1f} s  {who:10} {what}" for now, who, what in world.trace]
        lines += [f"  {place}: {type(error).__name__}: {error}"[:2000]]
        return "\n".join(lines)
    finally:
        logging.disable(logging.NOTSET)
    return ""


def failures(seeds: Iterable[int], processes: int) -> Iterator[tuple[int, str]]:
    """Runs seeds on some processes, in no order: each with what went wrong."""
    with multiprocessing.get_context("fork").Pool(processes, begin) as pool:
        yield from pool.imap_unordered(_run, seeds, chunksize=8)


def begin() -> None:
    torch.set_num_threads(1)


def _run(seed: int) -> tuple[int, str]:
    return seed, failure(seed)


def main() -> int:
    begin()
    if os.environ.get("SEED"):
        said = failure(int(os.environ["SEED"]))
        print(said or f"seed {os.environ['SEED']} passed")
        return bool(said)
    first, count = int(os.environ.get("FIRST") or 0), int(os.environ.get("SEEDS") or 1000)
    began, failed = time.monotonic(), 0
    for _, said in failures(range(first, first + count), len(os.sched_getaffinity(0))):
        if said:
            failed += 1
            if failed <= 3:
                print(said, flush=True)
    seconds = time.monotonic() - began
    print(
        f"seeds {first} to {first + count - 1}: {count - failed} passed, {failed} failed, {count / seconds:.1f} a second"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
