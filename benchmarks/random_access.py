"""Batches of 256 random rows: a store beside np.take in RAM, one np.memmap per shard, and zarr-python.

Raw: float32[128] in 100 shards of 4 MiB, warm; the memmaps are those of the store's own shard files, with the rows
sorted and split by shard. Compressed: a zstd column of many more chunks than the cache of decoded ones holds, read
through shardstore and, the same store, through zarr-python.

    python benchmarks/random_access.py [--json PATH]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

import shardstore

WIDTH = 128
SHARDS = 100
PICKED = 256
Take = Callable[[NDArray[np.int64]], Any]


def map_shards(store: shardstore.Store) -> list[NDArray[np.float32]]:
    """Return one np.memmap per shard file of the raw column `x`."""
    layout = store.manifest.columns["x"].data.layout
    return [
        np.memmap(
            store.path / layout.shard_key(shard),
            np.float32,
            "r",
            shape=(layout.rows_in_shard(shard, len(store)), WIDTH),
        )
        for shard in range(layout.num_shards(len(store)))
    ]


def take_by_shard(shards: list[NDArray[np.float32]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Gather rows from one map per shard, with the rows sorted and split by shard."""
    shard_rows = len(shards[0])
    order = np.argsort(rows)
    ordered = rows[order]
    bounds = np.searchsorted(ordered, np.arange(len(shards) + 1) * shard_rows).tolist()
    out = np.empty((len(rows), WIDTH), np.float32)
    for number, shard in enumerate(shards):
        start, stop = bounds[number], bounds[number + 1]
        if start < stop:
            out[order[start:stop]] = shard[ordered[start:stop] - number * shard_rows]
    return out


def way(take: Take, count: int, takes: int) -> common.Way:
    """Return a way that takes `takes` times other rows of `count`, and returns the seconds of one take."""
    rng = np.random.default_rng(1)

    def run() -> float:
        picked = rng.integers(0, count, (takes, PICKED))
        return common.timed(lambda: [None for rows in picked if take(rows) is None])() / takes

    return run


def compressible(rows: int) -> NDArray[np.float32]:
    """Return float32 `(rows, WIDTH)` such as readings of a coarse sensor: steps of 1/32 around 0."""
    normal = np.random.default_rng(0).standard_normal((rows, WIDTH), np.float32)
    return (np.round(normal * 32) / 32).astype(np.float32)


def measure_raw(directory: Path, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of a take of the raw column by way."""
    rows = SHARDS * (4 << 20) // (4 * WIDTH)
    x = common.random_rows(rows, WIDTH)
    with shardstore.Writer(directory / "raw", shard_bytes="4MiB") as writer:
        writer.append({"x": x})
    store = shardstore.open(directory / "raw")
    column, shards = store["x"], map_shards(store)
    check = np.random.default_rng(2).integers(0, rows, PICKED)
    np.testing.assert_array_equal(column.take(check), x[check])
    np.testing.assert_array_equal(take_by_shard(shards, check), x[check])
    np.asarray(column).sum()  # populates the page tables of both kinds of maps
    for shard in shards:
        shard.sum()
    ways = {
        "store": way(column.take, rows, 2000),
        "RAM": way(lambda index: np.take(x, index, axis=0), rows, 2000),
        "memmap per shard": way(lambda index: take_by_shard(shards, index), rows, 200),
    }
    return common.alternate(ways, repeats)


def measure_zstd(directory: Path, repeats: int) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of a take of the zstd column by way, and how much smaller it is than its rows."""
    x = compressible(800_000)
    with shardstore.Writer(directory / "zstd", shard_bytes="32MiB", codec="zstd") as writer:
        writer.append({"x": x})
    store = shardstore.open(directory / "zstd")
    ours = store["x"]
    theirs: Any = store.zarr()["x"]
    check = np.random.default_rng(2).integers(0, len(x), PICKED)
    np.testing.assert_array_equal(ours.take(check), x[check])
    np.testing.assert_array_equal(theirs.oindex[check], x[check])
    ways = {
        "store": way(ours.take, len(x), 20),
        "zarr-python": way(lambda index: theirs.oindex[index], len(x), 5),
    }
    return common.alternate(ways, repeats), store.nbytes / store.stored_nbytes


def main() -> None:
    options = common.parser(__doc__, repeats=15).parse_args()
    with common.workspace(options.dir) as directory:
        raw = measure_raw(directory, options.repeats)
        zstd, compression = measure_zstd(directory, options.repeats)
    figures = [
        common.Figure(f"{codec}, {name}", [PICKED / s for s in runs], "rows/s")
        for codec, seconds in (("raw", raw), ("zstd", zstd))
        for name, runs in seconds.items()
    ]
    figures += [
        common.Figure("raw, store / RAM", common.speed_ratios(raw, "store", "RAM"), "×", 0.8),
        common.Figure("raw, store / memmap per shard", common.speed_ratios(raw, "store", "memmap per shard"), "×", 8),
        common.Figure("zstd, store / zarr-python", common.speed_ratios(zstd, "store", "zarr-python"), "×", 5),
        common.Figure("zstd, decoded / stored bytes", [compression], "×"),
    ]
    common.report(f"Takes of {PICKED} random rows", figures, options.json, raw_seconds=raw, zstd_seconds=zstd)


if __name__ == "__main__":
    main()
