"""Reading from a disk, with an empty page cache: random batches and a sequential epoch.

Before every run the pages of the files are written to the disk, let go of with `posix_fadvise(DONTNEED)`, and mincore
confirms that they are gone; each run is a fresh process and its time begins before the store or the file is opened.

Random: 1,000,000 rows of 4 KiB in one file of 4.1 GB, batches of 256 rows that are drawn from all of it. The store has
one shard, so that all ways read the very same file. Each way stops after some seconds or rows; what counts is rows/s.

- stream: `store.batches(256, shuffle=True)`, which knows what comes next and asks for it ahead.
- take: `store.take` of 256 rows that nobody could know before.
- memmap: `np.memmap` and fancy indexing, as it is; and after `madvise(MADV_RANDOM)`.
- 16 threads: `os.preadv` of one row after the other, a batch a thread, 32 batches in flight.

Sequential: 2.1 GB in shards of 256 MiB, in order and in batches of 256 rows, one value of each row (that is, of each
page) added up.

- batches: `store.batches(256)`, fresh arrays, and with `copy=False` views of the maps.
- reads: `os.readv` of 8 MiB at a time into one buffer that is used again.

    python benchmarks/cold.py [--json PATH]
"""

from __future__ import annotations

import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
import pagecache
from numpy.typing import NDArray

import shardstore

BATCH = 256
WIDTH = 512  # int64, 4 KiB
ROW_NBYTES = 8 * WIDTH
THREADS = 16
READ_NBYTES = 8 << 20
Rows = NDArray[np.int64]


