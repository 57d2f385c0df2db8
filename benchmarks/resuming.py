"""Resuming at 90 % of an epoch of 10^9 rows: from `load_state_dict` to the first batch; and the size of a plan.

The rows are one byte wide, so that a billion of them fit a disk; everything is in the page cache.

    python benchmarks/resuming.py [--json PATH] [--rows 1000000000]
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import common
import numpy as np

import shardstore
from shardstore.order import FullShuffle, Order, Plan, Sections, WindowShuffle

BATCH = 256


def make_store(path: Path, rows: int, codec: str) -> Path:
    """Write a store of one column of single bytes."""
    block = np.random.default_rng(0).integers(0, 4, 1 << 24, np.uint8)
    with shardstore.Writer(path, codec=codec) as writer:
        for start in range(0, rows, len(block)):
            writer.append({"x": block[: rows - start]})
    return path


def resume(path: Path, shuffle: Any) -> common.Way:
    """Return a way that restores a state in a new stream, and takes its first batch."""
    store = shardstore.open(path)
    stream = store.batches(BATCH, shuffle=shuffle)
    state = {**stream.state_dict(), "epoch": 3, "delivered": len(store) * 9 // 10}

    def work() -> None:
        again = store.batches(BATCH, shuffle=shuffle)
        again.load_state_dict(state)
        assert len(next(iter(again))["x"]) == BATCH

    return common.timed(work)


def plan_nbytes(rows: int, windows: bool) -> int:
    """Return the bytes of a pickled plan."""
    order: Order = WindowShuffle(Sections(rows, 1024), 64, 0) if windows else FullShuffle(rows, 0)
    return len(pickle.dumps(Plan(order, BATCH, "drop")))


def main() -> None:
    parser = common.parser(__doc__, repeats=21)
    parser.add_argument("--rows", type=int, default=10**9)
    options = parser.parse_args()
    with common.workspace(options.dir) as directory:
        raw = make_store(directory / "raw", options.rows, "raw")
        zstd = make_store(directory / "zstd", options.rows, "zstd")
        ways = {"full shuffle": resume(raw, "full"), "window shuffle": resume(zstd, "window")}
        seconds = common.alternate(ways, options.repeats)
    figures = [
        common.Figure(f"first batch, {name}", [1e3 * s for s in runs], "ms", 50, at_least=False)
        for name, runs in seconds.items()
    ]
    for rows in (10**3, 10**12):
        for windows in (False, True):
            name = f"plan of {rows:.0e} rows, {'window' if windows else 'full'}"
            figures.append(common.Figure(name, [plan_nbytes(rows, windows)], "bytes"))
    common.report(f"Resuming at 90 % of {options.rows:,} rows", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
