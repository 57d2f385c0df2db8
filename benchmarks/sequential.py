"""A sequential epoch from a store, everything in the page cache: views without a copy, and fresh torch tensors.

819,200 rows of float32[128] and an int64 in 100 shards of 4 MiB, batches of 256 rows, one process, no consumer.

Views: `store.batches(256, copy=False)` gives read-only views of the maps. Beside it stand the loops over arrays in RAM
that copy each batch, with np.take and by a slice's `copy()`.

Tensors: dicts of fresh tensors, from `store.batches(256)` with `torch.from_numpy` and from `StoreIterableDataset`,
beside a memcpy of the same batches from RAM into fresh arrays, with `torch.from_numpy`, too.

    python benchmarks/sequential.py [--json PATH]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import common
import numpy as np
import torch
from numpy.typing import NDArray

import shardstore
from shardstore.torch import StoreIterableDataset

ROWS, WIDTH, BATCH = 819_200, 128, 256
Arrays = dict[str, NDArray[Any]]
Cut = Callable[[NDArray[Any], int, int], NDArray[Any]]


def taken(array: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Copy rows by np.take."""
    return np.take(array, np.arange(start, stop), axis=0)


def copied(array: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """Copy rows of a slice."""
    return array[start:stop].copy()


def in_ram(arrays: Arrays, cut: Cut) -> Iterator[Arrays]:
    """Yield batches of arrays."""
    for start in range(0, ROWS, BATCH):
        stop = min(start + BATCH, ROWS)
        yield {name: cut(array, start, stop) for name, array in arrays.items()}


def tensors(batches: Iterable[Arrays]) -> Iterator[dict[str, torch.Tensor]]:
    """Show batches of arrays as tensors."""
    for batch in batches:
        yield {name: torch.from_numpy(array) for name, array in batch.items()}


def drain(batches: Iterable[Any]) -> None:
    """Take every batch and drop it."""
    for _ in batches:
        pass


def main() -> None:
    options = common.parser(__doc__, repeats=15).parse_args()
    arrays: Arrays = {"x": common.random_rows(ROWS, WIDTH), "y": np.arange(ROWS, dtype=np.int64)}
    with common.workspace(options.dir) as directory:
        with shardstore.Writer(directory / "store", shard_bytes="4MiB") as writer:
            writer.append(arrays)
        store = shardstore.open(directory / "store")
        dataset = StoreIterableDataset(store, batch_size=BATCH)
        for batch, expected in zip(store.batches(BATCH, copy=False), in_ram(arrays, copied), strict=True):
            np.testing.assert_array_equal(batch["x"], expected["x"])
        ways = {
            "views": lambda: drain(store.batches(BATCH, copy=False)),
            "RAM, take": lambda: drain(in_ram(arrays, taken)),
            "RAM, copy": lambda: drain(in_ram(arrays, copied)),
            "batches, tensors": lambda: drain(tensors(store.batches(BATCH))),
            "StoreIterableDataset": lambda: drain(dataset),
            "memcpy, tensors": lambda: drain(tensors(in_ram(arrays, copied))),
        }
        seconds = common.alternate({name: common.timed(work) for name, work in ways.items()}, options.repeats)
    figures = [common.Figure(name, [ROWS / s / 1e6 for s in runs], "M rows/s") for name, runs in seconds.items()]
    figures.append(common.Figure("a batch of views", [1e6 * s * BATCH / ROWS for s in seconds["views"]], "µs"))
    pairs: list[tuple[str, str, float]] = [("views", "RAM, take", 20), ("views", "RAM, copy", 20)]
    pairs += [(ours, "memcpy, tensors", 0.9) for ours in ("batches, tensors", "StoreIterableDataset")]
    for ours, theirs, target in pairs:
        figures.append(common.Figure(f"{ours} / {theirs}", common.speed_ratios(seconds, ours, theirs), "×", target))
    common.report(f"Sequential epoch of {ROWS:,} rows", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
