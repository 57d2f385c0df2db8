"""The first shuffled epoch over files that are in the page cache, but that this process has never touched.

1,200,000 rows of float32[128] and an int64 (624 MB) in 100 shards, batches of 256 rows as NumPy arrays. Each run is a
fresh process: it opens the store or the maps, takes the first batch, then the rest of the epoch; so every page's first
touch is a page fault, or something that spares it. The files were dropped from the page cache and read again, once.

- store: `shardstore.open` and `store.batches(256, shuffle=True)`, with each way to treat pages.
- memmap: one `np.memmap` a column and fancy indexing in the order of a permutation, which counts, or was made before.

    python benchmarks/first_epoch.py [--json PATH]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import pagecache

import shardstore

WIDTH = 128
BATCH = 256
SHARDS = 100
ACCESS = ("auto", "resident", "streaming")
# Seconds to the first batch, and to the end of the epoch.
Times = tuple[float, float]


def make_data(directory: Path, rows: int) -> None:
    """Write the store, and beside it each column as one file."""
    x, y = common.random_rows(rows, WIDTH), np.arange(rows, dtype=np.int64)
    shard_rows = -(-rows // SHARDS // 4096) * 4096
    with shardstore.Writer(directory / "store", shard_bytes=shard_rows * 4 * WIDTH) as writer:
        writer.append({"x": x, "y": y})
    x.tofile(directory / "x.bin")
    y.tofile(directory / "y.bin")


def clocked(batches: Iterator[Any], begin: float) -> Times:
    """Take all batches."""
    next(batches)
    first = time.perf_counter() - begin
    for _ in batches:
        pass
    return first, time.perf_counter() - begin


def from_store(directory: Path, rows: int, access: str) -> Times:
    """Open the store and stream an epoch."""
    begin = time.perf_counter()
    store = shardstore.open(directory / "store", access=access)
    return clocked(iter(store.batches(BATCH, shuffle=True)), begin)


def from_memmap(directory: Path, rows: int, counted: bool) -> Times:
    """Open the maps and pick an epoch's batches."""
    order = np.random.default_rng(0).permutation(rows)
    begin = time.perf_counter()
    if counted:
        order = np.random.default_rng(1).permutation(rows)
    x = np.memmap(directory / "x.bin", np.float32, "r", shape=(rows, WIDTH))
    y = np.memmap(directory / "y.bin", np.int64, "r", shape=(rows,))

    def batches() -> Iterator[Any]:
        for start in range(0, rows, BATCH):
            index = order[start : start + BATCH]
            yield {"x": x[index], "y": y[index]}

    return clocked(batches(), begin)


def main() -> None:
    parser = common.parser(__doc__, repeats=7)
    parser.add_argument("--rows", type=int, default=1_200_000)
    options = parser.parse_args()
    rows, firsts = options.rows, dict[str, list[float]]()
    seconds: dict[str, list[float]] = {}
    with common.workspace(options.dir) as directory:
        make_data(directory, rows)

        def way(name: str, function: Callable[[Path, int, Any], Times], setting: Any) -> common.Way:
            firsts[name] = []

            def run() -> float:
                first, epoch = common.run_in_child(function, directory, rows, setting, interval=0.1).result
                firsts[name].append(first)
                return float(epoch)

            return run

        for pages in ("large", "small"):
            pagecache.drop([directory])
            pagecache.warm([directory], single_pages=pages == "small")
            ways = {f"{pages}, {access}": way(f"{pages}, {access}", from_store, access) for access in ACCESS}
            for name, counted in ((f"{pages}, memmap", False), (f"{pages}, memmap with permutation", True)):
                ways[name] = way(name, from_memmap, counted)
            seconds |= common.alternate(ways, options.repeats, warm_up=False)
    figures = [common.Figure(name, [rows / s / 1e6 for s in runs], "M rows/s") for name, runs in seconds.items()]
    figures += [
        common.Figure(f"open and first batch, {name}", [1e3 * s for s in runs], "ms") for name, runs in firsts.items()
    ]
    for pages in ("large", "small"):
        for access in ACCESS:
            for theirs in ("memmap with permutation", "memmap"):
                ratios = common.speed_ratios(seconds, f"{pages}, {access}", f"{pages}, {theirs}")
                target = 3 if access == "auto" else None
                figures.append(common.Figure(f"{pages}, {access} / {theirs}", ratios, "×", target))
    common.report(
        f"First epoch of {rows:,} rows that are in the page cache",
        figures,
        options.json,
        seconds=seconds,
        firsts=firsts,
    )


if __name__ == "__main__":
    main()
