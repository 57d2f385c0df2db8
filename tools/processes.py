"""Child processes that read: under every start method, by small pickles, and sharing the pages of a store.

    python tools/processes.py read [--forks 100] [--no-torch]
    python tools/processes.py pickles [--shards 10000] [--columns 10]
    python tools/processes.py memory [--workers 64] [--megabytes 400] [--codecs raw zstd]

`read` reads stores in all ways in this process; then children by fork, while threads of this process go on reading, by
spawn and by forkserver read the same, and so do workers of torch's DataLoader by each. `pickles` prints the
sizes of pickles over a store of many shards, which open no file before they are read. `memory` lets many processes
stream one store at the same time, and prints what each has for itself. Exits with 1 if anything is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import pickle
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import shardstore
from shardstore.locks import ForkSafeLock
from tools.reading import BATCH, digest, make_readers, make_torch_readers, write_stores

START_METHODS = tuple(multiprocessing.get_all_start_methods())
_SECONDS = 120  # after which a child has hung
PICKLE_NBYTES = 4096


# Reading in children


@contextlib.contextmanager
def busy(readers: dict[str, Any]) -> Iterator[None]:
    """Read and open stores in threads all the time, and hold passes that are not at their end, with their threads.

    The threads linger where they hold a lock, so that most forks find some held.
    """
    stop = threading.Event()
    tables = [readers[name] for name in ("raw", "zstd", "streaming", "checked", "windows", "join", "mixture")]

    def read(number: int) -> None:
        choose = random.Random(number)
        while not stop.is_set():
            table = choose.choice(tables)
            for _ in table.batches(BATCH, shuffle=choose.choice([False, "full", "window"]), prefetch=number % 2):
                if stop.wait(0.001) or not choose.randrange(50):
                    break
            if number == 0:
                with shardstore.open(readers["zstd"].path) as store:
                    digest(store["y"])

    def linger(lock: ForkSafeLock) -> None:
        enter(lock)
        if threading.current_thread() in threads:
            time.sleep(0.001)

    enter = ForkSafeLock.__enter__
    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    held = [iter(reader) for reader in readers.values() if hasattr(reader, "load_state_dict")]
    for items in held:
        next(items)
    ForkSafeLock.__enter__ = linger  # type: ignore[method-assign]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ForkSafeLock.__enter__ = enter  # type: ignore[method-assign]
        stop.set()
        for thread in threads:
            thread.join()
        for items in held:
            items.close()


def differing(readers: dict[str, Any], expected: dict[str, str]) -> list[str]:
    """Return the names of readers that do not read what is expected, with what they say."""
    wrong = []
    for name, reader in readers.items():
        try:
            found = digest(reader)
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if found != expected[name]:
            wrong.append(f"{name} reads something else")
    return wrong


def in_fork(function: Callable[[], list[str]]) -> list[str]:
    """Return what a function returns in the child of a fork, or how the child ended."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of what is checked here
        child = os.fork()
    if not child:
        signal.alarm(_SECONDS)
        code = 1
        try:
            with open(writing, "wb") as answer:  # noqa: PTH123, a descriptor
                pickle.dump(function(), answer)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as answer:  # noqa: PTH123
        data = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return pickle.loads(data) if not code else [f"a forked child ended with {code}"]


def in_process(method: str, readers: dict[str, Any], expected: dict[str, str]) -> list[str]:
    """Return what differs in a child that multiprocessing starts."""
    context: Any = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, readers, expected))
    process.start()
    sending.close()
    try:
        wrong = receiving.recv() if receiving.poll(_SECONDS) else [f"no answer in {_SECONDS} s"]
    except EOFError:
        wrong = ["the child ended without an answer"]
    receiving.close()
    process.join(_SECONDS)
    return [f"{method}: {message}" for message in wrong]


def _answer(sending: Connection, readers: dict[str, Any], expected: dict[str, str]) -> None:
    sending.send(differing(readers, expected))


def check_reading(folder: Path, forks: int, with_torch: bool) -> list[str]:
    """Read everything here and in children of every kind, and return what was not the same."""
    write_stores(folder)
    readers = make_readers(folder)
    if with_torch:
        readers.update(make_torch_readers(folder))
    expected = {name: digest(reader) for name, reader in readers.items()}
    wrong: list[str] = []

    def read_by(method: str) -> None:
        wrong.extend(in_process(method, readers, expected))
        if with_torch:
            wrong.extend(_differing_workers(readers, method))

    if "fork" in START_METHODS:
        with busy(readers):
            for _ in range(forks):
                time.sleep(random.random() / 50)
                wrong += in_fork(lambda: differing(readers, expected))
            read_by("fork")
    if with_torch and "forkserver" in START_METHODS:  # it imports torch once for all
        multiprocessing.get_context("forkserver").set_forkserver_preload(["tools.reading", "shardstore.torch"])
    for method in set(START_METHODS) - {"fork"}:
        read_by(method)
    return wrong + differing(readers, expected)


