"""What is measured of a store: epochs in order and shuffled, and random takes; cold, for the first time, and warm."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shardstore.bench.timing import Rate, run_once, run_steadily
from shardstore.memory import size_text
from shardstore.memory_report import cached_nbytes_of, each_file
from shardstore.residency import drop_cached
from shardstore.store import Store
from shardstore.table import View

Job = Literal["sequential", "shuffled", "random takes"]
JOBS: tuple[Job, ...] = ("sequential", "shuffled", "random takes")
# "first": the files are in the page cache, but the process has not touched them yet.
State = Literal["cold", "first", "warm"]
STATES: tuple[State, ...] = ("cold", "first", "warm")
IN_PROCESS = "in-process"
THREAD = "prefetch"
LOADER = "StoreLoader"

# So much may stay in the page cache: a page that somebody reads just now.
_LEFT_SHARE = 0.01


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        job: what was read.
        state: what was in memory before.
        way: `"in-process"`, `"prefetch"` (`Store.batches` with a thread ahead) or `"StoreLoader"`.
        batch_size: rows of a batch.
        rows: how many were read.
        seconds: how long that took.
        rows_per_second: the rate.
        chunks_decoded: compressed chunks that were decoded meanwhile.
    """

    job: Job
    state: State
    way: str
    batch_size: int
    rows: int
    seconds: float
    rows_per_second: float
    chunks_decoded: int

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """What is measured: some columns of a store, opened in one way, and the first rows of them.

    Attributes:
        open_store: opens it anew.
        columns: the columns.
        rows: how many rows from the first one on.
    """

    open_store: Callable[[], Store]
    columns: tuple[str, ...]
    rows: int

    def view(self, store: Store) -> View:
        """Return what is read."""
        view = store.select(*self.columns)
        return view if self.rows == len(view) else view.rows(slice(0, self.rows))

    def once(self, job: Job, state: State, batch_size: int, seconds: float) -> Run:
        """Open the store and read an epoch, for so many seconds at most."""
        with self.open_store() as store:
            with closing(row_counts(self.view(store), job, batch_size, 1)) as counts:
                rate = run_once(counts, seconds)
            return _run(job, state, IN_PROCESS, batch_size, rate, store.chunks_decoded)

    def warm(self, store: Store, job: Job, batch_size: int, seconds: float, prefetch: int = 0) -> Run:
        """Read epoch after epoch of an open store, with so many blocks read ahead by a thread."""
        before = store.chunks_decoded
        with closing(row_counts(self.view(store), job, batch_size, None, prefetch)) as counts:
            rate = run_steadily(counts, seconds)
        way = THREAD if prefetch else IN_PROCESS
        return _run(job, "warm", way, batch_size, rate, store.chunks_decoded - before)

    def loaded(self, store: Store, batch_size: int, seconds: float) -> Run:
        """Read shuffled epochs of an open store through a `StoreLoader`."""
        from shardstore.torch import StoreLoader

        before = store.chunks_decoded
        loader = StoreLoader(self.view(store), batch_size, shuffle=True, epochs=None)

        def counts() -> Generator[int, None, None]:
            for batch in loader:
                yield len(batch[self.columns[0]])

        with closing(loader), closing(counts()) as running:
            rate = run_steadily(running, seconds)
        return _run("shuffled", "warm", LOADER, batch_size, rate, store.chunks_decoded - before)


def _run(job: Job, state: State, way: str, batch_size: int, rate: Rate, chunks: int) -> Run:
    return Run(job, state, way, batch_size, rate.count, rate.seconds, rate.per_second, chunks)


def row_counts(
    view: View, job: Job, batch_size: int, epochs: int | None, prefetch: int = 0
) -> Generator[int, None, None]:
    """Yield the rows of each batch of a job: for so many epochs, or for ever."""
    first = view.columns[0]
    if job == "random takes":
        yield from _takes(view, batch_size, epochs)
        return
    for batch in view.batches(batch_size, shuffle=job == "shuffled", epochs=epochs, prefetch=prefetch):
        yield len(batch[first])


def _takes(view: View, batch_size: int, epochs: int | None) -> Iterator[int]:
    """Take rows that nobody knows before they are asked for: as many as an epoch has, or for ever."""
    rng = np.random.default_rng(0)
    size, left = min(batch_size, len(view)), len(view)
    while epochs is None or left > 0:
        view.take(rng.integers(0, len(view), size))
        left -= size
        yield size


def has_torch() -> bool:
    """Whether a `StoreLoader` can be made."""
    return find_spec("torch") is not None


def drop(paths: list[Path]) -> str | None:
    """Empty the page cache of files that this process has not mapped; return why it is not empty, if it is not."""
    gc.collect()  # arrays that show a map keep it, and the map keeps its pages
    stored = sum(path.stat().st_size for path in paths)
    try:
        for _ in each_file(paths, drop_cached):
            pass
    except OSError as error:
        return f"the page cache of the store's files cannot be emptied: {error}"
    left = cached_nbytes_of(paths)
    if left is None:
        return "the system does not tell which pages of the store's files are cached, so nothing is known to be cold"
    if left > _LEFT_SHARE * stored:
        found = f"{size_text(left)} of {size_text(stored)} stay in the page cache"
        return f"{found}: another process has the store mapped, or the file system keeps files in memory"
    return None
