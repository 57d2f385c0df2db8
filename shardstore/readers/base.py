"""`Reader`: what all readers do, and how rows are sorted into the units that hold them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.schema import Field
from shardstore.selection import Rows


class Reader(ABC):
    """Rows of one column. Row numbers are in range; callers check them.

    Attributes:
        slices_are_views: whether no slice needs a copy.
    """

    slices_are_views: bool

    def __init__(self, field: Field) -> None:
        self._field = field

    @abstractmethod
    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Copy the given rows, in their order, into the C-contiguous `out`."""

    @abstractmethod
    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Return consecutive rows: a read-only view where that needs no copy, else a fresh array."""

    def take_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Copy runs of consecutive rows, one after the other, into the C-contiguous `out`."""
        place = 0
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            out[place : place + stop - start] = self.slice(start, stop)
            place += stop - start

    def take_blocks(self, first: int, length: int, blocks: Rows, out: NDArray[Any]) -> None:
        """Copy blocks of `length` consecutive rows, of which number 0 begins at row `first`, into `out`."""
        starts = first + blocks * length
        self.take_runs(starts, starts + length, out)

    def join_runs(self, starts: Rows, stops: Rows) -> NDArray[Any]:
        """Return a fresh array of runs of consecutive rows, one after the other."""
        out = np.empty((int((stops - starts).sum()), *self._field.row_shape), self._field.dtype)
        self.take_runs(starts, stops, out)
        return out

    def peek(self, start: int, stop: int) -> NDArray[Any]:
        """Return consecutive rows of one shard, through what scattered rows are read through."""
        return self.slice(start, stop)

    # What follows is of use for mapped files; elsewhere there is nothing to do ahead.

    @property
    def mapped_ranges(self) -> list[tuple[int, int]]:
        """Address and bytes of the pages of each file that is mapped now."""
        return []

    def begin_pass(self) -> None:  # noqa: B027, there is nothing to do unless files are mapped
        """Be told that many rows will be read."""

    def wants(self, count: int) -> bool:
        """Whether so many rows that will be read soon should be named to the methods below."""
        return False

    def expect(self, rows: Rows) -> None:  # noqa: B027, there is nothing to do unless files are mapped
        """Ask the system for the pages of rows that will be read soon."""

    def expect_runs(self, starts: Rows, stops: Rows) -> None:  # noqa: B027
        """Ask the system for the pages of runs of consecutive rows that will be read soon."""

    def expect_run(self, start: int, stop: int) -> None:  # noqa: B027
        """Ask the system for the pages of consecutive rows that will be read soon, and of some behind them."""

    def populate(self, start: int, stop: int, stopped: Callable[[], bool]) -> None:  # noqa: B027
        """Bring consecutive rows into the page cache and the page tables, if they are to stay there."""

    def warm(self) -> None:  # noqa: B027
        """Bring all rows into the page cache, and into the page tables if they are to stay there."""

    def close(self) -> None:  # noqa: B027
        """Count no longer for the memory budget. What was read stays valid."""


def cut_runs(start: int, stop: int, unit: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows `[start, stop)` at multiples of `unit`: yields number, first row, one past the last row."""
    while start < stop:
        number = start // unit
        end = min(stop, (number + 1) * unit)
        yield number, start, end
        start = end


def group_rows(rows: Rows, unit: int) -> Iterator[tuple[int, Rows, Rows]]:
    """Sort rows into units: yields each unit's number, where its rows stand in `rows`, and the rows within it."""
    if not len(rows):
        return
    numbers = rows // unit
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    for number, start, stop in zip(numbers[starts].tolist(), starts, [*starts[1:], len(rows)], strict=True):
        positions = order[start:stop]
        yield number, positions, rows[positions] - number * unit
