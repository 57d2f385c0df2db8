"""The columns of two tables side by side, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.errors import SchemaError
from shardstore.ragged import Ragged, Values
from shardstore.ragged_rows import RaggedFiles
from shardstore.schema import Chunking, Field
from shardstore.selection import Rows, Selection, rows_of_runs
from shardstore.table_rows import ColumnFiles, Stopped, take_rows


@dataclass(frozen=True, eq=False)
class Side:
    """One of two tables.

    Attributes:
        files: where its rows lie.
        columns: the names of its columns, in order.
        selection: which of the rows there are its.
    """

    files: ColumnFiles
    columns: tuple[str, ...]
    selection: Selection

    @property
    def fingerprint(self) -> str:
        """What tells its rows from others."""
        return f"{self.files.store_id}/{self.selection.fingerprint()}"


class JoinedFiles:
    """The files of two tables as those of one, whose row *i* is row *i* of both. A `ColumnFiles`.

    Raises:
        SchemaError: if the numbers of rows differ, or a column of each has the same name.
    """

    def __init__(self, left: Side, right: Side) -> None:
        counts = len(left.selection), len(right.selection)
        if counts[0] != counts[1]:
            raise SchemaError(
                f"joined tables must have the same number of rows, but {left.files.path} has {counts[0]:,} and "
                f"{right.files.path} has {counts[1]:,}"
            )
        both = [name for name in left.columns if name in right.columns]
        if both:
            raise SchemaError(
                f"both tables have a column {both[0]!r}: rename it, or leave it out of one of them with select"
            )
        self._sides = {name: side for side in (left, right) for name in side.columns}
        self._left = left
        text = f"{left.fingerprint} {right.fingerprint}"
        self._id = f"join-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"

    @property
    def path(self) -> Path:
        """The directory of the first table's store."""
        return self._left.files.path

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, those of the first table first."""
        return tuple(self._sides)

    @property
    def store_id(self) -> str:
        """What tells this join from all others, on every machine."""
        return self._id

    def field(self, name: str) -> Field:
        """Return what a row of a column holds."""
        return self._sides[name].files.field(name)

    def version(self, name: str) -> Hashable:
        """Return what tells a column from others that had its name in the same store."""
        return self._sides[name].files.version(name)

    def chunking(self, name: str) -> Chunking:
        """Return what it takes to read rows of a column."""
        side = self._sides[name]
        chunking = side.files.chunking(name)
        if not side.selection.is_contiguous or chunking.phase is None:
            return replace(chunking, phase=None)
        return replace(chunking, phase=chunking.phase + side.selection.start)

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of a fixed column into the C-contiguous `out`."""
        side = self._sides[name]
        side.files.read(name, side.selection.resolve(rows), out)

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of a fixed column, one after the other, into the C-contiguous `out`."""
        side = self._sides[name]
        if side.selection.is_contiguous:
            first = side.selection.start
            side.files.read_runs(name, starts + first, stops + first, out)
        else:
            side.files.read(name, side.selection.resolve(rows_of_runs(starts, stops)), out)

    def read_slice(self, name: str, start: int, stop: int) -> Values:
        """Return consecutive rows of a column, as a read-only view where that needs no copy."""
        side = self._sides[name]
        selection = side.selection
        if start < stop and selection.is_contiguous:
            return side.files.read_slice(name, selection.start + start, selection.start + stop)
        if start < stop and not self.field(name).is_ragged and self.slices_are_views(name):
            first, last = selection.row(start), selection.row(stop - 1)
            rows: Values = side.files.read_slice(name, min(first, last), max(first, last) + 1)[:: selection.step]
            return rows
        return take_rows(side.files, name, selection.resolve(np.arange(start, stop)))

    def read_ragged(self, name: str, rows: Rows) -> Ragged:
        """Gather rows of a ragged column."""
        side = self._sides[name]
        return side.files.read_ragged(name, side.selection.resolve(rows))

    def read_ranges(self, name: str, rows: Rows) -> NDArray[np.int64]:
        """Return int64 `(rows, 2)`: the first item of each row of a ragged column and one past its last."""
        side = self._sides[name]
        return side.files.read_ranges(name, side.selection.resolve(rows))

    def ragged_source(self, name: str, selection: Selection) -> tuple[RaggedFiles, Selection]:
        """Return where the items of a ragged column lie, and which rows there are the selected ones."""
        side = self._sides[name]
        if selection.is_progression:
            own = side.selection.stride(
                selection.start, selection.start + selection.count * selection.step, selection.step
            )
        else:
            own = side.selection.pick(selection.resolve(np.arange(selection.count, dtype=np.int64)))
        return side.files.ragged_source(name, own)

    def begin_pass(self, name: str) -> None:
        """Be told that many rows of a column will be read."""
        self._sides[name].files.begin_pass(name)

    def wants(self, name: str, count: int) -> bool:
        """Whether so many rows of a column that will be read soon should be named to `expect`."""
        return self._sides[name].files.wants(name, count)

    def expect(self, name: str, rows: Rows) -> None:
        """Ask the system for the pages of rows that will be read soon."""
        side = self._sides[name]
        side.files.expect(name, side.selection.resolve(rows))

    def expect_run(self, name: str, start: int, stop: int) -> None:
        """Ask the system for the pages of consecutive rows that will be read soon, and of some behind them."""
        side = self._sides[name]
        if side.selection.is_contiguous:
            side.files.expect_run(name, side.selection.start + start, side.selection.start + stop)
        else:
            self.expect(name, np.arange(start, stop, dtype=np.int64))

    def populate(self, name: str, start: int, stop: int, stopped: Stopped) -> None:
        """Bring consecutive rows into the page cache and page tables, where they follow one another in the store."""
        side = self._sides[name]
        if side.selection.is_contiguous:
            side.files.populate(name, side.selection.start + start, side.selection.start + stop, stopped)

    def check_budget(self, nbytes: int, what: str, advice: str) -> None:
        """Raise `ValueError` if buffers of so many bytes do not fit the memory budget that was set for either."""
        for side in self._sides.values():
            side.files.check_budget(nbytes, what, advice)

    def buffer_nbytes(self) -> int:
        """Return how many bytes the smaller memory budget has for buffers."""
        return min(side.files.buffer_nbytes() for side in self._sides.values())

    def slices_are_views(self, name: str) -> bool:
        """Whether no slice of the column needs a copy."""
        side = self._sides[name]
        return side.selection.is_progression and side.files.slices_are_views(name)
