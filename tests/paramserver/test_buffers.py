"""Buffers of the caller: every operation refuses every wrong one and leaves the table as it was; right ones are held."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from paramserver import _native

DIM, COUNT = 3, 4
Arrays = dict[str, Any]

# Each operation: its buffers with their dtype and shape. Those that are written to are named out.
IDS = ("int64", (COUNT,))
ROWS = ("float32", (COUNT, DIM))
OPERATIONS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "lookup": {"ids": IDS, "out": ROWS},
    "lookup_or_insert": {"ids": IDS, "out": ROWS},
    "apply": {"ids": IDS, "gradients": ROWS},
    "contains": {"ids": IDS, "out": ("bool", (COUNT,))},
    "upsert": {"ids": IDS, "embeddings": ROWS},
    "erase": {"ids": IDS},
    "restore": {
        "ids": IDS,
        "embeddings": ROWS,
        "state": ("float32", (COUNT, 1)),
        "last_seen_seconds": ("uint32", (COUNT,)),
        "counts": ("uint32", (COUNT,)),
        "expired": ("int64", (2,)),
        "default_embedding": ("float32", (DIM,)),
        "default_state": ("float32", (1,)),
    },
    "apply_default_row": {"gradient": ("float32", (DIM,))},
    "set_default_row": {"embedding": ("float32", (DIM,)), "state": ("float32", (1,))},
}
TIMED = {"lookup_or_insert", "apply"}
CASES = [(operation, name) for operation, buffers in OPERATIONS.items() for name in buffers]


def make_table() -> _native.NativeTable:
    table = _native.NativeTable(
        dim=DIM,
        optimizer="row_adagrad",
        optimizer_values=[0.1, 0, 1e-10, 0.1, 0, 0, 1, 0, 0],
        initializer="constant",
        a=2.0,
        b=0.0,
        seed=0,
        name="",
        expire_after_seconds=0,
        admit_after=1,
        candidates=1,
        secret=0,
        max_rows=0,
        row_format="train",
        kernels="",
    )
    table.lookup_or_insert(np.arange(COUNT), 0, np.empty((COUNT, DIM), np.float32))
    return table


def content(table: _native.NativeTable) -> list[bytes]:
    return [part.tobytes() for part in (*table.export(), *table.default_row())] + [repr(table.stats()).encode()]


def right(operation: str) -> Arrays:
    return {name: np.ones(shape, dtype) for name, (dtype, shape) in OPERATIONS[operation].items()}


def call(table: _native.NativeTable, operation: str, arrays: Arrays) -> None:
    arguments = {**arrays, "now_ms": 1000} if operation in TIMED else arrays
    getattr(table, operation)(**arguments)


def as_it_is(array: Any) -> Any:
    return array


def as_torch(array: Any) -> Any:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def other_type(array: Any) -> Any:
    return array.astype(np.float64 if array.dtype == np.float32 else np.int32 if array.dtype != np.int32 else np.int16)


def strided(array: Any) -> Any:
    wide = np.ones((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    return wide[..., ::2]


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def misaligned(array: Any) -> Any:
    data = np.zeros(array.nbytes + 1, np.uint8)[1:]
    return data.view(array.dtype).reshape(array.shape)


DEFECTS: dict[str, tuple[type[Exception], str, Callable[[Any], Any]]] = {
    "another dtype": (TypeError, "dtype must be", other_type),
    "a dimension more": (ValueError, "dimension", lambda array: array[None]),
    "another length": (
        ValueError,
        "must be",
        lambda array: np.ones((array.shape[0] + 1, *array.shape[1:]), array.dtype),
    ),
    "not contiguous": (ValueError, "contiguous", strided),
    "a list": (TypeError, "got list", lambda array: array.tolist()),
}


def wrong_cases() -> Iterator[tuple[str, str, str]]:
    """Every operation, each of its buffers, and what can be wrong with it."""
    for operation, name in CASES:
        any_length = (operation, name) in (("erase", "ids"), ("restore", "expired"))
        one_number = OPERATIONS[operation][name][1] == (1,)  # always contiguous
        for defect in DEFECTS:
            if not (any_length and defect == "another length") and not (one_number and defect == "not contiguous"):
                yield operation, name, defect


@pytest.mark.parametrize("convert", [as_it_is, as_torch], ids=["numpy", "torch"])
@pytest.mark.parametrize(("operation", "name", "defect"), wrong_cases())
def test_a_wrong_buffer_is_named_and_nothing_is_written(
    operation: str, name: str, defect: str, convert: Callable[[Any], Any]
) -> None:
    kind, said, spoil = DEFECTS[defect]
    table, arrays = make_table(), right(operation)
    before, others = content(table), {key: value.copy() for key, value in arrays.items()}
    spoiled = spoil(arrays[name])
    given = {key: convert(value) for key, value in {**arrays, name: spoiled}.items()}
    with pytest.raises(kind, match=said) as caught:
        call(table, operation, given)
    # Of ids any length is right, so it is the other buffers' that is wrong.
    assert f"{operation}: {'' if defect == 'another length' and name == 'ids' else name}" in str(caught.value)
    assert content(table) == before
    for key, value in others.items():
        np.testing.assert_array_equal(arrays[key], value)


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if case != ("set_default_row", "state")])
def test_none_is_no_buffer(operation: str, name: str) -> None:
    table = make_table()
    before = content(table)
    with pytest.raises(TypeError, match="None"):
        call(table, operation, {**right(operation), name: None})
    assert content(table) == before


@pytest.mark.parametrize(("operation", "name"), CASES)
def test_another_device_is_refused(operation: str, name: str) -> None:
    table, arrays = make_table(), {key: as_torch(value) for key, value in right(operation).items()}
    before = content(table)
    with pytest.raises((TypeError, ValueError), match="CPU"):
        call(table, operation, {**arrays, name: arrays[name].to("meta")})
    assert content(table) == before


@pytest.mark.parametrize(("operation", "name"), CASES)
def test_read_only_buffers_are_read_and_never_written(operation: str, name: str) -> None:
    table, arrays = make_table(), right(operation)
    arrays[name] = read_only(arrays[name])
    before = content(table)
    if name != "out":
        call(table, operation, arrays)
        return
    with pytest.raises(TypeError, match=f"{operation}: out.*read-only"):
        call(table, operation, arrays)
    assert content(table) == before
    assert (arrays[name] == 1).all()


@pytest.mark.parametrize(("operation", "name"), [case for case in CASES if OPERATIONS[case[0]][case[1]][0] != "bool"])
def test_a_misaligned_buffer_is_refused(operation: str, name: str) -> None:
    table, arrays = make_table(), right(operation)
    before = content(table)
    with pytest.raises(ValueError, match=f"{operation}: {name}.*aligned"):
        call(table, operation, {**arrays, name: misaligned(arrays[name])})
    assert content(table) == before


@pytest.mark.parametrize("convert", [as_it_is, as_torch], ids=["numpy", "torch"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_right_buffers_are_used_in_place(operation: str, convert: Callable[[Any], Any]) -> None:
    table, arrays = make_table(), right(operation)
    call(table, operation, {name: convert(value) for name, value in arrays.items()})
    if operation in ("lookup", "lookup_or_insert"):
        assert (arrays["out"] == 2).all(), "the rows are in the caller's memory"


def start(table: _native.NativeTable, operation: str, arrays: Arrays) -> threading.Thread:
    """A call in another thread, which has the buffers when this returns: it keeps the interpreter's lock until then."""
    begun = threading.Event()

    def work() -> None:
        begun.set()
        call(table, operation, arrays)

    running = threading.Thread(target=work)
    running.start()
    begun.wait()
    time.sleep(0.001)
    return running


@pytest.mark.parametrize("operation", ["lookup", "lookup_or_insert", "apply", "upsert", "contains", "erase"])
def test_a_buffer_is_held_for_the_whole_call(operation: str) -> None:
    """While a call runs in another thread, its memory cannot be released; afterwards it can."""
    count = 1_000_000
    table = make_table()
    ids = bytearray(np.random.default_rng(0).integers(-(2**62), 2**62, count).tobytes())
    arrays: Arrays = {"ids": memoryview(ids).cast("q")}
    for name, (dtype, shape) in OPERATIONS[operation].items():
        if name != "ids":
            arrays[name] = np.ones((count, *shape[1:]), dtype)
    refused = 0
    for _ in range(50):  # a call may be over before this thread has its turn
        running = start(table, operation, arrays)
        while running.is_alive() and not refused:
            try:
                arrays["ids"].release()
                arrays["ids"] = memoryview(ids).cast("q")
                break
            except BufferError:
                refused += 1
        running.join()
        if refused:
            break
    assert refused, "it could be released during the call"
    arrays["ids"].release()
    ids.clear()
