"""An epoch of a compressed store, shuffled window by window, beside decoding all of its chunks in order.

400,000 rows of float32[128] and an int64, both zstd, in batches of 256 rows, everything in the page cache. The other
way holds the compressed chunks in memory and decodes them one after the other with numcodecs, on as many threads as
the store does. The store also reads the files, checks every checksum, permutes the rows and gathers the batches.

    python benchmarks/window_epoch.py [--json PATH]
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numcodecs
import numpy as np

import shardstore
from shardstore.decoding import cpu_count
from shardstore.torch import StoreLoader

WIDTH = 128
BATCH = 256


def make_store(directory: Path, rows: int) -> Path:
    """Write the store: readings of a coarse sensor, which compress to about a third."""
    x = (np.random.default_rng(0).standard_normal((rows, WIDTH)) * 40).astype(np.int16).astype(np.float32)
    with shardstore.Writer(directory / "store", codec="zstd", shard_bytes="64MiB") as writer:
        writer.append({"x": x, "y": np.arange(rows)})
    return directory / "store"


def compressed_chunks(store: shardstore.Store) -> list[bytes]:
    """Return all chunks of a store, compressed, column by column in order."""
    codec = numcodecs.Zstd(level=3, checksum=True)
    chunks = []
    for name in store.columns:
        size = store.files.chunking(name).chunk_rows
        chunks += [codec.encode(np.array(store[name][i : i + size])) for i in range(0, len(store), size)]
    return chunks


def decoder(chunks: list[bytes]) -> common.Way:
    """Return a way that decodes all chunks, each thread its share of them."""
    threads = min(8, cpu_count())
    pool = ThreadPoolExecutor(threads)
    codec = numcodecs.Zstd(level=3, checksum=True)
    size = -(-len(chunks) // threads)

    def share(start: int) -> None:
        for chunk in chunks[start : start + size]:
            codec.decode(chunk)

    return common.timed(lambda: list(pool.map(share, range(0, len(chunks), size))))


def main() -> None:
    parser = common.parser(__doc__, repeats=15)
    parser.add_argument("--rows", type=int, default=400_000)
    options = parser.parse_args()
    with common.workspace(options.dir) as directory:
        path = make_store(directory, options.rows)
        store = shardstore.open(path)
        chunks = compressed_chunks(store)
        with shardstore.open(path) as fresh:
            for _ in fresh.batches(BATCH, shuffle=True):
                pass
            decodes = fresh.chunks_decoded
        loader = StoreLoader(store, BATCH, shuffle=True)
        ways = {
            "decoding in order": decoder(chunks),
            "window shuffle": common.timed(lambda: sum(1 for _ in store.batches(BATCH, shuffle=True))),
            "StoreLoader": common.timed(lambda: sum(1 for _ in loader)),
            "full shuffle, 64 batches": common.timed(
                lambda: [None for _ in zip(range(64), store.batches(BATCH, shuffle="full"), strict=False)]
            ),
        }
        seconds = common.alternate(ways, options.repeats)
    full = seconds.pop("full shuffle, 64 batches")
    figures = [
        common.Figure(name, [options.rows / s / 1e6 for s in runs], "M rows/s") for name, runs in seconds.items()
    ]
    figures += [
        common.Figure("full shuffle", [64 * BATCH / s / 1e6 for s in full], "M rows/s"),
        common.Figure(
            "window / decoding", common.speed_ratios(seconds, "window shuffle", "decoding in order"), "×", 0.6
        ),
        common.Figure(
            "StoreLoader / decoding", common.speed_ratios(seconds, "StoreLoader", "decoding in order"), "×", 0.6
        ),
        common.Figure("chunk decodes / chunks", [decodes / len(chunks)], "×", 1.0, at_least=False),
    ]
    common.report(f"Window-shuffled zstd epoch of {options.rows:,} rows", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
