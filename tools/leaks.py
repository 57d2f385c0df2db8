"""Read stores again and again, in every way in which that can end, and count what is left of it.

    python tools/leaks.py [--cycles 1000] [--no-torch]

A cycle opens, reads and lets go. After some that fill caches, the descriptors, mappings, threads, names of shared
memory and temporary files of this process are counted, and again after many more: they must be as many, and memory may
not have grown. Prints what each kind of cycle has left, and exits with 1 if it is anything. Reads Linux' /proc.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import pickle
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import shardstore
from tools.reading import BATCH, ROWS, scaled, write_stores

Cycle = Callable[[int], object]
WARM_UP = 12
# What the interpreter and the C library keep for themselves comes and goes.
_SLACK = {"maps": 24, "memory": 6 << 20}


@dataclass(frozen=True)
class Held:
    """What a process holds of the system's.

    Attributes:
        descriptors: open files.
        store_maps: mappings of files below the folder of the stores.
        maps: all mappings.
        threads: threads.
        shared: names of shared memory and semaphores with this process's number, see `name_semaphores`.
        temporary: files and directories for temporary files.
        partial: what unfinished writes have left.
        memory: bytes of anonymous memory.
    """

    descriptors: int
    store_maps: int
    maps: int
    threads: int
    shared: int
    temporary: int
    partial: int
    memory: int

    @classmethod
    def now(cls, folder: Path) -> Held:
        """Count, once what nobody refers to has gone."""
        end = time.monotonic() + 60
        while gc.collect() or any(_is_ours(thread) for thread in threading.enumerate()):  # they end soon
            if time.monotonic() > end:
                break
            time.sleep(0.01)
        maps = Path("/proc/self/maps").read_text().splitlines()
        rollup = Path("/proc/self/smaps_rollup").read_text().split("Anonymous:")[1]
        return cls(
            descriptors=len(os.listdir("/proc/self/fd")),
            store_maps=sum(str(folder) in line for line in maps),
            maps=len(maps),
            threads=len(os.listdir("/proc/self/task")),
            shared=sum(str(os.getpid()) in re.findall(r"\d+", name) for name in os.listdir("/dev/shm")),
            temporary=len(os.listdir(tempfile.gettempdir())),
            partial=sum(".partial" in name for name in os.listdir(folder)),
            memory=int(rollup.split()[0]) << 10,
        )

    def more_than(self, before: Held) -> dict[str, int]:
        """Return what has become more."""
        grown = {name: value - asdict(before)[name] for name, value in asdict(self).items()}
        return {name: growth for name, growth in grown.items() if growth > _SLACK.get(name, 0)}


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith("shardstore-")


def name_semaphores() -> None:
    """Let names of semaphores, as those of torch's shared memory, have the number of the process that makes them."""
    multiprocessing.current_process()._config["semprefix"] = f"/mp-{os.getpid()}-"


def read_and_close(folder: Path) -> Iterator[tuple[str, Cycle]]:
    """Yield cycles that open a store, read it in several ways and close it."""
    rows = np.random.default_rng(0).permutation(ROWS)[:200]

    def cycle(name: str, **options: Any) -> Cycle:
        def read(number: int) -> None:
            with shardstore.open(folder / name, **options) as store:
                store["x"].take(rows)
                store[number % ROWS]
                store["tokens"][:10]
                for _ in zip(range(3), store.select("x", "y").batches(BATCH, shuffle=True), strict=False):
                    pass

        return read

    yield "raw", cycle("raw")
    yield "zstd", cycle("zstd")
    yield "blosc", cycle("blosc:lz4")
    yield "streaming", cycle("raw", access="streaming", memory_budget="64MiB")
    yield "checked", cycle("raw", verify="on_read")


