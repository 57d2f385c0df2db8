"""The rows of a table as streams read them: by number, in some order, without a check."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardstore.buffers import Allocate
from shardstore.feeds import Feed, feed_of
from shardstore.locks import cached_property
from shardstore.order import Order, WindowShuffle
from shardstore.ragged import Ragged, Values, owned
from shardstore.ragged_rows import RaggedFiles
from shardstore.schema import Chunking, Field
from shardstore.selection import Rows, Selection, rows_of_runs

Stopped = Callable[[], bool]
# Rows picked one by one are populated only where they are this part of what lies between them, or more.
_POPULATE_SHARE = 4
_POPULATE_SAMPLES = 64


class ColumnFiles(Protocol):
    """The files of a store, as far as a table reads them. Row numbers are known to be in range."""

    @property
    def path(self) -> Path:
        """The store's directory."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, in order."""

    @property
    def store_id(self) -> str:
        """What tells this store from all others, on every machine."""

    def field(self, name: str) -> Field:
        """Return what a row of a column holds."""

    def version(self, name: str) -> Hashable:
        """Return what tells a column from others that had its name in the same store."""

    def chunking(self, name: str) -> Chunking:
        """Return what it takes to read rows of a column."""

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of a fixed column into the C-contiguous `out`."""

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of a fixed column, one after the other, into the C-contiguous `out`."""

    def read_slice(self, name: str, start: int, stop: int) -> Values:
        """Return consecutive rows of a column, as a view where that needs no copy."""

    def read_ragged(self, name: str, rows: Rows) -> Ragged:
        """Gather rows of a ragged column."""

    def read_ranges(self, name: str, rows: Rows) -> NDArray[np.int64]:
        """Return int64 `(rows, 2)`: the first item of each row of a ragged column and one past its last."""

    def ragged_source(self, name: str, selection: Selection) -> tuple[RaggedFiles, Selection]:
        """Return where the items of a ragged column lie, and which rows there are the selected ones."""

    def slices_are_views(self, name: str) -> bool:
        """Whether no slice of the column needs a copy."""

    def begin_pass(self, name: str) -> None:
        """Be told that many rows of a column will be read."""

    def wants(self, name: str, count: int) -> bool:
        """Whether so many rows of a column that will be read soon should be named to `expect`."""

    def expect(self, name: str, rows: Rows) -> None:
        """Ask the system for the pages of rows that will be read soon."""

    def expect_run(self, name: str, start: int, stop: int) -> None:
        """Ask the system for the pages of consecutive rows that will be read soon, and of some behind them."""

    def populate(self, name: str, start: int, stop: int, stopped: Stopped) -> None:
        """Bring consecutive rows into the page cache and, if they are to stay resident, into the page tables."""

    def check_budget(self, nbytes: int, what: str, advice: str) -> None:
        """Raise `ValueError` if buffers of so many bytes do not fit the memory budget that the user has set."""

    def buffer_nbytes(self) -> int:
        """Return how many bytes the memory budget has for buffers."""


