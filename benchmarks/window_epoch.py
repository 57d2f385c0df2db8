"""An epoch of a compressed store, shuffled window by window, beside decoding all of its chunks in order, and peers.

400,000 rows of float32[128] and an int64, both zstd, in batches of 256 rows, everything in the page cache.

- decoding in order: the compressed chunks are held in memory and decoded one after the other with numcodecs, on as many
  threads as the store has. The store also reads the files, checks every checksum, permutes the rows and gathers the
  batches.
- zarr-python with the zarrs pipeline, and TensorStore, both on the same store and on as many threads: the same windows
  in the same order. A window's runs of chunks are read as slices, those of TensorStore all at once, and its batches are
  taken from what was read with np.take. Which rows a window has is computed beforehand.
- the same two without windows: 256 random rows a batch, for a few batches, with `oindex` and with an index array,
  beside the store's batches of the window shuffle.

A peer that is not installed (`zarrs`, `tensorstore`) is left out.

    python benchmarks/window_epoch.py [--json PATH]
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import common
import numcodecs
import numpy as np
from numpy.typing import NDArray

import shardstore
from shardstore.decoding import cpu_count
from shardstore.torch import StoreLoader

WIDTH = 128
BATCH = 256
RANDOM_BATCHES = 2
THREADS = min(8, cpu_count())
Rows = NDArray[np.int64]
# Reads runs of rows, one after the other, into an array.
ReadRuns = Callable[[Rows, Rows, NDArray[Any]], None]
Take = Callable[[Rows], Any]


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
    pool = ThreadPoolExecutor(THREADS)
    codec = numcodecs.Zstd(level=3, checksum=True)
    size = -(-len(chunks) // THREADS)

    def share(start: int) -> None:
        for chunk in chunks[start : start + size]:
            codec.decode(chunk)

    return common.timed(lambda: list(pool.map(share, range(0, len(chunks), size))))


def zarrs_columns(path: Path, names: tuple[str, ...]) -> dict[str, tuple[ReadRuns, Take]]:
    """Return how zarr-python reads each column with the zarrs pipeline."""
    import zarr

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": THREADS})
    group = zarr.open_group(path, mode="r")

    def readers(array: Any) -> tuple[ReadRuns, Take]:
        def read(starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
            place = 0
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                out[place : place + stop - start] = array[start:stop]
                place += stop - start

        return read, lambda rows: array.oindex[rows]

    return {name: readers(group[name]) for name in names}


def tensorstore_columns(path: Path, names: tuple[str, ...]) -> dict[str, tuple[ReadRuns, Take]]:
    """Return how TensorStore reads each column."""
    import tensorstore

    context = tensorstore.Context({"data_copy_concurrency": {"limit": THREADS}})

    def readers(name: str) -> tuple[ReadRuns, Take]:
        kvstore = {"driver": "file", "path": str(path / name)}
        array = tensorstore.open(
            {"driver": "zarr3", "kvstore": kvstore}, open=True, read=True, context=context
        ).result()

        def read(starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
            runs = [array[start:stop].read() for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
            place = 0
            for run in runs:
                rows = run.result()
                out[place : place + len(rows)] = rows
                place += len(rows)

        return read, lambda rows: array[rows].read().result()

    return {name: readers(name) for name in names}


PEERS = {"zarrs": zarrs_columns, "tensorstore": tensorstore_columns}


def windowed(store: shardstore.Store, columns: dict[str, tuple[ReadRuns, Take]]) -> Callable[[], None]:
    """Return what reads an epoch in the store's own order through a peer, window by window."""
    order = store.plan(BATCH, shuffle=True).order
    windows = [
        (*window.runs(), places)
        for window, _, places in order.windows(0, np.arange(len(store)))  # type: ignore[attr-defined]
    ]
    largest = max(len(places) for _, _, places in windows)
    buffers = {name: np.empty((largest, *store[name].shape[1:]), store[name].dtype) for name in columns}

    def epoch() -> None:
        for starts, stops, places in windows:
            for name, (read, _) in columns.items():
                read(starts, stops, buffers[name][: len(places)])
            for start in range(0, len(places), BATCH):
                batch = places[start : start + BATCH]
                _ = {name: np.take(buffer, batch, axis=0) for name, buffer in buffers.items()}

    first = next(iter(store.batches(BATCH, shuffle=True)))
    starts, stops, places = windows[0]
    for name, (read, _) in columns.items():
        read(starts, stops, buffers[name][: len(places)])
        np.testing.assert_array_equal(buffers[name][places[:BATCH]], first[name])
    return epoch


def random_batches(rows: int, columns: dict[str, tuple[ReadRuns, Take]]) -> Callable[[], None]:
    """Return what reads a few batches of random rows through a peer."""
    rng = np.random.default_rng(0)

    def batches() -> None:
        for picked in rng.integers(0, rows, (RANDOM_BATCHES, BATCH)):
            _ = {name: take(picked) for name, (_, take) in columns.items()}

    return batches


def ways_of_peers(store: shardstore.Store, path: Path) -> dict[str, common.Way]:
    """Return the ways of the peers that are installed."""
    ways: dict[str, common.Way] = {}
    for peer, open_columns in PEERS.items():
        if find_spec(peer) is None:
            print(f"{peer} is not installed and left out")
            continue
        columns = open_columns(path, store.columns)
        ways[f"{peer}, windows"] = common.timed(windowed(store, columns))
        ways[f"{peer}, {RANDOM_BATCHES} random batches"] = common.timed(random_batches(len(store), columns))
    return ways


def main() -> None:
    parser = common.parser(__doc__, repeats=7)
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
        seconds = common.alternate(ways | ways_of_peers(store, path), options.repeats)

    def rows_of(name: str) -> int:
        return BATCH * RANDOM_BATCHES if "random" in name else 64 * BATCH if "full" in name else options.rows

    figures = [
        common.Figure(name, [rows_of(name) / s / 1e3 for s in runs], "k rows/s") for name, runs in seconds.items()
    ]
    figures += [
        common.Figure(f"{ours} / decoding", common.speed_ratios(seconds, ours, "decoding in order"), "×", 0.8)
        for ours in ("window shuffle", "StoreLoader")
    ]
    for theirs in seconds:
        if theirs.startswith(tuple(PEERS)):
            share = options.rows / rows_of(theirs)  # rows of an epoch and of this way
            ratios = [share * ratio for ratio in common.speed_ratios(seconds, "window shuffle", theirs)]
            figures.append(common.Figure(f"window shuffle / {theirs}", ratios, "×", 5))
    figures.append(common.Figure("chunk decodes / chunks", [decodes / len(chunks)], "×", 1.0, at_least=False))
    common.report(f"Window-shuffled zstd epoch of {options.rows:,} rows", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
