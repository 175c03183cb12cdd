"""The load of `benchmarks.serve`: a process that asks a replica to rank, and prints what it saw as a line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

import msgspec
import numpy as np
import uvloop

FEATURES, CONNECTIONS = 20, 16


def bodies(rows: int, candidates: int, count: int, *, packed: bool) -> list[bytes]:
    random = np.random.default_rng(2)
    made = []
    for _ in range(count):
        ids = random.integers(0, rows, (FEATURES, candidates))
        features = {f"f{at}": ids[at].tobytes() if packed else ids[at].tolist() for at in range(FEATURES)}
        body = {"candidates": {"ids": list(range(candidates)), "features": features}}
        made.append(msgspec.msgpack.encode(body) if packed else json.dumps(body).encode())
    return made


def run_load(options: argparse.Namespace) -> None:
    """The process that asks."""
    made = bodies(options.rows, options.candidates, 64, packed=options.packed)
    kind = b"application/msgpack" if options.packed else b"application/json"
    asks = [
        b"POST /v1/rank HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (kind, len(body), body)
        for body in made
    ]
    latencies: list[float] = []
    statuses: dict[str, int] = {}

    async def ask(streams: Any, at: int) -> None:
        reader, writer = streams
        writer.write(asks[at % len(asks)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        status = head[9:12].decode()
        statuses[status] = statuses.get(status, 0) + 1

    async def main() -> float:
        connect = [
            asyncio.open_connection("127.0.0.1", options.port) for _ in range(CONNECTIONS * (4 if options.rate else 1))
        ]
        streams = await asyncio.gather(*connect)
        begun = time.perf_counter()
        until = begun + options.seconds
        if options.rate:
            free: asyncio.Queue[Any] = asyncio.Queue()
            for each in streams:
                free.put_nowait(each)
            tasks = []

            async def due(at: int, when: float) -> None:
                stream = await free.get()
                await ask(stream, at)
                free.put_nowait(stream)
                latencies.append(time.perf_counter() - when)

            random = np.random.default_rng(3)
            when, at = begun, 0
            while when < until:
                await asyncio.sleep(max(0.0, when - time.perf_counter()))
                tasks.append(asyncio.create_task(due(at, when)))
                at, when = at + 1, when + random.exponential(1 / options.rate)
            await asyncio.gather(*tasks)
        else:

            async def keep(stream: Any, at: int) -> None:
                while time.perf_counter() < until:
                    started = time.perf_counter()
                    await ask(stream, at)
                    latencies.append(time.perf_counter() - started)
                    at += 1

            await asyncio.gather(*(keep(stream, at) for at, stream in enumerate(streams)))
        return time.perf_counter() - begun

    took = uvloop.run(main())
    p50, p99 = (float(np.quantile(latencies, share)) * 1000 for share in (0.5, 0.99))
    print(json.dumps({"per_second": len(latencies) / took, "p50_ms": p50, "p99_ms": p99, "statuses": statuses}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("port", int), ("rate", float), ("seconds", float), ("rows", int), ("candidates", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--packed", action="store_true")
    run_load(parser.parse_args())


if __name__ == "__main__":
    main()
