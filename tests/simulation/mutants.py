"""`make simulate-mutants`: faults planted one at a time, each of which the simulator must find."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.simulation import mutants_join, mutants_loop
from tests.simulation.simulate import begin, failure

SEEDS = 1000
MUTANTS: list[Callable[[], Any]] = [
    found
    for module in (mutants_loop, mutants_join)
    for name, found in vars(module).items()
    if inspect.isfunction(found) and found.__module__ == module.__name__ and not name.startswith("_")
]
"""Their public functions: each makes a context in which its fault is planted."""


def found_after(mutant: Callable[[], Any], limit: int) -> tuple[int, str]:
    """How many seeds it took to find a mutant, 0 where it was not found, and how it showed."""
    with mutant():
        for seed in range(limit):
            said = failure(seed)
            if said:
                found = said.splitlines()[-1].strip()
                assert not re.search(r": (Type|Attribute|Name)Error: ", found), f"it fits the code no more: {found}"
                return seed + 1, found
    return 0, ""


def _find(job: tuple[int, int]) -> tuple[int, int, str]:
    at, limit = job
    return at, *found_after(MUTANTS[at], limit)


def main() -> int:
    limit = int(os.environ.get("SEEDS") or SEEDS)
    began, missed = time.monotonic(), 0
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0)), begin, maxtasksperchild=1) as pool:
        chosen = os.environ.get("MUTANT", "").replace(" ", "_")
        jobs = [(at, limit) for at, mutant in enumerate(MUTANTS) if chosen in mutant.__name__]
        for at, seeds, said in pool.imap_unordered(_find, jobs, chunksize=1):
            name = MUTANTS[at].__name__.replace("_", " ")
            missed += not seeds
            print(f"{name:50} {f'seed {seeds}' if seeds else 'NOT FOUND':10} {said[:110]}", flush=True)
    print(f"{len(jobs) - missed} of {len(jobs)} mutants found within {limit} seeds, {time.monotonic() - began:.0f} s")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
