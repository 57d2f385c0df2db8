"""`bench`: all measurements of a store, one after the other, within a limit of time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import shardstore
from shardstore.access import Access
from shardstore.bench.advice import break_down, recommend
from shardstore.bench.ceilings import Ceilings, copy_rate, decode_rate, gather_rate, read_rate, try_codec
from shardstore.bench.jobs import JOBS, Run, Subject, drop, has_torch
from shardstore.bench.report import BenchReport, Subjected
from shardstore.machine import available_memory, cpu_count
from shardstore.memory_report import mappable_nbytes, shard_paths
from shardstore.store import Store

BATCH_SIZES = (32, 256, 2048)
SECONDS = 30.0

# Seconds of each measurement if all are to take 30.
_COLD, _FIRST, _WARM, _CEILING, _BRING_IN, _TOUCH, _EPOCH = 1.2, 0.8, 0.5, 0.3, 3.0, 1.5, 2.0
_BLOCKS_AHEAD = 2
# Rows for the gather from RAM take at most so much.
_RAM_NBYTES = 512 << 20
_RAM_SHARE = 8
# The part of a store that is measured warm takes at most this share of the memory that is available.
_WARM_SHARE = 4
_TRIAL_CODEC = "zstd"
_TRIAL_NBYTES = 4 << 20
# A cold shuffled epoch is measured whole if reading all files takes no longer: until then it is mostly waiting.
_WHOLE_EPOCH = 5.0


@dataclass(frozen=True)
class BenchOptions:
    """What a user asked for.

    Attributes:
        columns: what to read; all by default.
        batch_sizes: rows of a batch; the one in the middle is the usual one.
        seconds: about how long all takes.
        cold: whether to empty the page cache of the store's files.
        access: how the store is opened.
        memory_budget: the same.
    """

    columns: Sequence[str] | None = None
    batch_sizes: Sequence[int] = BATCH_SIZES
    seconds: float = SECONDS
    cold: bool = True
    access: Access = "auto"
    memory_budget: int | str | None = None

    def check(self) -> None:
        """Raise `ValueError` if it makes no sense."""
        if not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds:g}; expected more than 0, and an end")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch sizes are {list(self.batch_sizes)}; expected one or more, each at least 1")


@dataclass
class _Bench:
    """The measurements under way."""

    options: BenchOptions
    subject: Subject
    paths: list[Path]
    say: Callable[[str], None]
    runs: list[Run] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)
    # Of a shuffled epoch that begins with pages to bring in: while they come, it is slower than later.
    epoch_limit: float = 0.0

    @property
    def sizes(self) -> list[int]:
        return sorted(set(self.options.batch_sizes))

    @property
    def usual(self) -> int:
        return self.sizes[len(self.sizes) // 2]

    def time(self, share: float) -> float:
        return share * self.options.seconds / SECONDS

    def cold(self) -> float | None:
        """Measure what the disk gives; return the bytes a second of large reads."""
        if not self.options.cold:
            self.unmeasured.append("cold runs: they were not asked for")
            return None
        if refusal := drop(self.paths):
            self.unmeasured.append(f"cold runs: {refusal}")
            return None
        self.say("cold: large reads of the files")
        disk = read_rate(self.paths, self.time(_COLD)).per_second
        for job in JOBS:
            if refusal := drop(self.paths):
                self.unmeasured.append(f"cold, {job}: {refusal}")
                continue
            self.say(f"cold: {job}")
            if job == "shuffled":
                self.epoch_limit += self._whole_epoch(disk)
            limit = self.epoch_limit if job == "shuffled" else self.time(_COLD)
            self.runs.append(self.subject.once(job, "cold", self.usual, limit))
        return disk

    def _whole_epoch(self, disk: float) -> float:
        """Return the seconds that it takes to read all files; 0, and a word about it, if these are too many."""
        seconds = sum(path.stat().st_size for path in self.paths) / disk
        if seconds <= self.time(_WHOLE_EPOCH):
            return 2 * seconds  # at random the disk is slower
        self.unmeasured.append(
            f"cold, shuffled: a whole epoch, for which the disk takes {seconds:,.0f} s; what is shown is its first "
            f"{self.epoch_limit:.1f} s, while pages are still coming in"
        )
        return 0.0

    def bring_in(self) -> None:
        """Read as many of the first rows as there is time and memory for: all later runs are about these."""
        self.say("reading the files")
        with self.subject.open_store() as store:
            view = self.subject.view(store)
            most = available_memory() // _WARM_SHARE // max(1, view.row_nbytes)
            begin, rows = time.perf_counter(), 0
            for batch in view.batches(self.sizes[-1]):
                rows += len(batch[self.subject.columns[0]])
                if rows >= most or time.perf_counter() - begin > self.time(_BRING_IN):
                    break
        self.subject = replace(self.subject, rows=rows)

    def first(self) -> None:
        """Measure what a process's first touch of cached pages costs."""
        for job in JOBS:
            self.say(f"first touch: {job}")
            limit = self.epoch_limit if job == "shuffled" else self.time(_FIRST)
            self.runs.append(self.subject.once(job, "first", self.usual, limit))

    def warm(self, store: Store, rows: Mapping[str, Any]) -> dict[int, float]:
        """Measure what is left when all pages were touched; return what the same gathers from RAM take, by batch size.

        These are measured beside each other: the machine may have less to give a little later.
        """
        begin = time.perf_counter()
        for _ in self.subject.view(store).batches(self.sizes[-1]):
            if time.perf_counter() - begin > self.time(_TOUCH):
                break
        # Who takes rows singly finds the chunks of earlier takes in a cache.
        self.subject.warm(store, "random takes", self.usual, self.time(_WARM))
        gathers = {}
        for size in self.sizes:
            for job in JOBS:
                self.say(f"warm: {job}, batches of {size:,}")
                self.runs.append(self.subject.warm(store, job, size, self.time(_WARM)))
            gathers[size] = gather_rate(rows, size, self.time(_CEILING)).per_second
            self.say(f"warm: with a thread ahead, batches of {size:,}")
            self.runs.append(self.subject.warm(store, "shuffled", size, self.time(_WARM), _BLOCKS_AHEAD))
            if has_torch():
                self.say(f"warm: StoreLoader, batches of {size:,}")
                self.runs.append(self.subject.loaded(store, size, self.time(_WARM)))
        if not has_torch():
            self.unmeasured.append("StoreLoader: torch is not installed")
        return gathers

    def in_ram(self, store: Store) -> dict[str, Any]:
        """Return the first rows as arrays that no map is behind."""
        view = self.subject.view(store)
        most = min(_RAM_NBYTES, available_memory() // _RAM_SHARE) // max(1, view.row_nbytes)
        return view.take(np.arange(max(1, min(len(view), most))))

    def fast(self, disk: float | None) -> Ceilings:
        """Measure what is not cold, and what the machine can do with the same rows."""
        limit = self.time(_CEILING)
        with self.subject.open_store() as store:
            rows = self.in_ram(store)
            gathers = self.warm(store, rows)
            self.say("ceilings: copies, decoding")
            view = self.subject.view(store)
            decode = decode_rate(view, limit)
            sample = max(1, _TRIAL_NBYTES // view.row_nbytes)
            raw = {name: rows[name][:sample] for name in view.columns if not view.files.chunking(name).decoded}
            return Ceilings(
                disk=disk,
                copy=copy_rate(limit).per_second,
                gather=gathers,
                decode=None if decode is None else decode.per_second,
                trial=try_codec(_TRIAL_CODEC, raw, limit),
            )


def bench(
    path: str | Path, options: BenchOptions = BenchOptions(), say: Callable[[str], None] = lambda line: None
) -> BenchReport:
    """Measure a store: cold, at first touch and warm; in order, shuffled and at random; in-process and threaded.

    The page cache of the store's files is emptied for cold runs and filled again. All is read, nothing written.

    Args:
        path: the store's directory.
        options: what to measure, and for how long.
        say: is told what is being measured.

    Raises:
        ValueError: if there is nothing to read, or an option makes no sense.
        KeyError: if a column is unknown.
    """
    options.check()

    def open_store() -> Store:
        return shardstore.open(path, access=options.access, memory_budget=options.memory_budget)

    with open_store() as store:
        names = store.columns if options.columns is None else tuple(options.columns)
        selected = store.select(*names)
        if not len(store):
            raise ValueError(f"{path}: the store has no rows, so there is nothing to measure")
        if not selected.row_nbytes:
            raise ValueError(f"{path}: rows of {', '.join(names)} have no bytes, so there is nothing to measure")
        selected.take([0])  # damaged or missing files are found, and named, before anything is measured
        described = _describe(store, names)
        paths = shard_paths(store.files, names)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    running = _Bench(options, Subject(open_store, names, described.rows), paths, say)
    running.epoch_limit = running.time(_EPOCH)
    disk = running.cold()
    running.bring_in()
    running.first()
    ceilings = running.fast(disk)
    described = replace(described, fast_rows=running.subject.rows)
    report = BenchReport(described, ceilings, tuple(running.runs), unmeasured=tuple(running.unmeasured), load=load)
    report = replace(report, breakdowns=tuple(break_down(report)))
    return replace(report, recommendations=tuple(recommend(report)))


def _describe(store: Store, names: tuple[str, ...]) -> Subjected:
    entries = [store.manifest.columns[name] for name in names]
    decoded = {name: chunking for name in names if (chunking := store.files.chunking(name)).decoded}
    layouts = [entry.data.layout for entry in entries if not entry.data.layout.codec.is_raw]
    return Subjected(
        path=str(store.path),
        columns=names,
        codecs={name: str(entry.data.layout.codec) for name, entry in zip(names, entries, strict=True)},
        rows=len(store),
        row_nbytes=store.select(*names).row_nbytes,
        decoded_row_nbytes=sum(chunking.row_nbytes for chunking in decoded.values()),
        chunk_nbytes=float(np.mean([layout.chunk_nbytes for layout in layouts])) if layouts else 0.0,
        stored=sum(entry.stored_nbytes for entry in entries),
        mappable=sum(mappable_nbytes(array) for entry in entries for array in entry.arrays),
        access=store.files.budget.options.access,
        memory_budget=store.files.budget.total,
        available_memory=available_memory(),
        cpus=cpu_count(),
        fast_rows=0,
    )