class TableRows:
    """The rows of a table in some order, without a check: what streams read. A `shardstore.stream.StreamSource`."""

    def __init__(self, files: ColumnFiles, columns: tuple[str, ...], selection: Selection, order: Order) -> None:
        self._files = files
        self._selection = selection
        self._order = order
        self.count = len(selection)
        self._populated_by: int | None = None
        self.columns = columns
        self.names = ("rows",)

    def __reduce__(self) -> tuple[Any, ...]:
        # What follows is known again once the files are opened: fields may have many categories.
        return TableRows, (self._files, self.columns, self._selection, self._order)

    @cached_property
    def schema(self) -> dict[str, Field]:
        """What a row has of each column."""
        return {name: self._files.field(name) for name in self.columns}

    @cached_property
    def row_nbytes(self) -> int:
        """Bytes of a row of all columns."""
        return sum(self._files.chunking(name).row_nbytes for name in self.columns)

    @cached_property
    def decoded(self) -> tuple[str, ...]:
        """The names of columns whose chunks are decoded."""
        return tuple(name for name in self.columns if self._files.chunking(name).decoded)

    def feed(self, empty: Allocate = np.empty, copy: bool = True) -> Feed:
        """Return a new feed of the rows in their order; without `copy`, consecutive ones may be views."""
        for name in self.columns:
            self._files.begin_pass(name)
        return feed_of(self, self._order, empty, copy)

    def versions(self) -> tuple[Any, ...]:
        """Return what tells the columns from others of their names in the same store."""
        return tuple(self._files.version(name) for name in self.columns)

    def check_budget(self, batch_size: int) -> None:
        """Raise `ValueError` if a batch, or a window of the order, does not fit the memory budget that was set."""
        files = self._files
        batch_size = min(batch_size, self.count)
        batch = f"a batch of {batch_size:,} rows"
        files.check_budget(batch_size * self.row_nbytes, batch, "choose a smaller batch_size")
        if self.decoded and isinstance(self._order, WindowShuffle):
            nbytes = self._order.max_window_rows * sum(files.chunking(name).row_nbytes for name in self.decoded)
            nbytes += batch_size * self.row_nbytes
            files.check_budget(
                nbytes, "a window of the shuffle with a batch", "choose smaller window_bytes (another order)"
            )

    def buffer_nbytes(self) -> int:
        """Return how many bytes the memory budget has for buffers."""
        return self._files.buffer_nbytes()

    @property
    def is_populated(self) -> bool:
        """Whether `populate` has been through, in this process."""
        return self._populated_by == os.getpid()

    def populate(self, stopped: Stopped) -> None:
        """Bring the columns into the page cache and page tables, unless few of their rows are meant."""
        start, stop = self._populated_rows()
        for name in self.columns:
            self._files.populate(name, start, stop, stopped)
        if not stopped():
            self._populated_by = os.getpid()

    def _populated_rows(self) -> tuple[int, int]:
        selection = self._selection
        if selection.is_contiguous:
            return selection.start, selection.start + selection.count
        if not selection.count:
            return 0, 0
        # Rows picked from anywhere: where they are few, reading everything is not worth it.
        places = np.linspace(0, selection.count - 1, _POPULATE_SAMPLES).astype(np.int64)
        sample = selection.resolve(places)
        start, stop = int(sample.min()), int(sample.max()) + 1
        return (start, stop) if selection.count * _POPULATE_SHARE >= stop - start else (0, 0)

    def fingerprint(self) -> str:
        """Return what tells these rows from others: the store and the selection, but not the columns."""
        return f"{self._files.store_id}/{self._selection.fingerprint()}"

    def gather(self, rows: Rows, empty: Allocate) -> dict[str, Values]:
        """Return some rows of all columns in arrays made by `empty`."""
        resolved = self._selection.resolve(rows)
        return {name: take_rows(self._files, name, resolved, empty) for name in self.columns}

    def gather_run(self, start: int, stop: int, empty: Allocate | None) -> dict[str, Values]:
        """Return consecutive rows of all columns in arrays made by `empty`; without it, as views where possible."""
        selection = self._selection
        if not selection.is_contiguous:
            return self.gather(np.arange(start, stop, dtype=np.int64), empty or np.empty)
        first, last = selection.start + start, selection.start + stop
        slices = {name: self._files.read_slice(name, first, last) for name in self.columns}
        return slices if empty is None else {name: owned(values, empty) for name, values in slices.items()}

    def wants(self, count: int) -> bool:
        """Whether so many rows that will be read soon should be named to `expect` or `expect_run`."""
        return any(self._files.wants(name, count) for name in self.columns)

    def expect(self, rows: Rows) -> None:
        """Ask the system for the pages of rows that will be read soon."""
        resolved = self._selection.resolve(rows)
        for name in self.columns:
            self._files.expect(name, resolved)

    def expect_run(self, start: int, stop: int) -> None:
        """Ask the system for the pages of consecutive rows that will be read soon, and of some behind them."""
        selection = self._selection
        if not selection.is_contiguous:
            self.expect(np.arange(start, stop, dtype=np.int64))
            return
        for name in self.columns:
            self._files.expect_run(name, selection.start + start, selection.start + stop)

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of one column into the C-contiguous `out`."""
        self._files.read(name, self._selection.resolve(rows), out)

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of one column, one after the other, into the C-contiguous `out`."""
        if self._selection.is_contiguous:
            first = self._selection.start
            self._files.read_runs(name, starts + first, stops + first, out)
            return
        self._files.read(name, self._selection.resolve(rows_of_runs(starts, stops)), out)

    def read_ragged(self, name: str, rows: Rows) -> Ragged:
        """Gather rows of one ragged column."""
        return self._files.read_ragged(name, self._selection.resolve(rows))

    def store_rows(self, rows: Rows) -> Rows:
        """Return the store's numbers of some rows."""
        return self._selection.resolve(rows)


def take_rows(files: ColumnFiles, name: str, rows: Rows, empty: Allocate = np.empty) -> Values:
    """Return some rows of one column in an array made by `empty`; of a ragged one, in fresh arrays."""
    field = files.field(name)
    if field.is_ragged:
        return files.read_ragged(name, rows)
    out = empty((len(rows), *field.row_shape), field.dtype)
    files.read(name, rows, out)
    return out
