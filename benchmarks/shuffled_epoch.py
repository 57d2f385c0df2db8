"""A shuffled epoch from a store, beside the same loop over arrays in RAM and over one np.memmap.

600,000 rows of float32[128] and an int64 in shards of 4 MiB, in batches of 256 rows as dicts of torch tensors, one
process, everything in the page cache and the page tables. The loops over arrays make a permutation of all rows with
NumPy first; they are timed with it and without it. The store always counts its own.

    python benchmarks/shuffled_epoch.py [--json PATH]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import common
import numpy as np
import torch
from numpy.typing import NDArray

import shardstore
from shardstore.torch import StoreIterableDataset

WIDTH = 128
BATCH = 256
Batch = dict[str, torch.Tensor]
Pick = Callable[[NDArray[np.generic], NDArray[np.int64]], NDArray[np.generic]]


def make_data(directory: Path, rows: int) -> tuple[Path, NDArray[np.float32], NDArray[np.int64]]:
    """Write the store, and beside it each column as one file; return the store's path and the arrays."""
    x, y = common.random_rows(rows, WIDTH), np.arange(rows, dtype=np.int64)
    path = directory / "store"
    with shardstore.Writer(path, shard_bytes="4MiB") as writer:
        writer.append({"x": x, "y": y})
    x.tofile(directory / "x.bin")
    y.tofile(directory / "y.bin")
    return path, x, y


def array_batches(
    x: NDArray[np.generic], y: NDArray[np.generic], order: NDArray[np.int64], pick: Pick
) -> Iterator[Batch]:
    """Yield the batches of an epoch over two arrays, in the given order."""
    for start in range(0, len(order), BATCH):
        index = order[start : start + BATCH]
        yield {"x": torch.from_numpy(pick(x, index)), "y": torch.from_numpy(pick(y, index))}


def take(array: NDArray[np.generic], index: NDArray[np.int64]) -> NDArray[np.generic]:
    """Pick rows by np.take."""
    return np.take(array, index, axis=0)


def fancy(array: NDArray[np.generic], index: NDArray[np.int64]) -> NDArray[np.generic]:
    """Pick rows by fancy indexing."""
    return array[index]


def store_batches(store: shardstore.Store) -> Iterator[Batch]:
    """Yield the batches of a shuffled epoch of a store."""
    for batch in store.batches(BATCH, shuffle=True):
        yield {name: torch.from_numpy(array) for name, array in batch.items()}


def drain(batches: Iterator[Batch]) -> None:
    """Take every batch and drop it."""
    for _ in batches:
        pass


def main() -> None:
    parser = common.parser(__doc__, repeats=15)
    parser.add_argument("--rows", type=int, default=600_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with common.workspace(options.dir) as directory:
        path, x, y = make_data(directory, options.rows)
        x_map = np.memmap(directory / "x.bin", np.float32, "r", shape=x.shape)
        y_map = np.memmap(directory / "y.bin", np.int64, "r", shape=y.shape)
        store = shardstore.open(path)
        dataset = StoreIterableDataset(store, batch_size=BATCH, shuffle=True)
        order = rng.permutation(options.rows)
        ways = {
            "RAM": lambda: drain(array_batches(x, y, order, take)),
            "RAM with permutation": lambda: drain(array_batches(x, y, rng.permutation(options.rows), take)),
            "memmap": lambda: drain(array_batches(x_map, y_map, order, fancy)),
            "memmap with permutation": lambda: drain(array_batches(x_map, y_map, rng.permutation(options.rows), fancy)),
            "store.batches": lambda: drain(store_batches(store)),
            "StoreIterableDataset": lambda: drain(iter(dataset)),
        }
        seconds = common.alternate({name: common.timed(work) for name, work in ways.items()}, options.repeats)
    figures = [
        common.Figure(name, [options.rows / s / 1e6 for s in runs], "M rows/s") for name, runs in seconds.items()
    ]
    for ours in ("store.batches", "StoreIterableDataset"):
        for theirs in ways:
            target = 0.9 if theirs.startswith("RAM") else 2.0
            if theirs.startswith(("RAM", "memmap")):
                ratios = common.speed_ratios(seconds, ours, theirs)
                figures.append(common.Figure(f"{ours} / {theirs}", ratios, "×", target))
    common.report(f"Shuffled epoch of {options.rows:,} rows", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