def _differing_workers(readers: dict[str, Any], method: str) -> list[str]:
    """Return what differs where workers of a DataLoader read, in two passes of the same workers."""
    from torch.utils.data import DataLoader

    wrong = []
    # Others import torch for each worker, which takes seconds.
    for name in ("batches", "ragged batches", "numbered rows") if method == "fork" else ("ragged batches",):
        dataset = readers[name]
        by_number = hasattr(dataset, "__getitems__")
        loader = DataLoader(
            dataset,
            batch_size=BATCH if by_number else None,
            num_workers=2 if method == "fork" else 1,
            persistent_workers=True,
            multiprocessing_context=method,
            timeout=_SECONDS,
        )
        here = DataLoader(dataset, batch_size=BATCH) if by_number else dataset
        right = digest(_Again(dataset, here))
        if [digest(_Again(dataset, loader)) for _ in range(2)] != [right] * 2:
            wrong.append(f"{method}: workers of {name} read something else")
    return wrong


class _Again:
    """A loader whose passes begin with a given epoch of its dataset, if that has epochs."""

    def __init__(self, dataset: Any, loader: Any) -> None:
        self._dataset = dataset
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self._dataset, "set_epoch"):
            self._dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


# Pickles


def write_wide_store(path: Path, shards: int, columns: int) -> None:
    """Write a store of many shards in many columns, 8 rows each, the last column one of many categories."""
    rows = np.arange(8 * shards)
    with shardstore.Writer(path, shard_bytes=64, chunk_bytes=64, types={"kind": "categorical"}) as writer:
        kinds = [f"kind {number % 5000}" for number in range(len(rows))]
        writer.append({**{f"column_{number}": rows + number for number in range(columns - 1)}, "kind": kinds})


def pickles_over(path: Path, with_torch: bool) -> dict[str, bytes]:
    """Return pickles of all that can be made of a store and was read, but for views that list their rows."""
    store = shardstore.open(path)
    first = store.columns[-1]
    part = store.split(train=0.9, test=0.1)["train"]
    things: dict[str, Any] = {
        "store": store,
        "column": store[first],
        "slice": store.rows(slice(10, None, 2)),
        "part": part,
        "part of a part": part.split(a=0.5, b=0.5)["a"],
        "selected columns": store.select(first),
        "join": store.select(first).join(store.select(*store.columns[:-1])),
        "mixture": shardstore.mix({store: 1, part: 2}),
        "stream": store.batches(BATCH, shuffle="full"),
        "window stream": store.batches(BATCH, shuffle="window", prefetch=2),
        "stream of a part": part.batches(BATCH, shuffle=True),
        "stream of a mixture": shardstore.mix({store: 1, part: 2}).batches(BATCH, shuffle=True),
    }
    if with_torch:
        from shardstore.torch import StoreIterableDataset, StoreLoader, StoreMapDataset

        things["dataset"] = StoreIterableDataset(store, BATCH, shuffle=True)
        things["dataset of rows"] = StoreIterableDataset(part, shuffle="window")
        things["dataset by number"] = StoreMapDataset(store)
        things["loader"] = StoreLoader(store, BATCH, shuffle="window")
    pickles = {}
    for name, thing in things.items():
        for _ in range(3):
            read_some(thing)
        pickles[name] = pickle.dumps(thing)
    return pickles


def read_some(thing: Any) -> Any:
    """Return the first item of whatever reads."""
    return next(iter(thing.batches(BATCH) if hasattr(thing, "batches") else thing))


def check_pickles(path: Path, with_torch: bool) -> tuple[dict[str, int], list[str]]:
    """Return the sizes of pickles, and what they do that they must not: be large, or need a file before a read."""
    pickles = pickles_over(path, with_torch)
    wrong = [f"{name}: a pickle of {len(data):,} bytes" for name, data in pickles.items() if len(data) > PICKLE_NBYTES]
    away = path.with_name("away")
    path.rename(away)
    copies = {name: pickle.loads(data) for name, data in pickles.items()}
    for name, copy in copies.items():
        try:
            read_some(copy)
            wrong.append(f"{name}: reads a store that is not there")
        except shardstore.FormatError:
            pass
    away.rename(path)
    for copy in copies.values():
        read_some(copy)
    return {name: len(data) for name, data in pickles.items()}, wrong