def abandon(folder: Path) -> Iterator[tuple[str, Cycle]]:
    """Yield cycles that leave something in the middle, or never begin it."""
    kinds = [
        (codec, shuffle, prefetch)
        for codec in ("raw", "zstd")
        for shuffle in (False, "full", "window")
        for prefetch in (0, 2)
    ]

    def begun(number: int, count: int, transform: Any = None) -> tuple[shardstore.Store, Any, Any]:
        codec, shuffle, prefetch = kinds[number % len(kinds)]
        store = shardstore.open(folder / codec)
        stream = store.batches(
            BATCH, shuffle=shuffle, prefetch=prefetch, window_bytes=1 << 14, epochs=None, transform=transform
        )
        batches = iter(stream)
        for _ in range(count):
            next(batches)
        return store, stream, batches

    def dropped(number: int) -> None:
        store = shardstore.open(folder / kinds[number % len(kinds)][0])
        assert store["y"][7] == 7

    def broken_off(number: int) -> None:
        store, _, _ = begun(number, 5)
        store.close()

    def never_started(number: int) -> None:
        begun(number, 0)

    def closed(number: int) -> None:
        _, stream, batches = begun(number, 3)
        stream.close()
        with suppress(ValueError):
            next(batches)

    def in_a_circle(number: int) -> None:
        circle: list[Any] = [begun(number, 3)]
        circle.append(circle)

    def consumer_fails(number: int) -> None:
        _, stream, _ = begun(number, 0)
        with suppress(ZeroDivisionError):
            for _ in stream:
                number // 0

    def transform_fails(number: int) -> None:
        def fail(batch: Any) -> Any:
            if calls.append(None) or len(calls) > 3:
                raise ZeroDivisionError
            return batch

        calls: list[None] = []
        with suppress(ZeroDivisionError):
            begun(number, 8, fail)

    def rowwise(number: int) -> None:
        begun(number, 3, shardstore.Rowwise(scaled, cache="16KiB"))

    def pickled(number: int) -> None:
        _, stream, _ = begun(number, 2)
        next(iter(pickle.loads(pickle.dumps(stream))))

    def views(number: int) -> None:
        store = shardstore.open(folder / kinds[number % len(kinds)][0])
        part = store.split(train=0.5, test=0.5)["train"]
        mixed = shardstore.mix({part.select("x", "y"): 1, store.select("x", "y"): 1})
        tables = [part.select("x").join(part.select("y")), store.windows("tokens", 8), mixed]
        for table in tables:
            next(iter(table.batches(BATCH, shuffle=True, prefetch=number % 2)))

    yield from (
        *(("dropped", dropped), ("broken off", broken_off), ("never started", never_started), ("closed", closed)),
        *(("in a circle", in_a_circle), ("consumer fails", consumer_fails), ("transform fails", transform_fails)),
        *(("rowwise", rowwise), ("pickled", pickled), ("views", views)),
    )


def fail(folder: Path) -> Iterator[tuple[str, Cycle]]:
    """Yield cycles that open or read what is missing or damaged, or fail to write."""

    def damage(name: str, file: str, change: Callable[[Path], object]) -> Path:
        damaged = folder / f"{name}-{file.replace('/', '-')}"
        shutil.copytree(folder / name, damaged)
        change(damaged / file)
        return damaged

    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)

    def refused(path: Path, **options: Any) -> Cycle:
        def read(number: int) -> None:
            try:
                with shardstore.open(path, **options) as store:
                    for _ in store.batches(BATCH, shuffle=(False, "full", "window")[number % 3], prefetch=number % 2):
                        pass
            except shardstore.ShardStoreError:
                return
            raise AssertionError(f"{path} was read")

        return read

    def writer(number: int) -> None:
        with suppress(ZeroDivisionError), shardstore.Writer(folder / "unwritten") as writing:
            writing.append({"x": np.arange(10)})
            number // 0

    def ingest(number: int) -> None:
        np.save(folder / "short.npy", np.arange(100))
        os.truncate(folder / "short.npy", 500)
        with suppress(shardstore.SourceError):
            shardstore.ingest(folder / "short.npy", folder / "unwritten", progress=False)

    yield "missing store", refused(folder / "nothing")
    yield "damaged manifest", refused(damage("raw", "zarr.json", flip))
    yield "missing shard", refused(damage("raw", "x/c/1/0", lambda file: file.unlink()))
    yield "short shard", refused(damage("zstd", "y/c/0", lambda file: os.truncate(file, 1000)))
    yield "damaged chunk", refused(damage("zstd", "x/c/0/0", flip))
    yield "damaged raw chunk", refused(damage("raw", "y/c/0", flip), verify="on_read")
    yield "failed write", writer
    yield "failed ingest", ingest


