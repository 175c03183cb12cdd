"""`python -m tests.fuzz`: hostile records into every decoder of what others wrote; nothing comes out but what it documents.

A process of its own, since what ends it may be no exception. ``--decoder`` and ``--number`` make one record of a run again.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
from collections import Counter

from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.mutate import noise

_MOST_SECONDS = 0.5
_MORE_BYTES = 512 << 20
_NOISE = 0.03


def main() -> int:
    """Print for each decoder how many records it took and refused; 1 at the first that does something else."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--records", type=int, default=20_000, help="in all (20000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--decoder", choices=DECODERS, help="this one alone")
    parser.add_argument("--number", type=int, help="this record alone")
    given = parser.parse_args()
    logging.disable()
    names = [given.decoder] if given.decoder else list(DECODERS)
    shares = {name: DECODERS[name].share for name in names}
    for name in names:
        decoder = DECODERS[name]
        for good in decoder.good:
            decoder.read(good)  # or what comes of it says nothing
    before = _resident_bytes()
    for name in names:
        count = -(-int(given.records * shares[name] / sum(shares.values())) // 1)
        numbers = range(count) if given.number is None else [given.number]
        begun, outcomes = time.process_time(), Counter[str]()
        for number in numbers:
            record = make(given.seed, name, number)
            started = time.thread_time()
            try:
                DECODERS[name].read(record)
                outcome = "taken"
            except DECODERS[name].refusals:
                outcome = "refused"
            except BaseException:
                print(f"--seed {given.seed} --decoder {name!r} --number {number}: {record[:200]!r}", file=sys.stderr)
                raise
            seconds = time.thread_time() - started
            assert seconds < _MOST_SECONDS, f"--decoder {name!r} --number {number}: {seconds:.1f} s"
            outcomes[outcome] += 1
        seconds = time.process_time() - begun
        print(f"{name}: {len(numbers)} records, {outcomes['refused']} refused, {seconds:.1f} s", flush=True)
        assert _resident_bytes() < before + _MORE_BYTES, "of records that are a few kilobytes large"
        assert len(numbers) < 100 or outcomes["refused"] > len(numbers) // 20, "most of them break nothing"
    return 0


def _resident_bytes() -> int:
    """The most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def make(seed: int, name: str, number: int) -> bytes:
    """One record of a run."""
    rng = random.Random(f"{seed} {name} {number}")
    decoder: Decoder = DECODERS[name]
    return noise(rng) if rng.random() < _NOISE else decoder.mutate(rng, rng.choice(decoder.good))


if __name__ == "__main__":
    sys.exit(main())
