"""What the table promises, one promise a test."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from paramserver import _native
from paramserver.table import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    Constant,
    Initializer,
    Momentum,
    Normal,
    Optimizer,
    RowFormat,
    Table,
    Uniform,
)

KERNELS = _native.available_kernels()


def random_ids(count: int, seed: int = 0) -> NDArray[np.int64]:
    ids = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, 2 * count)
    return np.unique(ids)[:count] if count else ids


def row_adagrad(weights: NDArray[np.float32], gradients: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    total, result = np.full((len(weights), 1), 0.1), weights.astype(np.float64)
    for gradient in gradients:
        total += (gradient.astype(np.float64) ** 2).mean(1, keepdims=True)
        result -= 0.1 * gradient / (np.sqrt(total) + 1e-10)
    return result


def ftrl(weights: NDArray[np.float32], gradients: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    alpha, beta, l1, l2 = 0.1, 1.0, 0.01, 0.1
    w = weights.astype(np.float64)
    z, n = np.zeros_like(w), np.zeros_like(w)
    for gradient in gradients:
        g = gradient.astype(np.float64)
        z += g - (np.sqrt(n + g * g) - np.sqrt(n)) / alpha * w
        n += g * g
        w = np.where(np.abs(z) <= l1, 0.0, -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2))
    return w


def by_torch(make: Callable[[torch.Tensor], torch.optim.Optimizer], clip: float | None = None) -> Callable[..., object]:
    """Each row as a torch parameter of its own, stepping when it has a gradient."""

    def run(weights: NDArray[np.float32], gradients: list[NDArray[np.float32]]) -> NDArray[np.float64]:
        rows = [torch.nn.Parameter(torch.tensor(row, dtype=torch.float64)) for row in weights]
        optimizers = [make(row) for row in rows]
        for gradient in gradients:
            for row, g, optimizer in zip(rows, gradient, optimizers, strict=True):
                row.grad = torch.tensor(g, dtype=torch.float64)
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_([row], clip)
                optimizer.step()
        return torch.stack([row.detach() for row in rows]).numpy()

    return run


OPTIMIZERS: list[tuple[Optimizer, Callable[..., object]]] = [
    (SGD(learning_rate=0.1), by_torch(lambda row: torch.optim.SGD([row], 0.1))),
    (SGD(learning_rate=0.1, clip=0.5), by_torch(lambda row: torch.optim.SGD([row], 0.1), 0.5)),
    (Momentum(learning_rate=0.1, momentum=0.8), by_torch(lambda row: torch.optim.SGD([row], 0.1, momentum=0.8))),
    (
        Adagrad(learning_rate=0.1, initial_accumulator=0.1, per_element=True),
        by_torch(lambda row: torch.optim.Adagrad([row], 0.1, initial_accumulator_value=0.1)),
    ),
    (
        Adam(learning_rate=0.1, beta1=0.8, beta2=0.99, clip=2.0),
        by_torch(lambda row: torch.optim.Adam([row], 0.1, betas=(0.8, 0.99)), 2.0),
    ),
    (Adagrad(learning_rate=0.1, initial_accumulator=0.1), row_adagrad),
    (FTRL(learning_rate=0.1, beta=1.0, l1=0.01, l2=0.1), ftrl),
]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dim", [1, 5, 16, 40, 64])
@pytest.mark.parametrize(("optimizer", "reference"), OPTIMIZERS)
def test_optimizers_agree_with_torch(
    optimizer: Optimizer, reference: Callable[..., NDArray[np.float64]], dim: int, kernels: str
) -> None:
    random = np.random.default_rng(dim)
    ids = random_ids(50)
    table = Table(dim, optimizer=optimizer, initializer=Uniform(-0.5, 0.5), kernels=kernels)
    first = table.lookup_or_insert(ids, 0)
    assert isinstance(first, np.ndarray)
    gradients = [random.normal(size=(50, dim)).astype(np.float32) for _ in range(12)]
    wanted = reference(first.copy(), gradients)
    for gradient in gradients:
        table.apply(ids, gradient, 0)
    np.testing.assert_allclose(table.lookup(ids), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", [pair[0] for pair in OPTIMIZERS])
@pytest.mark.parametrize("dim", [3, 16, 64])
def test_all_kernels_give_the_same_bits(optimizer: Optimizer, dim: int) -> None:
    random = np.random.default_rng(1)
    batches = [(random.zipf(1.3, 6000) % 5000, random.normal(size=(6000, dim)).astype(np.float32)) for _ in range(4)]
    results = []
    for kernels in KERNELS:
        table = Table(dim, optimizer=optimizer, initializer=Normal(0, 1), kernels=kernels)
        for ids, gradients in batches:
            table.lookup_or_insert(ids[:3000], 1000)
            table.apply(ids, gradients, 1000)
            table.apply_default_row(gradients[0])
        rows = table.seal()
        results.append((table.lookup(batches[0][0]), rows.embeddings, rows.state, *table.default_row()))
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("initializer", [Constant(0.25), Uniform(-1, 2), Normal(3.0, 0.5)])
def test_first_values_depend_on_seed_table_and_id_only(initializer: Initializer) -> None:
    ids = random_ids(20_000)

    def first(seed: int, name: str, order: slice) -> NDArray[np.float32]:
        rows = Table(4, initializer=initializer, seed=seed, name=name).lookup_or_insert(ids[order].copy(), 0)
        return np.asarray(rows)[order]

    rows = first(1, "users", slice(None))
    np.testing.assert_array_equal(rows, first(1, "users", slice(None, None, -1)))
    if isinstance(initializer, Uniform):
        assert rows.min() >= -1 and rows.max() < 2 and abs(rows.mean() - 0.5) < 0.01
    if isinstance(initializer, Normal):
        assert abs(rows.mean() - 3) < 0.01 and abs(rows.std() - 0.5) < 0.01
    if not isinstance(initializer, Constant):
        assert not np.array_equal(rows, first(2, "users", slice(None)))
        assert not np.array_equal(rows, first(1, "items", slice(None)))


def test_normal_first_values_are_normal_and_the_same_bits_on_every_processor() -> None:
    table = Table(13, initializer=Normal(0, 1))
    rows = np.asarray(table.lookup_or_insert(random_ids(100_000), 0)).astype(np.float64)
    for bound in (-3, -2, -1, -0.1, 0, 0.5, 1, 2, 3):
        wanted = (1 + math.erf(bound / math.sqrt(2))) / 2
        error = math.sqrt(wanted * (1 - wanted) / rows.size)
        assert abs((rows < bound).mean() - wanted) < 5 * error
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs((rows**power).mean() - moment) < 0.02
    between = np.corrcoef(np.concatenate([rows, np.abs(rows)], axis=1).T)
    assert np.abs(between - np.eye(26)).max() < 0.02
    few = Table(3, initializer=Normal(0, 1), seed=1, name="items").lookup_or_insert(np.array([0, -1]), 0)
    bits = [[3199786943, 1026219053, 3217853957], [3190456822, 3207119267, 1065331283]]
    assert np.asarray(few).view(np.uint32).tolist() == bits


def test_wrong_buffers_are_refused_and_nothing_is_written() -> None:
    table = Table(2)
    ids = np.array([1, 2])
    table.lookup_or_insert(ids, 0)
    read_only = np.zeros((2, 2), np.float32)
    read_only.flags.writeable = False
    good = np.ones((2, 2), np.float32)
    before = table.export()
    refused: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (TypeError, "int64, got int32", lambda: table.lookup(ids.astype(np.int32))),
        (TypeError, "int64, got uint64", lambda: table.lookup(ids.astype(np.uint64))),
        (TypeError, "float32, got float64", lambda: table.apply(ids, good.astype(np.float64), 0)),
        (TypeError, "got list", lambda: table.apply([1, 2], good, 0)),  # type: ignore[arg-type]
        (TypeError, "read-only", lambda: table.lookup(ids, read_only)),
        (TypeError, "CPU", lambda: table.lookup(torch.zeros(2, dtype=torch.int64, device="meta"))),
        (ValueError, "contiguous", lambda: table.lookup(np.arange(4)[::2])),
        (ValueError, "contiguous", lambda: table.apply(ids, np.ones((2, 2), np.float32, "F"), 0)),
        (ValueError, "dimension 0 must be 2, got 3", lambda: table.upsert(ids, np.ones((3, 2), np.float32))),
        (ValueError, "dimension 1 must be 2, got 3", lambda: table.upsert(ids, np.ones((2, 3), np.float32))),
        (ValueError, "1 dimension", lambda: table.erase(ids.reshape(1, 2))),
        (ValueError, "now_ms", lambda: table.apply(ids, good, -1)),
        (ValueError, "now_ms", lambda: table.lookup_or_insert(ids, 2**32 * 1000)),
    ]
    for kind, message, call in refused:
        with pytest.raises(kind, match=message):
            call()
    np.testing.assert_array_equal(read_only, 0)
    after = table.export()
    np.testing.assert_array_equal(before.embeddings, after.embeddings)


def test_torch_and_read_only_buffers_are_used_in_place() -> None:
    table = Table(2, optimizer=SGD(learning_rate=1.0))
    ids = torch.tensor([5, 6])
    out = torch.ones(2, 2)
    assert table.lookup_or_insert(ids, 0, out) is out
    assert out.sum() == 0
    frozen = np.array([5, 6])
    frozen.flags.writeable = False
    table.apply(frozen, torch.ones(2, 2), 0)
    np.testing.assert_array_equal(table.lookup(frozen), -np.ones((2, 2)))
    assert table.lookup(np.empty(0, np.int64)).shape == (0, 2)


def test_options_out_of_range_are_named() -> None:
    for message, make in [
        ("dim", lambda: Table(0)),
        ("admit_after", lambda: Table(1, admit_after=0)),
        ("admit_after", lambda: Table(1, admit_after=65536)),
        ("expire_after_seconds", lambda: Table(1, expire_after_seconds=0)),
        ("learning_rate", lambda: SGD(learning_rate=0)),
        ("clip", lambda: SGD(clip=-1)),
        ("eps", lambda: Adagrad(eps=float("nan"))),
        ("high", lambda: Uniform(1, 1)),
        ("kernels", lambda: Table(1, kernels="mmx")),
    ]:
        with pytest.raises(ValueError, match=message):
            make()  # type: ignore[no-untyped-call]


def test_bad_gradients_are_counted_and_named() -> None:
    table = Table(16)
    ids = np.arange(100)
    table.lookup_or_insert(ids, 0)
    gradients = np.ones((100, 16), np.float32)
    gradients[7, 3], gradients[9, 0], gradients[11, 15] = np.nan, np.inf, -np.inf
    table.apply(ids, gradients, 0)
    changed = np.flatnonzero(np.asarray(table.lookup(ids))[:, 0])
    assert sorted(set(range(100)) - set(changed.tolist())) == [7, 9, 11]
    assert table.stats.rejected_gradients == 3
    assert sorted(table.stats.rejected_ids) == [7, 9, 11]


def shared_bucket_ids(count: int, buckets: int, seed: int = 0, name: str = "") -> NDArray[np.int64]:
    """Ids that share both buckets in any index of up to `buckets` buckets, of a table whose seed and name are known."""
    found: dict[tuple[int, int], list[int]] = {}
    for i in range(10_000_000):
        first, second = _native.bucket_hashes(seed, name, 0, i)
        ids = found.setdefault((first * buckets >> 64, second * buckets >> 64), [])
        ids.append(i)
        if len(ids) == count:
            return np.array(ids)
    raise AssertionError("no such ids among the first ten million")


def test_ids_that_share_both_buckets_neither_fail_nor_grow_the_index() -> None:
    crafted = shared_bucket_ids(40, 64)
    table = Table(1, initializer=Normal(0, 1))
    rows = np.asarray(table.lookup_or_insert(crafted, 0)).copy()
    assert len(table) == 40
    assert table.stats.index_bytes <= 256 * 64
    np.testing.assert_array_equal(table.lookup(crafted), rows)
    table.lookup_or_insert(random_ids(100_000), 0)
    np.testing.assert_array_equal(table.lookup(crafted), rows)
    assert table.erase(crafted) == 40 and len(table) == 100_000


@pytest.mark.parametrize("n", [2, 3, 1000, 65_535])
def test_admission_is_exact(n: int) -> None:
    table = Table(2, initializer=Constant(1.0), admit_after=n)
    batch = np.full(n - 1, 42)
    assert not np.asarray(table.lookup_or_insert(batch, 0)).any() and len(table) == 0
    assert np.asarray(table.lookup_or_insert(np.array([42, 43]), 0))[0].all() and len(table) == 1
    assert table.export().counts.tolist() == [n]


def test_the_oldest_candidates_go_when_the_budget_is_full() -> None:
    table = Table(1, admit_after=2, candidates=100)
    table.lookup_or_insert(np.arange(100), 0)
    table.lookup_or_insert(np.arange(1000, 1010), 0)
    assert table.stats.candidates == 100 and table.stats.candidates_dropped == 10
    table.lookup_or_insert(np.arange(10, 100), 0)
    assert len(table) == 90


def test_every_expired_id_is_reported_once_and_memory_is_reused() -> None:
    table = Table(16, expire_after_seconds=100)
    sizes = []
    for day in range(30):
        ids = np.arange(day * 20_000, (day + 1) * 20_000)
        table.lookup_or_insert(ids, day * 100_000)
        expired = 0
        while (table.stats.expired) < day * 20_000:
            expired += table.expire(day * 100_000, 5000)
        sealed = table.seal()
        assert sealed.expired.tolist() == list(range((day - 1) * 20_000, day * 20_000) if day else [])
        assert sealed.ids.tolist() == ids.tolist()
        sizes.append(table.stats.index_bytes + table.stats.row_bytes)
    assert sizes[-1] <= 1.05 * sizes[3]


@pytest.mark.parametrize(("row_format", "error"), [("float32", 0.0), ("float16", 5e-4), ("int8", 1 / 127)])
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dim", [1, 16, 21])
def test_replicas_keep_rows_in_their_format(row_format: RowFormat, error: float, kernels: str, dim: int) -> None:
    replica = Table(dim, row_format=row_format, kernels=kernels)
    ids = random_ids(3000)
    rows = np.random.default_rng(0).normal(size=(3000, dim)).astype(np.float32)
    replica.upsert(ids, rows)
    got = np.asarray(replica.lookup(ids))
    bound = error * np.abs(rows).max(1, keepdims=True)
    assert (np.abs(got - rows) <= bound).all()
    again = Table(dim, row_format=row_format, kernels="plain")
    again.upsert(ids, rows)
    np.testing.assert_array_equal(again.lookup(ids), got)
    assert replica.erase(ids[:10]) == 10 and not np.asarray(replica.lookup(ids[:10])).any()
    with pytest.raises(RuntimeError, match="replica"):
        replica.apply(ids, rows, 0)


def test_float16_rounds_as_numpy_does() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 64 * 2000, dtype=np.uint32)
    values = bits.view(np.float32).reshape(-1, 64)
    values = np.where(np.isnan(values), np.float32(1.5), values)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16).astype(np.float32)
    for kernels in KERNELS:
        table = Table(64, row_format="float16", kernels=kernels)
        table.upsert(np.arange(2000), values)
        np.testing.assert_array_equal(table.lookup(np.arange(2000)), wanted)


def test_readers_beside_a_writer_see_whole_rows_and_miss_none() -> None:
    dim = 16
    replica = Table(dim, row_format="float32")
    steady = random_ids(2000)
    replica.upsert(steady, np.zeros((2000, dim), np.float32))
    stop = threading.Event()
    wrong: list[str] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        out = np.empty((2000, dim), np.float32)
        while not stop.is_set():
            replica.lookup(steady, out)
            if (out != out[:, :1]).any():
                wrong.append("half a row")
            if (out < 0).any() or not replica.contains(steady).all():
                wrong.append("a missing id")
            reads += 1

    replica.set_default_row(np.full(dim, -1, np.float32))
    reader = threading.Thread(target=read)
    reader.start()
    # New ids grow the index under the reader, and go again.
    for turn in range(60):
        replica.upsert(steady, np.full((2000, dim), turn, np.float32))
        others = random_ids(4000, seed=turn + 1)
        replica.upsert(others, np.zeros((4000, dim), np.float32))
        if turn % 3 == 0:
            replica.erase(others)
    stop.set()
    reader.join()
    assert reads > 10 and not wrong, set(wrong)
