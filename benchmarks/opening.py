"""Opening a store of 1,000 shards × 3 columns, and its first shuffled batch of 256 rows.

Each round is a fresh process that has imported shardstore; files and directory entries are in the caches.

    python benchmarks/opening.py [--json PATH]
"""

from __future__ import annotations

import time
from pathlib import Path

import common
import numpy as np

import shardstore

SHARDS = 1000
SHARD_ROWS = 4096
WIDTH = 16


def make_store(path: Path) -> None:
    """Write a store of `SHARDS` shards with three raw columns."""
    rng = np.random.default_rng(0)
    with shardstore.Writer(path, shard_bytes=SHARD_ROWS * WIDTH * 4) as writer:
        for shard in range(SHARDS):
            x = rng.random((SHARD_ROWS, WIDTH), np.float32)
            rows = np.arange(SHARD_ROWS) + shard * SHARD_ROWS
            writer.append({"x": x, "y": rows, "z": rows.astype(np.float32)})


def open_and_read(path: Path) -> tuple[float, float]:
    """Return the seconds to open the store, and to its first shuffled batch after that."""
    start = time.perf_counter()
    store = shardstore.open(path)
    opened = time.perf_counter()
    next(iter(store.batches(256, shuffle=True)))
    return opened - start, time.perf_counter() - opened


def main() -> None:
    options = common.parser(__doc__, repeats=21).parse_args()
    with common.workspace(options.dir) as directory:
        make_store(directory / "store")
        common.run_in_child(open_and_read, directory / "store")  # warms the caches
        runs = [common.run_in_child(open_and_read, directory / "store").result for _ in range(options.repeats)]
    figures = [
        common.Figure("open", [1000 * opened for opened, _ in runs], "ms", 50, at_least=False),
        common.Figure("first batch", [1000 * read for _, read in runs], "ms", 20, at_least=False),
    ]
    common.report(f"A store of {SHARDS:,} shards × 3 columns", figures, options.json)


if __name__ == "__main__":
    main()
