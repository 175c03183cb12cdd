"""Every decoder that reads what others wrote: records that are right, how they are read, what may come of those that are not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import msgspec
import numpy as np
import pyarrow as pa
import torch

from basis.problems import BadFile, NoRoomError
from paramserver import manifest as manifests
from paramserver.delta import decode, decode_rows
from paramserver.follower import Follower
from paramserver.form import check_form, fingerprint_of
from paramserver.manifest import FileRef, Manifest, encode_checked, read_manifest
from paramserver.marks import Hold, pin_next, read_hold, read_pin, write_hold
from paramserver.precision import Precision
from paramserver.signed_files import SignedFiles
from serving import open_inference
from serving.inputs import BadRequest, Inputs
from serving.requests import EngagementsBody, RequestReader, engagement_of
from serving.requests import decode as decode_body
from streaming.features.columns import Ragged
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.join.commit import UnknownPlaceError, decode_commit, encode_commit
from streaming.join.core import Joiner
from streaming.join.spec import JoinSpec
from streaming.live.core import READ, Happened, LiveCore, Operations
from streaming.live.interactions import Interactions, interactions_records
from streaming.live.partition import LivePartition, Progress
from streaming.live.published import Kept, published_keys, published_place
from streaming.live.settings import LiveSettings
from streaming.live.spec import LiveSpec, actions_of, fields_of
from streaming.log import IMPRESSIONS, INTERACTIONS, Record
from streaming.loop.brokers import History, Outlet
from streaming.records.events import (
    FORMAT_VERSION,
    MAX_TIME_MS,
    BadRecord,
    DeadLetter,
    Engagement,
    Request,
    decode_engagement,
    decode_letter,
    encode,
)
from streaming.records.examples import EXAMPLES_VERSION, ExampleColumns, ExampleFormat, ExamplesRecord, published_in
from streaming.records.labels import Label
from streaming.records.training_order import cut_per_step
from tests.basis.hostile_arrow import streams_of
from tests.fuzz.mutate import hostile_json, hostile_line, hostile_msgpack, hostile_tensors, mutated
from tests.paramserver.published import MemoryFiles, Writer, replica_tables
from tests.streaming.join.commits import a_commit
from tests.streaming.join.join_world import roomy_state
from tests.trainer.test_hostile_weights import FORM, make, readers, trained
from trainer.growth import grow_state

NOW = 1_700_000_000_000
FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="user", scope="request"),
    "item": SparseFeature(column="item"),
    "tags": SparseFeature(column="tags", pool="mean"),
    "words": SparseFeature(column="words", split=" ", pool="mean"),
    "size": SparseFeature(column="size", bucket="log2"),
    "price": DenseFeature(kind="dense", column="price"),
    "made": DenseFeature(kind="dense", column="made", transform="age", unit="s"),
    "picture": VectorFeature(kind="vector", column="picture", size=2),
}
LABELS = {"click": Label(action="click", window="1m"), "buy": Label(action="buy", window="1h", loss="squared")}
FORMAT = ExampleFormat(FEATURES, LABELS)
LIVE = LiveSpec.of(
    LiveSettings.model_validate(
        {
            "rates": {"item": {"key": ["item"], "of": ["click"], "half_life": ["1h"]}},
            "age": {"item": {"key": ["item"]}},
            "seen": {"both": {"key": ["user", "item"]}},
            "sequences": {"user": {"key": ["user"], "of": ["click"], "fields": ["item"], "last": 3}},
        }
    ),
    LABELS,
)
_KEPT_OF_INTERACTIONS = LivePartition(
    LIVE, FEATURES, cast(Outlet[Progress], None), cast(History, None), 0, new_id=lambda: ""
)
"""Of which no transaction is made."""
JOIN = JoinSpec(FEATURES, LABELS)
_KEY = bytes(range(32))
_HOSTILE_STREAMS = list(streams_of("example_id").values())


class Decoder(NamedTuple):
    """``good`` records, all of which `read` takes; of others it raises ``refusals`` alone. ``share`` is of a run's records."""

    good: list[bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    mutate: Callable[[random.Random, bytes], bytes]
    share: float = 1.0


def _decoders() -> Iterator[tuple[str, Decoder]]:
    yield from _records()
    yield from _files()
    yield from _bodies()


def _records() -> Iterator[tuple[str, Decoder]]:
    refused = (BadRecord,)
    count = 3
    packed = {
        "item": np.arange(count).tobytes(),
        "tags": (np.arange(count, dtype="<i4").tobytes(), np.arange(3).tobytes()),
        "words": (np.ones(count, "<i4").tobytes(), np.arange(count).tobytes()),
        "size": np.arange(count).tobytes(),
        "price": np.ones(count, "<f4").tobytes(),
        "made": np.ones(count, "<f4").tobytes(),
        "picture": np.ones(2 * count, "<f4").tobytes(),
    }
    request = Request(
        version=FORMAT_VERSION,
        request_id="r1",
        served_at=NOW,
        impression_ids=["a", "b", "c"],
        shared={"user": np.int64(7).tobytes()},
        features=packed,
        positions=np.arange(count, dtype="<i4").tobytes(),
        scores=np.ones(2 * count, "<f4").tobytes(),
        sparse_version=3,
        dense_version=2,
    )
    written = {
        "version": 1,
        "request_id": "r1",
        "served_at": NOW,
        "impression_ids": ["a", "b"],
        "shared": {"user": "u7"},
        "features": {
            "item": [12, "x"],
            "tags": [[1, 2], []],
            "words": [["a"], []],
            "size": [3, 4],
            "price": [0.5, 2],
            "made": [1, 2],
            "picture": [[1, 2], [3, 4]],
        },
        "positions": [0, 1],
        "scores": [[0.5, 1], [0.25, 2]],
    }
    done = Engagement(version=1, request_id="r1", impression_id="a", action="buy", happened_at=NOW, value=2.5)
    letter = DeadLetter(topic="impressions", partition=1, offset=7, reason="late", detail="so", payload=b"it")
    own, foreign = _examples()
    older = {name: column for name, column in packed.items() if name not in ("tags", "picture")}
    of_another = msgspec.structs.replace(request, features=older, schema="0123456789abcdef")
    yield "request", Decoder([encode(request), encode(of_another)], _read_request, refused, _hostile_request, 2)
    yield "JSON request", Decoder([json.dumps(written).encode()], _read_request, refused, hostile_json, 2)
    yield "engagement", Decoder([encode(done)], _read_engagement, refused, hostile_msgpack)
    yield "JSON engagement", Decoder([msgspec.json.encode(done)], _read_engagement, refused, hostile_json)
    yield "examples", Decoder(own, _read_examples, refused, hostile_msgpack, 2)
    yield "examples of another Arrow", Decoder(foreign, _read_examples, refused, _hostile_examples)
    yield "revisions of examples", Decoder(own + foreign, _read_revisions, refused, _hostile_examples)
    commit = a_commit()
    yield "commit", Decoder([encode_commit(commit).encode()], _read_commit, (UnknownPlaceError,), hostile_json)
    yield "dead letter", Decoder([encode(letter)], decode_letter, refused, hostile_msgpack)
    happened, kept = _live()
    yield "interactions", Decoder(happened, _read_interactions, refused, hostile_msgpack)
    yield "features", Decoder(kept, _read_features, refused, hostile_msgpack)


def _live() -> tuple[list[bytes], list[bytes]]:
    """Records of live features: what joiners and those who keep them write."""
    identities, actions = LIVE.identities(FEATURES), list(LIVE.windows)
    keys = np.array([7, -8, 7])
    at = np.array([NOW, NOW + 1, NOW + 2])
    what = np.array([1, 1, 2], np.int32)
    happened = {}
    for name, identity in identities.items():
        definition = LIVE.definition(name)
        ids = np.ones((3, len(fields_of(definition))), np.int64)
        happened[identity] = Happened(keys, what if actions_of(definition) else np.ones(3, np.int32), at, at, ids)
    said = [record for _, record in interactions_records(actions, happened, np.array([2, 1]), 0, 2)]
    core = LiveCore(LIVE.settings, actions)
    kept = [published_place(3, actions, np.array([2, 1]))[1]]
    for name, identity in identities.items():
        core.note(name, happened[identity])
        kept += [value for _, value in published_keys(identity, keys[:2], core.packed(name, keys[:2]))]
    return said, kept


def _examples() -> tuple[list[bytes], list[bytes]]:
    """Records as joiners write them, and as another program may."""
    count = 5
    numbers, times = np.arange(count), np.full(count, NOW)
    ragged = Ragged(np.arange(count + 1), numbers)
    floats = np.ones(count, np.float32)
    columns = {
        "user": numbers, "item": numbers, "tags": ragged, "words": ragged, "size": numbers, "price": floats, "made": floats,
        "picture": np.ones((count, 2), np.float32),
    }  # fmt: skip
    rest = ExampleColumns([f"e{at}" for at in range(count)], np.ones((count, 2), np.float32), times, times, times)
    batch = FORMAT.build(columns, rest)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    foreign = [encode(ExamplesRecord(version=EXAMPLES_VERSION, watermark=NOW, batch=sink.getvalue().to_pybytes()))]
    fewer = ExampleFormat({name: each for name, each in FEATURES.items() if name not in ("tags", "picture")}, LABELS)
    foreign.append(fewer.encode(batch.drop_columns(["feature.tags", "feature.picture"]), NOW))
    return [FORMAT.encode(batch, NOW), FORMAT.encode(FORMAT.empty(), NOW)], foreign


def _hostile_examples(rng: random.Random, good: bytes) -> bytes:
    """At times with a batch that is small only as it lies there."""
    if rng.random() >= 0.05:
        return hostile_msgpack(rng, good)
    stream = rng.choice(_HOSTILE_STREAMS)
    return encode(ExamplesRecord(version=EXAMPLES_VERSION, watermark=NOW, batch=stream))


def _hostile_request(rng: random.Random, good: bytes) -> bytes:
    """At times with columns of features that nobody knows, of which one may be large."""
    if rng.random() >= 0.3:
        return hostile_msgpack(rng, good)
    request = msgspec.msgpack.decode(good, type=Request)
    for at in range(rng.choice([1, 2])):
        lengths = rng.choice([b"", mutated(rng, np.ones(3, "<i4").tobytes()), rng.randbytes(12)])
        values = bytes(rng.choice([0, 7, 70_000]))
        columns = rng.choice([request.shared, request.features])
        columns[f"unknown{at}"] = rng.choice([values, (lengths, values), (values, lengths)])
    out = encode(request)
    return mutated(rng, out) if rng.random() < 0.2 else out


def _read_request(record: bytes) -> None:
    """As a joiner takes it, until its windows are closed and its examples sent."""
    state = roomy_state()
    joiner = Joiner(JOIN, state)
    joiner.add(IMPRESSIONS, Record(0, record, MAX_TIME_MS))
    joiner.advance(2 * MAX_TIME_MS)
    assert joiner._output.room <= JOIN.limits.batch_bytes, "output of less than nothing"
    output = joiner.drain()
    state.close()
    for letter in output.dead_letters:
        raise BadRecord(letter.reason, letter.detail)


def _read_engagement(record: bytes) -> None:
    encode(decode_engagement(record, MAX_TIME_MS))


def _read_examples(record: bytes) -> None:
    """As trainers and archivers use them."""
    batch, watermark = FORMAT.decode(record)
    for step in cut_per_step(batch, 60_000, 2):
        FORMAT.columns(step)
        FORMAT.label_values(step)
    FORMAT.encode(batch, watermark)


def _read_revisions(record: bytes) -> None:
    if not published_in(record).examples:
        FORMAT.decode(record)


def _read_interactions(record: bytes) -> None:
    """As those who keep live features do, who pass over what is none."""
    Interactions(record)
    _KEPT_OF_INTERACTIONS.take(INTERACTIONS, [Record(0, record, NOW)])


def _read_features(record: bytes) -> None:
    """As replicas do: folded, then read."""
    kept = Kept(LIVE, FEATURES)
    kept.fold(0, [record])
    if kept.skipped:
        raise BadRecord("skipped", f"{kept.skipped}")
    one, at = np.array([7]), np.array([NOW])
    keys = {name: one for name, _ in LIVE.settings.definitions()}
    ids = {name: np.ones((1, len(fields_of(each))), np.int64) for name, each in LIVE.settings.definitions()}
    known = {name: np.ones(1, np.bool_) for name in keys}
    kept.core.take(Operations(np.full(1, READ, np.int32), at, at, keys, known, ids))


def _read_commit(text: bytes) -> None:
    decode_commit(text.decode(errors="replace"))


def _files() -> Iterator[tuple[str, Decoder]]:
    refused = (BadFile, FileNotFoundError)  # a manifest may name what is not there
    for precision in _PRECISIONS:
        files, newest = _published(precision)
        shard = newest.shards[0]
        rows, state = files.content[shard.rows.name], files.content[shard.state.name]
        yield (
            f"rows in {precision}",
            Decoder([rows], _PulledRows(files, newest), (*refused, NoRoomError), mutated, 0.5),
        )
        yield f"state of {precision} rows", Decoder([state], _StateOf(rows), refused, mutated, 0.5)
    files, newest = _published("float32")
    pin_next(files, newest.version)
    write_hold(files, Hold("why", newest.version, 7))

    def line(name: str, read: Callable[[MemoryFiles], object]) -> Decoder:
        return Decoder([files.content[name]], _Replaced(files, name, read), refused, hostile_line)

    def pull(changed: MemoryFiles) -> None:
        read_manifest(changed, newest.version, base=False)
        tables = replica_tables()
        Follower(changed, tables).pull()

    yield "manifest", line(newest.name, pull)
    yield "pin", line("pin.json", read_pin)
    yield "hold", line("hold.json", read_hold)
    for name, (good, read) in readers().items():
        yield name, Decoder([good], read, (BadFile,), hostile_tensors, 0.5)
    yield "form", Decoder([FORM.encode()], _read_form, (BadFile,), hostile_json)
    yield "form of a state", Decoder([FORM.encode()], _Grown(), (BadFile,), hostile_json, 0.5)
    signed = MemoryFiles()
    SignedFiles(signed, _KEY).write("it", b"content")
    read_signed = _Replaced(signed, "it", lambda changed: SignedFiles(changed, _KEY).read("it"))
    yield "signed file", Decoder([signed.content["it"]], read_signed, (BadFile,), mutated, 0.5)


_PRECISIONS: list[Precision] = ["float32", "float16", "int8"]


def _published(precision: Precision) -> tuple[MemoryFiles, Manifest]:
    files = MemoryFiles()
    writer = Writer(files, 1000, seed=1)
    writer.log._precision = precision
    for _ in range(5):
        writer.publish()
    assert writer.log.newest is not None
    return files, writer.log.newest


class _Replaced:
    """Reads files of which one is another."""

    def __init__(self, files: MemoryFiles, name: str, read: Callable[[MemoryFiles], object]) -> None:
        self._good, self._name, self._read = dict(files.content), name, read

    def __call__(self, data: bytes) -> None:
        files = MemoryFiles()
        files.content = {**self._good, self._name: data}
        self._read(files)


class _PulledRows:
    """Pulls a version whose manifest says that these are its rows."""

    def __init__(self, files: MemoryFiles, manifest: Manifest) -> None:
        self._good, self._manifest = dict(files.content), manifest

    def __call__(self, data: bytes) -> None:
        shard = self._manifest.shards[0]
        shards = [msgspec.structs.replace(shard, rows=FileRef.of(shard.rows.name, data))]
        manifest = msgspec.structs.replace(self._manifest, shards=shards)
        files = MemoryFiles()
        files.content = {**self._good, shard.rows.name: data, manifest.name: encode_checked(manifest)}
        decode_rows(shard.rows.name, data)
        tables = replica_tables()
        Follower(files, tables).pull()
        for table in tables.values():
            table.lookup(np.arange(20))


class _StateOf:
    def __init__(self, rows: bytes) -> None:
        self._rows = rows

    def __call__(self, data: bytes) -> None:
        decode("rows", self._rows, "state", data)


class _Grown:
    """Takes a state for a model with one more feature."""

    def __init__(self) -> None:
        self._state, self._trainer = trained().state(), make(hour=SparseFeature(column="h"))

    def __call__(self, form: bytes) -> None:
        grow_state("it", self._state, form.decode(errors="replace"), self._trainer.model, self._trainer.plan)


def _read_form(data: bytes) -> None:
    """As a trainer does whose config is another."""
    files = MemoryFiles()
    files.write("form", data)
    manifest = manifests.Manifest(
        version=1, parent=0, watermark=0, published_at=0, fingerprint=fingerprint_of("other"), shards=[], offsets={},
        form=FileRef.of("form", data),
    )  # fmt: skip
    check_form(files, manifest, FORM)


def _bodies() -> Iterator[tuple[str, Decoder]]:
    refused = (BadRequest,)
    reader = RequestReader(FEATURES, Inputs(FEATURES, {}), dict, 1000, 10_000)
    columns = {
        "item": [12, "x"], "tags": [[1, 2], []], "words": ["a b", ""], "size": [3, 4], "price": [0.5, None],
        "made": [1, "2024-01-31"], "picture": [[1, 2], [3, 4]],
    }  # fmt: skip
    packed = {**columns, "item": np.arange(2).tobytes(), "price": np.ones(2, "<f4").tobytes()}
    rank = {"features": {"user": "u7"}, "candidates": {"ids": ["a", "b"], "features": columns}, "limit": 1}
    fast = {"features": {"user": 7}, "candidates": {"ids": [1, 2], "features": packed}}
    done = {
        "engagements": [{"request_id": "r1", "impression_id": "a", "action": "buy", "value": 2, "happened_at": NOW}]
    }
    infer = {"inputs": [_tensor(item.name, item.datatype) for item in open_inference.inputs_of(reader.inputs)]}

    def engage(msgpack: bool) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            for each in decode_body(EngagementsBody, data, msgpack=msgpack).engagements:
                encode(engagement_of(each, NOW, 1000, 0))

        return read

    for what, bodies, read in (
        ("ranking", [rank, fast], lambda msgpack: lambda data: reader.rank(data, msgpack=msgpack, now_ms=NOW)),
        ("engagements", [done], engage),
        ("inference", [infer], lambda msgpack: lambda data: open_inference.read(data, reader, msgpack=msgpack, now_ms=NOW)),
    ):  # fmt: skip
        texts = [msgspec.json.encode(body) for body in bodies if body is not fast]
        yield f"JSON {what}", Decoder(texts, read(False), refused, hostile_json)
        yield what, Decoder([msgspec.msgpack.encode(body) for body in bodies], read(True), refused, hostile_msgpack)


def _tensor(name: str, kind: str) -> dict[str, object]:
    values: dict[str, list[object]] = {"BYTES": ["a b", "c"], "INT64": [1, 1], "FP32": [0.5, 1.5], "FP64": [3.0, 4.0]}
    if name == "picture":
        return {"name": name, "shape": [2, 2], "datatype": kind, "data": [1.0, 2.0, 3.0, 4.0]}
    return {"name": name, "shape": [2], "datatype": kind, "data": values[kind]}


torch.set_num_threads(1)
DECODERS: dict[str, Decoder] = dict(_decoders())
