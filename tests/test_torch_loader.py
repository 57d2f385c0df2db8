"""`StoreLoader`: the same batches with and without its thread, whatever it is that is read."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import shardstore  # noqa: E402
from shardstore.torch import RaggedTensor, StoreLoader  # noqa: E402

ROWS = 5000


@pytest.fixture(scope="module", params=["raw", "zstd"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loader") / "s"
    with shardstore.Writer(path, codec=request.param, shard_bytes=1 << 16, chunk_bytes=4096) as writer:
        writer.append(
            {
                "x": np.arange(ROWS * 40, dtype=np.float32).reshape(ROWS, 40),
                "y": np.arange(ROWS),
                "text": [np.arange(i % 7, dtype=np.uint8) for i in range(ROWS)],
            }
        )
    return path


def plain(item: Any) -> Any:
    if isinstance(item, RaggedTensor):
        return item.values.tolist(), item.offsets.tolist()
    if isinstance(item, dict):
        return {name: plain(value) for name, value in item.items()}
    return item.tolist() if isinstance(item, torch.Tensor) else item


@pytest.mark.parametrize("shuffle", [False, "full", "window"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_batches_and_states_do_not_depend_on_the_thread(path: Path, shuffle: Any, device: Any) -> None:
    loaders = [
        StoreLoader(path, 70, shuffle=shuffle, seed=2, device=device, prefetch=n, window_bytes=1 << 16, with_rows=True)
        for n in (0, 1, 2, 7)
    ]
    for _ in range(2):
        passes = [iter(loader) for loader in loaders]
        for step, items in enumerate(zip(*passes, strict=True)):
            expected = plain(items[0])
            assert expected["y"] == expected["rows"]
            assert all(plain(item) == expected for item in items[1:])
            if step % 20 == 0:
                states = [loader.state_dict() for loader in loaders]
                assert all(state == states[0] for state in states)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_a_loader_resumes_where_its_batches_ended(path: Path, prefetch: int) -> None:
    loader = StoreLoader(path, 64, shuffle=True, seed=1, prefetch=prefetch, window_bytes=1 << 16)
    seen: list[int] = []
    batches = iter(loader)
    for _ in range(33):
        seen += next(batches)["y"].tolist()
    state = loader.state_dict()
    batches.close()  # type: ignore[attr-defined]
    other = StoreLoader(path, 100, shuffle=True, seed=1, prefetch=2, window_bytes=1 << 16)
    other.load_state_dict(state)
    for batch in other:
        seen += batch["y"].tolist()
    assert sorted(seen) == list(range(ROWS))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_tensors_that_are_kept_never_change(path: Path, prefetch: int) -> None:
    kept = []
    for number, batch in enumerate(StoreLoader(path, 500, columns=["x", "y"], shuffle="full", prefetch=prefetch)):
        if number % 2:
            kept.append((batch["x"][3:4].view(torch.int32), int(batch["y"][3])))
    gc.collect()
    for _ in StoreLoader(path, 500, columns=["x", "y"], shuffle="full", prefetch=prefetch):
        pass
    for bits, row in kept:
        assert np.array_equal(bits.view(torch.float32)[0], np.arange(row * 40, row * 40 + 40, dtype=np.float32))


@pytest.mark.parametrize("wrong", [-1, 1.5, "2", True])
def test_what_prefetch_may_be(path: Path, wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="prefetch is"):
        StoreLoader(path, 10, prefetch=wrong)
    with shardstore.open(path) as store, pytest.raises((ValueError, TypeError), match="prefetch is"):
        store.batches(10, prefetch=wrong)


def test_loaders_keep_to_a_budget(path: Path) -> None:
    with shardstore.open(path, memory_budget="1MiB") as store:
        with pytest.raises(ValueError, match="choose a smaller batch_size"):
            StoreLoader(store, 4000)
        rows = [int(row) for batch in StoreLoader(store, 100, shuffle="full") for row in batch["y"]]
        assert sorted(rows) == list(range(ROWS))
