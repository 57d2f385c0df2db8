"""Memory of an epoch over a store ten times as large as its memory budget.

2.5 GB of rows of 4 KiB, raw, in shards of 64 MiB, in the page cache; and half as many rows, zstd. Each epoch runs in a
fresh process that opens the store with `memory_budget` set to a tenth of its decoded bytes, and takes batches of 256
rows, one value of each row added up. A thread of it looks at the memory every 50 ms:

- anonymous memory beyond what the process held before it opened the store (`RssAnon`);
- resident pages of the maps of the store's files (`Rss` of their entries in `/proc/self/smaps`).

An epoch of the same store without a budget stands beside it, as does its speed.

    python benchmarks/budget.py [--json PATH]
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import common
import numpy as np

import shardstore

BATCH = 256
WIDTH = 1024  # float32, 4 KiB
INTERVAL_SECONDS = 0.05
WINDOW_BYTES = "16MiB"  # a quarter of the default, which would not fit the budget
JOBS: dict[str, dict[str, Any]] = {
    "shuffled": {"shuffle": True},
    "in order": {},
    "in order, views": {"copy": False},
}


@dataclass(frozen=True)
class Epoch:
    """What was seen of an epoch.

    Attributes:
        seconds: how long it took.
        anonymous: largest anonymous memory beyond that before it, in bytes.
        mapped: largest resident part of the store's maps, in bytes.
        looks: how often the memory was looked at.
    """

    seconds: float
    anonymous: int
    mapped: int
    looks: int


class MemoryWatch:
    """A context manager whose thread looks at this process's memory.

    Attributes:
        anonymous: largest anonymous memory in bytes.
        mapped: largest resident part, in bytes, of maps of files below `directory`.
        looks: how often it has looked.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.anonymous = self.mapped = self.looks = 0

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.look()

    def look(self) -> None:
        """Look once."""
        self.anonymous = max(self.anonymous, common.memory_of(os.getpid()).anonymous)
        self.mapped = max(self.mapped, resident_of_maps(self._directory))
        self.looks += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.look()


def resident_of_maps(directory: str) -> int:
    """Return the resident bytes of this process's maps of files below a directory."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Rss:"):
            total += 1024 * int(line.split()[1]) if ours else 0
        elif not line[0].isupper():  # a new map: "7f00-7f01 r--s 00000000 fe:00 12 /path"
            ours = f" {directory}/" in line
    return total


def make_store(path: Path, rows: int, codec: str) -> Path:
    """Write rows of small integers, whose first value tells nothing."""
    rng = np.random.default_rng(0)
    block = (rng.standard_normal((4096, WIDTH)) * 40).astype(np.int16).astype(np.float32)
    with shardstore.Writer(path, shard_bytes="64MiB", codec=codec) as writer:
        for start in range(0, rows, len(block)):
            writer.append({"x": block[: rows - start]})
    return path


def run_epoch(path: Path, budget: int | None, job: dict[str, Any]) -> Epoch:
    """Take an epoch's batches under watch."""
    before = common.memory_of(os.getpid()).anonymous
    with MemoryWatch(path) as watch:
        start = time.perf_counter()
        store = shardstore.open(path, memory_budget=budget)
        total = 0.0
        for batch in store.batches(BATCH, **job):
            total += float(batch["x"][:, 0].sum())
        seconds = time.perf_counter() - start
    return Epoch(seconds, watch.anonymous - before, watch.mapped, watch.looks)


def figures_of(name: str, epochs: list[Epoch], free: list[Epoch], budget: int, raw: bool) -> list[common.Figure]:
    """Return what was seen of an epoch's rounds, and how much slower than those without a budget it is."""

    def megabytes(runs: list[Epoch], part: str) -> list[float]:
        return [getattr(epoch, part) / common.MB for epoch in runs]

    limit = 64 if raw else round(budget / common.MB)
    figures = [common.Figure(f"{name}, anonymous", megabytes(epochs, "anonymous"), "MB", limit, at_least=False)]
    if raw:
        mapped = megabytes(epochs, "mapped")
        figures.append(
            common.Figure(f"{name}, resident of maps", mapped, "MB", round(budget / common.MB), at_least=False)
        )
    figures.append(common.Figure(f"{name}, anonymous without a budget", megabytes(free, "anonymous"), "MB"))
    if raw:
        figures.append(common.Figure(f"{name}, resident of maps without a budget", megabytes(free, "mapped"), "MB"))
    ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(epochs, free, strict=True)]
    return [*figures, common.Figure(f"{name}, speed / without a budget", ratios, "×")]


def main() -> None:
    parser = common.parser(__doc__, repeats=3)
    parser.add_argument("--gigabytes", type=float, default=2.5)
    options = parser.parse_args()
    rows = int(options.gigabytes * 1e9) // (4 * WIDTH)
    epochs: dict[str, list[Epoch]] = {}
    figures: list[common.Figure] = []
    with common.workspace(options.dir) as directory:

        def way(name: str, path: Path, budget: int | None, job: dict[str, Any]) -> common.Way:
            epochs[name] = []

            def run() -> float:
                epoch = common.run_in_child(run_epoch, path, budget, job, interval=1).result
                epochs[name].append(epoch)
                return float(epoch.seconds)

            return run

        for codec in ("raw", "zstd"):
            path = make_store(directory / codec, rows if codec == "raw" else rows // 2, codec)
            budget = rows * 4 * WIDTH // (10 if codec == "raw" else 20)
            jobs = {f"{codec}, {name}": job for name, job in JOBS.items() if codec == "raw" or "copy" not in job}
            if codec == "zstd":
                jobs["zstd, shuffled"] = {"shuffle": True, "window_bytes": WINDOW_BYTES}
            ways = {name: way(name, path, budget, job) for name, job in jobs.items()}
            ways |= {f"{name}, free": way(f"{name}, free", path, None, job) for name, job in jobs.items()}
            common.alternate(ways, options.repeats, warm_up=False)
            for name in jobs:
                figures += figures_of(name, epochs[name], epochs[f"{name}, free"], budget, codec == "raw")
            shutil.rmtree(path)
    raw = {name: [asdict(epoch) for epoch in runs] for name, runs in epochs.items()}
    common.report(f"{rows * 4 * WIDTH / 1e9:.1f} GB with a budget of a tenth of it", figures, options.json, epochs=raw)


if __name__ == "__main__":
    main()