# Memory


@dataclass(frozen=True)
class Memory:
    """What a process has resident, in bytes.

    Attributes:
        anonymous: memory of its own, no file's.
        dirty: what only this process has, and has written to.
        proportional: its own, and its share of what several have.
        files: its share of the pages of files.
    """

    anonymous: int
    dirty: int
    proportional: int
    files: int

    @classmethod
    def now(cls) -> Memory:
        """Return that of this process."""
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        nbytes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
        return cls(nbytes["Anonymous"], nbytes["Private_Dirty"], nbytes["Pss"], nbytes.get("Pss_File", 0))


def _stream(stream: shardstore.BatchStream, answers: Connection, done: Any) -> None:
    """Read an epoch, say what this process has then, once all have read theirs, and stay until they have, too."""
    rows = sum(len(next(iter(batch.values()))) for batch in stream)
    done.wait()
    answers.send((rows, Memory.now()))
    done.wait()


def measure(path: Path, method: str, workers: int) -> list[Memory]:
    """Stream a store in so many processes at the same time, shuffled; return what each has then."""
    context: Any = multiprocessing.get_context(method)
    with shardstore.open(path) as store:
        for _ in store.batches(BATCH, shuffle=True):  # this process has read, too
            pass
        receiving, sending = context.Pipe(duplex=False)
        done = context.Barrier(workers)
        streams = [store.batches(BATCH, shuffle=True, seed=number, prefetch=number % 2) for number in range(workers)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            processes = [context.Process(target=_stream, args=(stream, sending, done)) for stream in streams]
            for process in processes:
                process.start()
        answers = []
        for _ in processes:
            if not receiving.poll(_SECONDS + 10 * workers):
                raise RuntimeError("a worker does not answer")
            answers.append(receiving.recv())
        for process in processes:
            process.join()
        assert all(rows == len(store) for rows, _ in answers)
        return [memory for _, memory in answers]


def write_rows(path: Path, nbytes: int, codec: str = "raw") -> None:
    """Write rows of 4 KiB, so many bytes of them, that compress to about half."""
    with shardstore.Writer(path, codec=codec, shard_bytes=1 << 24) as writer:
        block = np.random.default_rng(0).integers(0, 16, (1 << 10, 4096), np.uint8)
        for number in range(nbytes >> 22):
            writer.append({"x": block + np.uint8(number)})


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    read = commands.add_parser("read")
    read.add_argument("--forks", type=int, default=100)
    pickles = commands.add_parser("pickles")
    pickles.add_argument("--shards", type=int, default=10_000)
    pickles.add_argument("--columns", type=int, default=10)
    for command in (read, pickles):
        command.add_argument("--no-torch", action="store_true")
    memory = commands.add_parser("memory")
    memory.add_argument("--workers", type=int, default=64)
    memory.add_argument("--megabytes", type=int, default=400)
    memory.add_argument("--codecs", nargs="+", default=["raw"])
    arguments = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.command == "read":
            wrong = check_reading(folder, arguments.forks, not arguments.no_torch)
            print(f"{arguments.forks:,} forks while threads read; children by {', '.join(START_METHODS)}")
        elif arguments.command == "pickles":
            write_wide_store(folder / "wide", arguments.shards, arguments.columns)
            sizes, wrong = check_pickles(folder / "wide", not arguments.no_torch)
            print(f"{arguments.columns} columns of {arguments.shards:,} shards")
            for name, size in sizes.items():
                print(f"  {name:22} {size:6,} bytes")
        else:
            print("start method, codec, store: of each worker at the most, in MB: anonymous, private dirty, PSS, files")
            for codec in arguments.codecs:
                for megabytes in (arguments.megabytes // 8, arguments.megabytes):
                    path = folder / f"{codec}-{megabytes}"
                    write_rows(path, megabytes << 20, codec)
                    for method in START_METHODS:
                        found = measure(path, method, arguments.workers)
                        parts = ("anonymous", "dirty", "proportional", "files")
                        most = [max(getattr(memory, part) for memory in found) / 1e6 for part in parts]
                        total = sum(memory.proportional for memory in found) / 1e6
                        text = " ".join(f"{value:8.1f}" for value in most)
                        print(f"  {method:10} {codec:4} {megabytes:5} MiB {text}; PSS of all {total:,.0f}", flush=True)
    print("\n".join(wrong) or "all as it must be")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
