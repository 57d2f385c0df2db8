"""A shuffled epoch from a store, beside the same loop over arrays in RAM and over one np.memmap.

100 shards of rows of each kind, in batches of 256 rows as dicts of torch tensors, one process, everything in the page
cache and the page tables. With each row goes an int64.

- narrow: 1,638,400 rows of float32[8].
- medium: 819,200 rows of float32[128].
- wide: 6,400 images of uint8[3, 224, 224].

The loops over arrays make a permutation of all rows with NumPy first; they are timed with it and without it. The store
always counts its own.

    python benchmarks/shuffled_epoch.py [--kinds narrow,medium,wide] [--json PATH]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import torch
from numpy.typing import NDArray

import shardstore
from shardstore.torch import StoreIterableDataset

BATCH = 256
SHARDS = 100
Batch = dict[str, torch.Tensor]
Pick = Callable[[NDArray[np.generic], NDArray[np.int64]], NDArray[np.generic]]


@dataclass(frozen=True)
class Kind:
    """Rows of a shape.

    Attributes:
        dtype: of the values.
        shape: of a row.
        shard_rows: rows of each shard.
        ram_target: how fast the store is to be, relative to the loop over arrays in RAM.
        memmap_target: the same, relative to fancy indexing of a memmap.
    """

    dtype: type[np.generic]
    shape: tuple[int, ...]
    shard_rows: int
    ram_target: float
    memmap_target: float | None = None


KINDS = {
    "narrow": Kind(np.float32, (8,), 16_384, 1.0),
    "medium": Kind(np.float32, (128,), 8_192, 1.0, 2.0),
    "wide": Kind(np.uint8, (3, 224, 224), 64, 0.95),
}


def make_data(directory: Path, kind: Kind) -> tuple[Path, NDArray[np.generic], NDArray[np.int64]]:
    """Write the store, and beside it each column as one file; return the store's path and the arrays."""
    directory.mkdir()
    rows = SHARDS * kind.shard_rows
    x = np.empty((rows, *kind.shape), kind.dtype)
    y = np.arange(rows, dtype=np.int64)
    numbers = np.random.default_rng(0).random(1_000_003, np.float32) * 255
    flat = x.reshape(-1)
    for start in range(0, len(flat), len(numbers)):
        flat[start : start + len(numbers)] = numbers[: len(flat) - start]
    path = directory / "store"
    with shardstore.Writer(path, shard_bytes=kind.shard_rows * x[0].nbytes) as writer:
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


def measure(directory: Path, kind: Kind, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of an epoch of each way."""
    path, x, y = make_data(directory, kind)
    x_map = np.memmap(directory / "x.bin", kind.dtype, "r", shape=x.shape)
    y_map = np.memmap(directory / "y.bin", np.int64, "r", shape=y.shape)
    store = shardstore.open(path)
    dataset = StoreIterableDataset(store, batch_size=BATCH, shuffle=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    ways = {
        "RAM": lambda: drain(array_batches(x, y, order, take)),
        "RAM with permutation": lambda: drain(array_batches(x, y, rng.permutation(len(y)), take)),
        "memmap": lambda: drain(array_batches(x_map, y_map, order, fancy)),
        "memmap with permutation": lambda: drain(array_batches(x_map, y_map, rng.permutation(len(y)), fancy)),
        "store.batches": lambda: drain(store_batches(store)),
        "StoreIterableDataset": lambda: drain(iter(dataset)),
    }
    return common.alternate({name: common.timed(work) for name, work in ways.items()}, repeats)


def figures_of(name: str, kind: Kind, seconds: dict[str, list[float]]) -> list[common.Figure]:
    """Return rows a second of each way, and what the store's are relative to the others'."""
    rows = SHARDS * kind.shard_rows
    figures = [
        common.Figure(f"{name}, {way}", [rows / s / 1e6 for s in runs], "M rows/s") for way, runs in seconds.items()
    ]
    for ours in ("store.batches", "StoreIterableDataset"):
        for theirs in seconds:
            if theirs.startswith(("RAM", "memmap")):
                target = kind.ram_target if theirs.startswith("RAM") else kind.memmap_target
                ratios = common.speed_ratios(seconds, ours, theirs)
                figures.append(common.Figure(f"{name}, {ours} / {theirs}", ratios, "×", target))
    return figures


def main() -> None:
    parser = common.parser(__doc__, repeats=7)
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of rows (default: %(default)s)")
    options = parser.parse_args()
    seconds, figures = {}, []
    for name in options.kinds.split(","):
        with common.workspace(options.dir) as directory:
            seconds[name] = measure(directory / name, KINDS[name], options.repeats)
        figures += figures_of(name, KINDS[name], seconds[name])
    common.report(f"Shuffled epoch of {SHARDS} shards", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
