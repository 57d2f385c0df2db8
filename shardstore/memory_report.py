"""`MemoryReport`: what an open store costs, each kind of memory by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from shardstore.entries import ArrayEntry
from shardstore.memory import current_memory, size_text
from shardstore.paging import PAGE
from shardstore.residency import cached_nbytes, resident_nbytes
from shardstore.store_files import StoreFiles

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of memory, kind by kind. What the system does not tell is None.

    Attributes:
        anonymous: what this process alone can use (arrays, heaps): what a machine runs out of.
        file_backed: pages of files that this process has resident: of all its files, and shared memory.
        resident: of these, what belongs to maps of this store. The system takes it back when it needs room.
        page_cache: what of the store's files is in the page cache, whoever brought it there.
        stored: all bytes of the store's files.
        mapped: addresses that lead to the store's files now; they cost no memory.
        mappable: the same once every raw column has been read whole.
        buffers: decoded chunks that the store holds; a part of `anonymous`.
        access: how pages are used, as the store was opened.
        memory_budget: what bounds `resident` and all buffers.
    """

    anonymous: int | None
    file_backed: int | None
    resident: int | None
    page_cache: int | None
    stored: int
    mapped: int
    mappable: int
    buffers: int
    access: str
    memory_budget: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        cached = size_or_unknown(self.page_cache)
        lines = [
            ("anonymous", size_or_unknown(self.anonymous), "of this process: arrays and heaps"),
            ("  buffers", size_text(self.buffers), "of it, decoded chunks of this store"),
            ("file-backed", size_or_unknown(self.file_backed), "resident in this process, taken back at need"),
            ("  this store", size_or_unknown(self.resident), "of it, in maps of this store"),
            ("page cache", f"{cached} of {size_text(self.stored)}", "of the store's files, shared by all processes"),
            ("mapped", f"{size_text(self.mapped)} of {size_text(self.mappable)}", "addresses, not memory"),
            ("budget", size_text(self.memory_budget), f"access={self.access!r}"),
        ]
        left, middle = (max(len(line[part]) for line in lines) for part in (0, 1))
        return "\n".join(f"{name:<{left}}  {size:>{middle}}  {note}" for name, size, note in lines)


def size_or_unknown(nbytes: int | None) -> str:
    """Return a number of bytes as text, or that the system does not tell."""
    return "unknown" if nbytes is None else size_text(nbytes)


def memory_report(files: StoreFiles) -> MemoryReport:
    """Return what an open store costs now. Exact to the page; costs about 10 µs a shard file."""
    process = current_memory()
    ranges = files.mapped_ranges()
    return MemoryReport(
        anonymous=None if process is None else process.anonymous,
        file_backed=None if process is None else process.file_backed,
        resident=resident_nbytes(ranges),
        page_cache=cached_nbytes_of(shard_paths(files)),
        stored=sum(column.stored_nbytes for column in files.manifest.columns.values()),
        mapped=sum(nbytes for _, nbytes in ranges),
        mappable=sum(map(mappable_nbytes, files.manifest.arrays)),
        buffers=files.held_nbytes(),
        access=files.budget.options.access,
        memory_budget=files.budget.total,
    )


def shard_paths(files: StoreFiles, columns: tuple[str, ...] | None = None) -> list[Path]:
    """Return the shard files of some columns, or of all."""
    entries = files.manifest.columns
    names = entries if columns is None else columns
    return [files.absolute_path / key for name in names for entry in entries[name].arrays for key in entry.keys]


def mappable_nbytes(entry: ArrayEntry) -> int:
    """Return how many bytes a process maps that reads all of an array: whole pages of each shard, 0 if compressed."""
    layout = entry.layout
    if not layout.codec.is_raw or not layout.field.row_nbytes or not entry.rows:
        return 0
    shards = len(entry.nbytes)
    last = layout.rows_in_shard(shards - 1, entry.rows) * layout.field.row_nbytes
    return (shards - 1) * _whole_pages(layout.shard_nbytes) + _whole_pages(last)


def _whole_pages(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


def cached_nbytes_of(paths: list[Path]) -> int | None:
    """Return how many bytes of files are in the page cache; None where the system does not tell, of any of them.

    Files that are gone since count for nothing.
    """
    total = 0
    for found in each_file(paths, cached_nbytes):
        if found is None:
            return None
        total += found
    return total


def each_file(paths: list[Path], act: Callable[[int], _Found]) -> Iterator[_Found]:
    """Yield what a function of an open file's descriptor returns, of each file that is there."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            yield act(descriptor)
        finally:
            os.close(descriptor)
