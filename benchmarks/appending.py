"""Appends: what one costs, by how full the last shard is, and that many leave no more files than one ingest.

An append writes a new file in the place of the last, short shard. Rows are of 1 KiB, shards of 64 MiB unless told
otherwise; 1,000 rows are appended to a last shard that is nearly empty, and to one that is nearly full, all of it
brought to disk. Beside it stands a copy of that shard's file with `cp` and `sync` of it. Then 1,000 appends of 100 rows
of 8 bytes, as from 1,000 short runs, are counted and timed.

    python benchmarks/appending.py [--shard-bytes 64MiB] [--json PATH]
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import common
import numpy as np

import shardstore

WIDTH = 256
ROWS = 1000
APPENDS = 1000


def make(path: Path, rows: int, shard_bytes: str) -> Path:
    """Write a store of so many rows of 1 KiB."""
    block = common.random_rows(min(rows, 1 << 14), WIDTH)
    with shardstore.Writer(path, shard_bytes=shard_bytes) as writer:
        for start in range(0, rows, len(block)):
            writer.append({"x": block[: rows - start]})
    return path


def append(template: Path, directory: Path) -> float:
    """Append to a copy of a store; return the seconds."""
    store = shutil.copytree(template, directory / "grown", copy_function=os.link)
    rows = common.random_rows(ROWS, WIDTH)

    def work() -> None:
        with shardstore.Writer(store, mode="append") as writer:
            writer.append({"x": rows})

    seconds = common.timed(work)()
    shutil.rmtree(store)
    return seconds


def copy(file: Path, directory: Path) -> float:
    """Copy a file and bring the copy to disk; return the seconds."""
    target = directory / "copy"

    def work() -> None:
        shutil.copyfile(file, target)
        with target.open("r+b") as copied:
            os.fsync(copied.fileno())

    seconds = common.timed(work)()
    target.unlink()
    return seconds


def many(directory: Path) -> tuple[list[float], int, int]:
    """Append 1,000 times; return the seconds of each, and the files of this store and of one written at once."""
    numbers = np.arange(100 * (APPENDS + 1))
    seconds = []
    for number in range(APPENDS + 1):
        start = time.perf_counter()
        with shardstore.Writer(directory / "many", mode="append" if number else "create") as writer:
            writer.append({"n": numbers[100 * number : 100 * (number + 1)]})
        seconds.append(time.perf_counter() - start)
    with shardstore.Writer(directory / "one") as writer:
        writer.append({"n": numbers})
    assert np.array_equal(shardstore.open(directory / "many")["n"][:], numbers)
    files = [sum(path.is_file() for path in (directory / name).rglob("*")) for name in ("many", "one")]
    return seconds[1:], files[0], files[1]


def main() -> None:
    parser = common.parser(__doc__, repeats=7)
    parser.add_argument("--shard-bytes", default="64MiB")
    options = parser.parse_args()
    with common.workspace(options.dir) as directory:
        probe = make(directory / "probe", 1, options.shard_bytes)
        shard_rows = shardstore.open(probe).manifest.shard_rows
        nearly_empty = make(directory / "empty", shard_rows + 10, options.shard_bytes)
        nearly_full = make(directory / "full", 2 * shard_rows - ROWS - 10, options.shard_bytes)
        tail = nearly_full / "x/c/1/0"
        ways = {
            "nearly empty": lambda: append(nearly_empty, directory),
            "nearly full": lambda: append(nearly_full, directory),
            "cp": lambda: copy(tail, directory),
        }
        seconds = common.alternate(ways, options.repeats)
        each, files, files_at_once = many(directory)
    figures = [
        common.Figure("append to a nearly empty shard", [s * 1e3 for s in seconds["nearly empty"]], "ms"),
        common.Figure("append to a nearly full shard", [s * 1e3 for s in seconds["nearly full"]], "ms"),
        common.Figure("cp of that shard, and its sync", [s * 1e3 for s in seconds["cp"]], "ms"),
        common.Figure("append, nearly full / cp", common.speed_ratios(seconds, "nearly full", "cp"), "×"),
        common.Figure(f"each of {APPENDS:,} appends of 100 rows", [s * 1e3 for s in each], "ms"),
        common.Figure("files of that store", [files], "files", files_at_once, at_least=False),
    ]
    common.report(f"Appends of {ROWS:,} rows of {4 * WIDTH:,} bytes", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
