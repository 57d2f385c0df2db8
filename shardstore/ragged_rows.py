"""Rows of ragged columns: ranges first, then the items that they name."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardstore.ragged import RAGGED_CLASSES, Ragged, offsets_of
from shardstore.schema import Chunking, Field
from shardstore.selection import Rows


class RaggedFiles(Protocol):
    """The two arrays of each ragged column of a store. Numbers of rows and items are known to be in range."""

    @property
    def path(self) -> Path:
        """The store's directory."""

    @property
    def store_id(self) -> str:
        """What tells this store from all others, on every machine."""

    def field(self, name: str) -> Field:
        """Return what a row holds."""

    def version(self, name: str) -> Hashable:
        """Return what tells a column from others that had its name in the same store."""

    def item_chunking(self, name: str) -> Chunking:
        """Return what it takes to read items."""

    def slices_are_views(self, name: str) -> bool:
        """Whether no slice of the items needs a copy."""

    def read_ranges(self, name: str, rows: Rows) -> NDArray[np.int64]:
        """Return int64 `(rows, 2)`: the first item of each row and one past its last, in range."""

    def read_items(self, name: str, starts: Rows, stops: Rows) -> NDArray[Any]:
        """Return a fresh array of runs of consecutive items, one after the other."""

    def read_item_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive items, one after the other, into the C-contiguous `out`."""

    def read_item_blocks(self, name: str, first: int, length: int, blocks: Rows, out: NDArray[Any]) -> None:
        """Read blocks of `length` items, of which number 0 begins at item `first`, into the C-contiguous `out`."""

    def read_item_slice(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return consecutive items, as a read-only view where that needs no copy."""

    def begin_pass(self, name: str) -> None:
        """Be told that many rows of a column will be read."""

    def wants(self, name: str, count: int) -> bool:
        """Whether so many rows of a column that will be read soon should be named to the methods below."""

    def expect_items(self, name: str, starts: Rows, stops: Rows) -> None:
        """Ask the system for the pages of runs of items that will be read soon."""

    def expect_item_run(self, name: str, start: int, stop: int) -> None:
        """Ask the system for the pages of consecutive items that will be read soon, and of some behind them."""

    def populate_items(self, name: str, start: int, stop: int, stopped: Callable[[], bool]) -> None:
        """Bring consecutive items into the page cache and, if they are to stay resident, into the page tables."""

    def check_budget(self, nbytes: int, what: str, advice: str) -> None:
        """Raise `ValueError` if buffers of so many bytes do not fit the memory budget that the user has set."""

    def buffer_nbytes(self) -> int:
        """Return how many bytes the memory budget has for buffers."""

    def range_slice(self, name: str, start: int, stop: int) -> NDArray[np.int64] | None:
        """Return the ranges of consecutive rows, unchecked, as a view of the file; None where that needs a copy."""


def take_ragged(files: RaggedFiles, name: str, rows: Rows) -> Ragged:
    """Gather rows of a ragged column, in order, into fresh arrays."""
    ranges = files.read_ranges(name, rows)
    starts, stops = ranges[:, 0], ranges[:, 1]
    return _made(files, name, files.read_items(name, *end_to_end(starts, stops)), stops - starts)


def slice_ragged(files: RaggedFiles, name: str, start: int, stop: int) -> Ragged:
    """Return consecutive rows of a ragged column, whose values are a view where that needs no copy."""
    ranges = files.read_ranges(name, np.arange(start, stop))
    starts, stops = end_to_end(ranges[:, 0], ranges[:, 1])
    if len(starts) > 1:
        values = files.read_items(name, starts, stops)
    else:
        first, last = (int(starts[0]), int(stops[0])) if len(starts) else (0, 0)
        values = files.read_item_slice(name, first, last)
    return _made(files, name, values, ranges[:, 1] - ranges[:, 0])


def _made(files: RaggedFiles, name: str, values: NDArray[Any], lengths: Rows) -> Ragged:
    return RAGGED_CLASSES[files.field(name).kind].checked(values, offsets_of(lengths))


def end_to_end(starts: Rows, stops: Rows) -> tuple[Rows, Rows]:
    """Join runs that follow one another in the file, too."""
    joined = starts[1:] == stops[:-1]
    if not joined.any():
        return starts, stops
    first = np.concatenate([[True], ~joined])
    return starts[first], stops[np.append(first[1:], True)]
