"""Opening stores of many shards, and their first shuffled batch of 256 rows.

1,000 shards × 3 columns, of which the batch has all; and 10,000 shards × 10 columns of single bytes, 100,000 files, of
which the batch has two. Each round is a fresh process that has imported shardstore; files and directory entries are in
the caches.

    python benchmarks/opening.py [--json PATH]
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from unittest import mock

import common
import numpy as np

import shardstore

SHARDS, SHARD_ROWS, WIDTH = 1000, 4096, 16
MANY_SHARDS, MANY_COLUMNS = 10_000, 10


def make_store(path: Path) -> None:
    """Write a store of `SHARDS` shards with three raw columns."""
    rng = np.random.default_rng(0)
    with shardstore.Writer(path, shard_bytes=SHARD_ROWS * WIDTH * 4) as writer:
        for shard in range(SHARDS):
            x = rng.random((SHARD_ROWS, WIDTH), np.float32)
            rows = np.arange(SHARD_ROWS) + shard * SHARD_ROWS
            writer.append({"x": x, "y": rows, "z": rows.astype(np.float32)})


def make_large_store(path: Path) -> None:
    """Write a store of `MANY_SHARDS` shards with `MANY_COLUMNS` raw columns of a byte."""
    block = np.random.default_rng(0).integers(0, 256, 100 * SHARD_ROWS, np.uint8)
    # An fsync of each of a hundred thousand files would take minutes, and what is written is thrown away.
    with mock.patch.object(os, "fsync"), shardstore.Writer(path, shard_bytes=SHARD_ROWS) as writer:
        for _ in range(0, MANY_SHARDS, 100):
            writer.append({f"c{number}": block + number for number in range(MANY_COLUMNS)})
    assert sum(1 for _ in path.rglob("*/c/*")) == MANY_SHARDS * MANY_COLUMNS


def open_and_read(path: Path, columns: list[str] | None) -> tuple[float, float]:
    """Return the seconds to open the store, and to its first shuffled batch after that."""
    start = time.perf_counter()
    store = shardstore.open(path)
    opened = time.perf_counter()
    next(iter(store.batches(256, columns=columns, shuffle=True)))
    return opened - start, time.perf_counter() - opened


def measure(path: Path, columns: list[str] | None, repeats: int) -> list[tuple[float, float]]:
    """Return the seconds of each round, the caches being warm."""

    def run() -> tuple[float, float]:
        opened, read = common.run_in_child(open_and_read, path, columns, interval=0.1).result
        return float(opened), float(read)

    run()
    return [run() for _ in range(repeats)]


def figures_of(name: str, runs: list[tuple[float, float]], open_ms: float, batch_ms: float) -> list[common.Figure]:
    """Return the milliseconds of some rounds."""
    return [
        common.Figure(f"{name}, open", [1000 * opened for opened, _ in runs], "ms", open_ms, at_least=False),
        common.Figure(f"{name}, first batch", [1000 * read for _, read in runs], "ms", batch_ms, at_least=False),
    ]


def main() -> None:
    options = common.parser(__doc__, repeats=15).parse_args()
    with common.workspace(options.dir) as directory:
        make_store(directory / "store")
        some = measure(directory / "store", None, options.repeats)
        make_large_store(directory / "large")
        many = measure(directory / "large", ["c0", "c7"], options.repeats)
    figures = figures_of(f"{SHARDS:,} shards × 3 columns", some, 50, 20)
    figures += figures_of(f"{MANY_SHARDS:,} shards × {MANY_COLUMNS} columns", many, 150, 500)
    common.report("Opening", figures, options.json)


if __name__ == "__main__":
    main()
