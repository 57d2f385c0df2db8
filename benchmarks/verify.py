"""What it costs to check what is read, and how fast a store is verified.

300,000 rows of float32[256] and an int64 (310 MB), batches of 256 rows as NumPy arrays, in the page cache.

- epochs: a fresh process opens the store, with `verify="on_read"` and without, and goes through two epochs. The first
  one checks each chunk; the second one checks nothing. Runs with and without take turns.
- verify: `store.verify()` and `store.verify(deep=True)` on one processor, by codec, in bytes on disk a second of
  processor time (which others on the machine do not change) and of the clock.

    python benchmarks/verify.py [--json PATH]
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import common
import numpy as np

import shardstore

WIDTH = 256
BATCH = 256
CODECS = ("raw", "zstd", "blosc:lz4")


def make_store(path: Path, rows: int, codec: str) -> None:
    """Write random numbers, or some that compress."""
    x = common.random_rows(rows, WIDTH)
    if codec != "raw":
        x = np.round(x * 1000) / 8
    with shardstore.Writer(path, codec=codec) as writer:
        writer.append({"x": x.astype(np.float32), "y": np.arange(rows)})


Times = tuple[float, float]


def epochs(path: Path, verify: Any, shuffle: bool) -> tuple[Times, Times]:
    """Go through two epochs, and return the seconds of each by the clock and of processors.

    The opening is part of the first.
    """
    clocks = (time.perf_counter, time.process_time)
    begin = [clock() for clock in clocks]
    seconds = []
    store = shardstore.open(path, verify=verify)
    stream = store.batches(BATCH, shuffle=shuffle)
    for _ in range(2):
        for _ in stream:
            pass
        end = [clock() for clock in clocks]
        seconds.append((end[0] - begin[0], end[1] - begin[1]))
        begin = end
    return seconds[0], seconds[1]


def verified(path: Path, deep: bool) -> tuple[float, float]:
    """Verify a store on one processor, and return gigabytes on disk a second of its time, and of the clock."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import_module("shardstore.verify")  # which is imported when it is first needed
    with shardstore.open(path) as store:
        begin, used = time.perf_counter(), time.process_time()
        report = store.verify(progress=False, deep=deep)
        assert report.ok
        nbytes = report.nbytes / 1e9
        return nbytes / (time.process_time() - used), nbytes / (time.perf_counter() - begin)


def main() -> None:
    parser = common.parser(__doc__, repeats=7)
    parser.add_argument("--rows", type=int, default=300_000)
    options = parser.parse_args()
    figures, raw = [], {}
    with common.workspace(options.dir) as directory:
        for codec in CODECS:
            make_store(directory / codec, options.rows if codec == "raw" else options.rows // 2, codec)
        for shuffle in (False, True):
            order = "shuffled" if shuffle else "in order"
            runs: dict[str, list[tuple[Times, Times]]] = {"off": [], "on_read": []}
            for i in range(2 * options.repeats):
                verify = ("off", "on_read")[i % 2 if i % 4 < 2 else (i + 1) % 2]
                runs[verify].append(common.run_in_child(epochs, directory / "raw", verify, shuffle).result)
            for number, epoch in enumerate(("first", "second")):
                for clock, unit in enumerate(("by the clock", "processor time")):
                    seconds = {verify: [run[number][clock] for run in found] for verify, found in runs.items()}
                    name = f"{epoch} epoch, {order}, {unit}"
                    for verify, found in seconds.items():
                        figures.append(
                            common.Figure(f"{name}, {verify}", [options.rows / s / 1e6 for s in found], "M rows/s")
                        )
                    ratios = [on / off for on, off in zip(seconds["on_read"], seconds["off"], strict=True)]
                    figures.append(common.Figure(f"{name}: with / without", ratios, "×"))
                    raw[name] = seconds
        for codec in CODECS:
            for deep in (False, True):
                found = [common.run_in_child(verified, directory / codec, deep).result for _ in range(options.repeats)]
                name = f"verify {'--deep ' if deep else ''}{codec}"
                target = 1 if codec == "raw" or not deep else None
                figures.append(common.Figure(f"{name}, a processor", [cpu for cpu, _ in found], "GB/s", target))
                figures.append(common.Figure(f"{name}, the clock", [clock for _, clock in found], "GB/s"))
                raw[name] = {"found": found}
    common.report("Checked reads and verification", figures, options.json, **raw)


if __name__ == "__main__":
    main()
