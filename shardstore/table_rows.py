"""The rows of a table as streams read them: by number, in some order, without a check."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardstore.feeds import Feed, feed_of
from shardstore.order import Order
from shardstore.schema import ColumnLayout, Field
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

    def layout(self, name: str) -> ColumnLayout:
        """Return how a column is cut."""

    def field(self, name: str) -> Field:
        """Return a column's dtype and row shape."""

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of a column into the C-contiguous `out`."""

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of a column, one after the other, into the C-contiguous `out`."""

    def read_slice(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return consecutive rows of a column, as a view where that needs no copy."""

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
        self.row_nbytes = sum(field.row_nbytes for field in self.schema.values())
        layouts = {name: files.layout(name) for name in columns}
        self.decoded = tuple(
            name for name, layout in layouts.items() if layout.field.row_nbytes and not layout.codec.is_raw
        )

    def feed(self) -> Feed:
        """Return a new feed of the rows in their order."""
        return feed_of(self, self._order)

    def fingerprint(self) -> str:
        """Return what tells these rows from others: the store and the selection, but not the columns."""
        return f"{self._files.store_id}/{self._selection.fingerprint()}"

    def gather(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return fresh arrays of some rows of all columns."""
        resolved = self._selection.resolve(rows)
        arrays = {}
        for name, field in self.schema.items():
            arrays[name] = np.empty((len(resolved), *field.row_shape), field.dtype)
            self._files.read(name, resolved, arrays[name])
        return arrays

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of one column into the C-contiguous `out`."""
        self._files.read(name, self._selection.resolve(rows), out)

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of one column, one after the other, into the C-contiguous `out`."""
        if self._selection.is_contiguous:
            first = self._selection.start
            self._files.read_runs(name, starts + first, stops + first, out)
            return
        lengths = stops - starts
        rows = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        self._files.read(name, self._selection.resolve(rows), out)

    def store_rows(self, rows: Rows) -> Rows:
        """Return the store's numbers of some rows."""
        return self._selection.resolve(rows)