def make_store(path: Path, rows: int, shard_bytes: str) -> Path:
    """Write random rows whose first value is their number."""
    block = np.random.default_rng(0).integers(0, 1 << 62, (READ_NBYTES // ROW_NBYTES, WIDTH))
    with shardstore.Writer(path, shard_bytes=shard_bytes) as writer:
        for start in range(0, rows, len(block)):
            part = block[: rows - start]
            part[:, 0] = np.arange(start, start + len(part))
            writer.append({"x": part})
    return path


def shard_files(path: Path) -> list[Path]:
    """Return the files that hold the column's rows, in order."""
    store = shardstore.open(path)
    layout = store.manifest.columns["x"].data.layout
    return [path / layout.shard_key(shard) for shard in range(layout.num_shards(len(store)))]


# Random batches. Each way yields batches for ever, or until it has no more rows.


def draws(rows: int) -> Iterator[Rows]:
    """Yield rows to pick, others in every process."""
    rng = np.random.default_rng()
    while True:
        yield rng.integers(0, rows, BATCH)


def from_stream(path: Path, rows: int, access: str) -> Iterator[Any]:
    """Stream a shuffled epoch, another one in every process."""
    seed = int.from_bytes(os.urandom(4), "little")
    for batch in shardstore.open(path, access=access).batches(BATCH, shuffle=True, seed=seed):
        yield batch["x"]


def from_take(path: Path, rows: int, access: str) -> Iterator[Any]:
    """Take batch by batch."""
    store = shardstore.open(path, access=access)
    for picked in draws(rows):
        yield store.take(picked)["x"]


def from_memmap(path: Path, rows: int, advice: int | None) -> Iterator[Any]:
    """Pick batch by batch from a map by fancy indexing."""
    [file] = shard_files(path)
    mapped = np.memmap(file, np.int64, "r", shape=(rows, WIDTH))
    if advice is not None:
        mapped._mmap.madvise(advice)  # type: ignore[attr-defined]
    for picked in draws(rows):
        yield mapped[picked]


def from_threads(path: Path, rows: int, threads: int) -> Iterator[Any]:
    """Read batches on threads, row by row, a few batches ahead of the consumer."""
    [file] = shard_files(path)
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def read(picked: Rows) -> Rows:
        out = np.empty((BATCH, WIDTH), np.int64)
        for row, place in zip(out, (picked * ROW_NBYTES).tolist(), strict=True):
            os.preadv(descriptor, [row.data], place)
        return out

    pool = ThreadPoolExecutor(threads)
    try:
        batches = draws(rows)
        ahead = deque(pool.submit(read, next(batches)) for _ in range(2 * threads))
        while True:
            batch = ahead.popleft().result()
            ahead.append(pool.submit(read, next(batches)))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(descriptor)


def pull(source: Callable[..., Iterator[Any]], path: Path, rows: int, setting: Any, limit: tuple[float, int]) -> float:
    """Take batches until so many seconds or rows are reached; return the rows a second."""
    seconds, most = limit
    begin = time.perf_counter()
    batches = source(path, rows, setting)
    taken = 0
    for batch in batches:
        taken += len(batch)
        if taken >= most or time.perf_counter() - begin > seconds:
            break
    result = taken / (time.perf_counter() - begin)
    batches.close()  # type: ignore[attr-defined]
    return result


# A sequential epoch


def scan_store(path: Path, copy: bool) -> float:
    """Stream an epoch in order; return the bytes a second."""
    begin = time.perf_counter()
    store = shardstore.open(path)
    total = 0
    for batch in store.batches(BATCH, copy=copy):
        total += int(batch["x"][:, 0].sum())
    seconds = time.perf_counter() - begin
    assert total == len(store) * (len(store) - 1) // 2
    return store.nbytes / seconds


def scan_files(path: Path, nbytes: int) -> float:
    """Read the same files with large reads; return the bytes a second."""
    files = shard_files(path)
    buffer = mmap.mmap(-1, nbytes)
    view = np.frombuffer(buffer, np.int64).reshape(-1, WIDTH)
    begin = time.perf_counter()
    taken = 0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        while got := os.readv(descriptor, [buffer]):
            view[: got // ROW_NBYTES, 0].sum()
            taken += got
        os.close(descriptor)
    return taken / (time.perf_counter() - begin)


def main() -> None:
    parser = common.parser(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the random job (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="limit of a random run (default: %(default)s)")
    options = parser.parse_args()
    rows, limit = options.rows, (options.seconds, options.rows // 8)
    with common.workspace(options.dir) as directory:
        one = make_store(directory / "one", rows, "8GiB")
        many = make_store(directory / "many", rows // 2, "256MiB")

        def fresh(function: Callable[..., float], path: Path, *arguments: Any) -> common.Way:
            def way() -> float:
                pagecache.drop([path])
                return float(common.run_in_child(function, *arguments, interval=0.25).result)

            return way

        def random(source: Callable[..., Iterator[Any]], setting: Any) -> common.Way:
            return fresh(pull, one, source, one, rows, setting, limit)

        ways = {
            "stream": random(from_stream, "auto"),
            "stream, streaming": random(from_stream, "streaming"),
            "take": random(from_take, "streaming"),
            "memmap": random(from_memmap, None),
            "memmap, MADV_RANDOM": random(from_memmap, mmap.MADV_RANDOM),
            "16 threads": random(from_threads, THREADS),
        }
        rates = common.alternate(ways, options.repeats, warm_up=False)
        scans = common.alternate(
            {
                "batches": fresh(scan_store, many, many, True),
                "batches, views": fresh(scan_store, many, many, False),
                "reads": fresh(scan_files, many, many, READ_NBYTES),
            },
            options.repeats,
            warm_up=False,
        )
    figures = [common.Figure(f"random, {name}", runs, "rows/s") for name, runs in rates.items()]
    for ours in ("stream", "stream, streaming", "take"):
        for theirs, target in (("memmap", 20), ("memmap, MADV_RANDOM", None), ("16 threads", 3)):
            ratios = common.speed_ratios(rates, theirs, ours)  # of rates, not seconds
            figures.append(common.Figure(f"random, {ours} / {theirs}", ratios, "×", None if ours == "take" else target))
    figures += [common.Figure(f"sequential, {name}", [r / 1e6 for r in runs], "MB/s") for name, runs in scans.items()]
    for ours in ("batches", "batches, views"):
        figures.append(
            common.Figure(f"sequential, {ours} / reads", common.speed_ratios(scans, "reads", ours), "×", 0.9)
        )
    title = f"Cold: {rows * ROW_NBYTES / 1e9:.1f} GB at random, {rows // 2 * ROW_NBYTES / 1e9:.1f} GB in order"
    common.report(title, figures, options.json, rates=rates, scans=scans)


if __name__ == "__main__":
    main()
