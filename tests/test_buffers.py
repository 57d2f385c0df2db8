"""Memory is handed out again only once nobody can see it any more."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardstore
from shardstore import buffers
from shardstore.buffers import BufferPool

ROWS = np.dtype(np.float32)
LARGE = (1024, 128)  # 512 KiB


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_that_nobody_holds_is_used_again() -> None:
    pool = BufferPool()
    first = address(pool.empty(LARGE, ROWS))
    assert address(pool.empty(LARGE, ROWS)) == first
    assert address(pool.empty((1023, 128), ROWS)) == first  # about as large


def views_of(array: Any) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    return {
        "array": array,
        "slice": array[5:6],
        "view": array.view(np.uint8),
        "reshaped": array.reshape(-1)[::7],
        "transposed": array.T,
        "memoryview": memoryview(array)[1:2],
        "tensor": torch.from_numpy(array),
        "tensor slice": torch.from_numpy(array[3:9])[1:2],
        "tensor view": torch.from_numpy(array).reshape(-1).view(torch.int32),
        "detached": torch.from_numpy(array).detach(),
        "from dlpack": np.from_dlpack(torch.from_numpy(array)),
        "field": array.view([("a", np.float32)])["a"],
        "iterator": iter(array),
    }


@pytest.mark.parametrize("kind", list(views_of(np.zeros(LARGE, ROWS))))
def test_memory_that_anything_shows_is_left_alone(kind: str) -> None:
    pool = BufferPool()
    array = pool.empty(LARGE, ROWS)
    place = address(array)
    kept = [views_of(array)[kind]]
    del array
    gc.collect()
    others = [pool.empty(LARGE, ROWS) for _ in range(6)]
    assert place not in [address(other) for other in others]
    kept.clear()
    gc.collect()


@given(st.lists(st.integers(0, 7), max_size=60))
def test_no_two_living_arrays_overlap(steps: list[int]) -> None:
    """Step i below 5 makes an array, the others drop one; each array keeps what was written into it."""
    pool = BufferPool()
    living: list[tuple[int, Any]] = []
    for number, step in enumerate(steps):
        if step < 5:
            array = pool.empty((1024 + 40 * step, 128), ROWS)
            array[...] = number
            living.append((number, array[step:]))
        elif living:
            living.pop(step % len(living))
        for mark, view in living:
            assert (view == mark).all()


def test_small_arrays_and_other_interpreters_get_fresh_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BufferPool()
    small = [pool.empty((10,), ROWS) for _ in range(20)]
    assert len({address(array) for array in small}) == 20
    monkeypatch.setattr(buffers, "_UNSHARED", None)
    large = [pool.empty(LARGE, ROWS) for _ in range(20)]
    assert len({address(array) for array in large}) == 20


def test_a_pool_keeps_a_bounded_number_of_arrays() -> None:
    made: list[int] = []

    def allocate(nbytes: int) -> Any:
        made.append(nbytes)
        return np.empty(nbytes, np.uint8)

    pool = BufferPool(allocate)
    living = [pool.empty(LARGE, ROWS) for _ in range(20)]
    assert len(made) == 20
    del living
    again = [pool.empty(LARGE, ROWS) for _ in range(20)]
    assert len(made) == 20 + 20 - 4
    del again


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("shuffle", [False, "full"])
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_batches_that_are_kept_never_change(tmp_path: Path, codec: str, shuffle: Any, prefetch: int) -> None:
    rows = np.arange(40_000 * 64, dtype=np.float32).reshape(40_000, 64)
    with shardstore.Writer(tmp_path / "s", codec=codec, shard_bytes=1 << 20) as writer:
        writer.append({"x": rows, "y": np.arange(40_000)})
    with shardstore.open(tmp_path / "s") as store:
        kept: list[Any] = []
        for number, batch in enumerate(store.batches(1500, shuffle=shuffle, prefetch=prefetch)):
            if number % 3:
                kept.append(batch)  # the others are dropped, and their memory used again
        for batch in kept:
            assert np.array_equal(batch["x"], rows[batch["y"]])