def in_torch(folder: Path) -> Iterator[tuple[str, Cycle]]:
    """Yield cycles through torch's datasets and loaders."""
    from torch.utils.data import DataLoader

    from shardstore.torch import StoreIterableDataset, StoreLoader, StoreMapDataset

    def some(items: Any) -> None:
        for _ in zip(range(4), items, strict=False):
            pass

    def dataset(number: int) -> None:
        some(StoreIterableDataset(folder / "zstd", (None, BATCH)[number % 2], shuffle="window"))

    def by_number(number: int) -> None:
        some(DataLoader(StoreMapDataset(folder / "raw", ["x"]), batch_size=BATCH, shuffle=True))

    def loader(number: int) -> None:
        some(StoreLoader(folder / ("raw", "zstd")[number % 2], BATCH, shuffle=True, prefetch=number % 3))

    def closed(number: int) -> None:
        with StoreLoader(folder / "raw", BATCH, columns=["x"]) as items:
            some(items)

    yield from (("dataset", dataset), ("dataset by number", by_number), ("loader", loader), ("closed loader", closed))


def with_workers(folder: Path) -> Iterator[tuple[str, Cycle]]:
    """Yield cycles with worker processes, which cost more."""
    from torch.utils.data import DataLoader

    from shardstore.torch import StoreIterableDataset

    def workers(number: int) -> None:
        dataset = StoreIterableDataset(folder / "raw", BATCH, columns=["x"], shuffle=True)
        loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=bool(number % 2))
        for _ in zip(range(40 if number % 3 else 2), loader, strict=False):
            pass

    yield "workers", workers


def left_by(folder: Path, name: str, cycle: Cycle, cycles: int) -> dict[str, int]:
    """Return what many cycles have left behind."""
    for number in range(min(WARM_UP, cycles)):
        cycle(number)
    before = Held.now(folder)
    for number in range(cycles):
        cycle(number)
    return Held.now(folder).more_than(before)


FAMILIES = {"read": read_and_close, "abandon": abandon, "fail": fail, "torch": in_torch, "workers": with_workers}


def check(folder: Path, cycles: dict[str, int], report: Callable[[str], object]) -> list[str]:
    """Go through cycles, in a process that has nothing else to do; return what was left behind.

    Args:
        folder: an empty one.
        cycles: how many to go through of each kind, by the name of its family.
        report: called with what was found of a kind.
    """
    temporary = folder / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    name_semaphores()
    write_stores(folder, 1 << 13)
    wrong = []
    for family, count in cycles.items():
        for name, cycle in FAMILIES[family](folder):
            begin = time.monotonic()
            left = left_by(folder, name, cycle, count)
            text = ", ".join(f"{number:,} more {what}" for what, number in left.items()) or "nothing left"
            report(f"{name:18} {count:5,} cycles, {1000 * (time.monotonic() - begin) / count:6.1f} ms each: {text}")
            if left:
                wrong.append(f"{count:,} cycles of {name!r} leave {text}")
    return wrong


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--no-torch", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cycles = dict.fromkeys(("read", "abandon", "fail"), arguments.cycles)
        if not arguments.no_torch:
            cycles |= {"torch": arguments.cycles, "workers": max(1, arguments.cycles // 50)}
        wrong = check(Path(folder), cycles, lambda text: print(text, flush=True))
    print("\n".join(wrong) or "nothing is left")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
