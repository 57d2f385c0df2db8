"""The rows of a table as streams read them: by number, in some order, without a check."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardstore.feeds import Feed, feed_of
from shardstore.order import Order
from shardstore.ragged import Ragged, Values
from shardstore.ragged_rows import RaggedFiles, rows_of_runs
from shardstore.schema import Chunking, Field
from shardstore.selection import Rows, Selection


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


class TableRows:
    """The rows of a table in some order, without a check: what streams read. A `shardstore.stream.StreamSource`."""

    def __init__(self, files: ColumnFiles, columns: tuple[str, ...], selection: Selection, order: Order) -> None:
        self._files = files
        self._selection = selection
        self._order = order
        self.columns = columns
        self.names = ("rows",)
        self.schema = {name: files.field(name) for name in columns}
        chunkings = {name: files.chunking(name) for name in columns}
        self.row_nbytes = sum(chunking.row_nbytes for chunking in chunkings.values())
        self.decoded = tuple(name for name, chunking in chunkings.items() if chunking.decoded)

    def feed(self) -> Feed:
        """Return a new feed of the rows in their order."""
        return feed_of(self, self._order)

    def fingerprint(self) -> str:
        """Return what tells these rows from others: the store and the selection, but not the columns."""
        return f"{self._files.store_id}/{self._selection.fingerprint()}"

    def gather(self, rows: Rows) -> dict[str, Values]:
        """Return fresh arrays of some rows of all columns."""
        resolved = self._selection.resolve(rows)
        return {name: take_rows(self._files, name, resolved) for name in self.columns}

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


def take_rows(files: ColumnFiles, name: str, rows: Rows) -> Values:
    """Return a fresh array of some rows of one column."""
    field = files.field(name)
    if field.is_ragged:
        return files.read_ragged(name, rows)
    out = np.empty((len(rows), *field.row_shape), field.dtype)
    files.read(name, rows, out)
    return out
