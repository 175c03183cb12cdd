"""What is published: `minutely versions` lists it, `minutely rollback` goes back to some of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table as TextTable

from basis.problems import BadFile
from minutely.place import open_published, open_versions
from minutely.terminal import literal
from paramserver import history
from paramserver import manifest as manifests
from paramserver.delta_log import DeltaLog
from paramserver.files import Files
from paramserver.manifest import Manifest, TakenOverError
from paramserver.marks import Hold, read_hold, read_pin, unpin

_TRIES = 5
_WIDTH = 150
_Mark = TypeVar("_Mark")


def show_versions(console: Console, place: str, *, as_json: bool) -> None:
    """Print every version that is there, the newest first. Reads all of their files.

    `BadFile` after all else was printed where files are damaged or missing, which are named; also where nothing is published.
    """
    files = open_published(place)
    found = list(history.all_manifests(files))
    manifests = [item for item in found if isinstance(item, Manifest)]
    damaged = [str(item) for item in found if not isinstance(item, Manifest)]
    there = set(files.names())
    damaged += [problem for manifest in manifests for problem in history.damage_of(files, manifest)]
    pin, hold = _readable(read_pin, files, damaged), _readable(read_hold, files, damaged)
    items = [_described(item, manifests, pin, there) for item in reversed(manifests)]
    if as_json:
        whole = {"versions": items, "damaged": damaged, "pin": pin, "hold": msgspec.to_builtins(hold)}
        console.print(msgspec.json.encode(whole).decode(), soft_wrap=True, highlight=False, markup=False)
    else:
        _print(console, items, damaged, hold)
    if damaged:
        raise BadFile(f"{place}: {len(damaged):,} damaged or missing")
    if not items:
        raise BadFile(f"{place}: nothing is published there")


def _print(console: Console, items: list[dict[str, Any]], damaged: list[str], hold: Hold | None) -> None:
    table = TextTable("version", "kind", "lineage", "bytes", "rows", "expired", "watermark", "published", "held by")
    for item in items:
        texts = [str(item["version"]), item["kind"], str(item["lineage"])]
        texts += [f"{item[name]:,}" for name in ("bytes", "changed", "expired")]
        table.add_row(*texts, _time(item["watermark"]), _time(item["published_at"]), ", ".join(item["held_by"]))
    console.width = max(console.width, _WIDTH)  # a line a version, also where the terminal is narrower
    console.print(table)
    for problem in damaged:
        console.print(f"[red]damaged[/red] {literal(problem)}", soft_wrap=True)
    if hold is not None:
        console.print(f"Training is held after version {hold.after}: {literal(hold.reason)}", soft_wrap=True)


def _readable(read: Callable[[Files], _Mark], files: Files, damaged: list[str]) -> _Mark | None:
    """What a mark says; None where it is damaged, which is then one of ``damaged``."""
    try:
        return read(files)
    except BadFile as error:
        if str(error) not in damaged:
            damaged.append(str(error))
        return None


def _described(item: Manifest, manifests: list[Manifest], pin: int | None, there: set[str]) -> dict[str, Any]:
    bases = [other.version for other in manifests if other.is_base]
    needs = max((at for at in bases if at < item.version), default=0)
    held = ["newest"] if item.version == manifests[-1].version else []
    held += ["pin"] if item.version == pin else []
    if item.is_base:
        held.append("base")
    elif needs:
        held.append(f"follows base {needs}")
    held += ["trainer's state"] if item.trainer is not None and item.trainer.name in there else []
    dense = [other.version for other in manifests if other.dense and other.dense.version == item.version]
    held += [f"dense weights of {dense[0]} to {dense[-1]}"] if dense and not item.is_base else []
    held += [f"goes back to {item.goes_back_to}"] if item.goes_back_to else []
    return {
        "version": item.version,
        "kind": "base" if item.is_base else "whole" if item.is_whole else "delta",
        "lineage": item.lineage,
        "parent": item.parent,
        "bytes": sum(shard.rows.size + shard.state.size for shard in item.shards),
        "changed": sum(shard.changed for shard in item.shards),
        "expired": sum(shard.expired for shard in item.shards),
        "watermark": item.watermark,
        "published_at": item.published_at,
        "offsets": item.offsets,
        "held_by": held,
    }


def _time(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")


def roll_back(console: Console, place: str, version: int, *, training: bool) -> None:
    """Publish the content of an older version as the next one. With ``training``, training continues from it; otherwise from the
    newest, and replicas stay where they are until they are released.

    `BadFile` where the version is not there or cannot be trained from.
    """
    files = open_versions(place)
    there = manifests.numbers(files)
    if version not in there:
        raise BadFile(f"{place}: version {version} is not there; allowed: {there[0]} to {there[-1]}")
    for attempt in range(_TRIES):
        deltas = _resume(files)
        try:
            manifest = deltas.go_back(version, time.time_ns() // 1_000_000, training=training)
            break
        except TakenOverError:  # the trainer at work was faster
            if attempt == _TRIES - 1:
                raise BadFile("a trainer publishes faster than this; stop it first") from None
    after = (
        f"training continues from it, at offsets {manifest.offsets}"
        if training
        else (
            f"training continues from version {manifest.trains_from}, and replicas stay until minutely rollback --release"
        )
    )
    console.print(f"version {manifest.version} holds what version {version} held; {after}", soft_wrap=True)
    console.print(
        "A trainer at work does as said from its next publication on; others when they are started.", soft_wrap=True
    )


def release(console: Console, place: str) -> None:
    """Let replicas take the newest version again."""
    files = open_versions(place)
    try:
        pin = read_pin(files)
    except BadFile as error:  # as long as it is there, no rollback is possible either
        unpin(files)
        console.print(f"{literal(str(error))}; removed: replicas take the newest again", soft_wrap=True)
        return
    unpin(files)
    newest = f"the newest version, {manifests.numbers(files)[-1]},"
    console.print(
        f"replicas stayed at version {pin} by a rollback; from their next pull on they take {newest} again"
        if pin
        else f"no rollback holds replicas: nothing was changed, and they take {newest} as before",
        soft_wrap=True,
    )


def _resume(files: Files) -> DeltaLog:
    """The log, whatever its form is."""
    newest = history.newest(files)
    form = newest.form.read(files).decode() if newest.form is not None else ""
    return DeltaLog.resume(files, form, 1 << 30)
