"""Selections: which rows are meant, and the one set of indexing rules for columns, views and stores.

Order and duplicates are kept, negative rows count from the end, a boolean mask has one value per row, and a row
out of range is an `IndexError` that names it.
"""

from __future__ import annotations

import hashlib
import operator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
_INT64 = np.dtype(np.int64)


class RowMap(Protocol):
    """Some rows of a range, in an order that is computed rather than stored."""

    def __len__(self) -> int:
        """Return how many rows there are."""

    @property
    def text(self) -> str:
        """All that determines the rows."""

    def resolve(self, positions: Rows) -> Rows:
        """Return the rows at int64 positions that are known to be in range."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Some rows of a store, in order: an arithmetic progression (O(1) memory) or an array of row numbers.

    The progression may be one of positions of a map: then the map's rows are positions of another selection, which
    may have a map in turn.

    Attributes:
        start: first row of the progression.
        step: distance of its rows.
        count: how many rows there are.
        rows: int64 `(count,)`, the rows where they are no progression, else None.
        mapped: the map that the progression has positions of, and the selection that it picks from; else None.
    """

    start: int
    step: int
    count: int
    rows: Rows | None = None
    mapped: tuple[RowMap, Selection] | None = None

    @classmethod
    def all(cls, count: int) -> Selection:
        """Select rows 0 to `count`."""
        return cls(0, 1, count)

    def __len__(self) -> int:
        return self.count

    @property
    def is_progression(self) -> bool:
        """Whether the rows of the store are an arithmetic progression."""
        return self.rows is None and self.mapped is None

    @property
    def is_contiguous(self) -> bool:
        """Whether the rows follow each other in the store."""
        return self.is_progression and (self.step == 1 or self.count <= 1)

    def resolve(self, positions: Rows) -> Rows:
        """Return the store rows at positions of this selection that are known to be in range."""
        if self.rows is not None:
            return self.rows[positions]
        if self.start != 0 or self.step != 1:
            positions = positions * self.step + self.start
        if self.mapped is None:
            return positions
        row_map, table = self.mapped
        return table.resolve(row_map.resolve(positions))

    def row(self, position: int) -> int:
        """Return the store row at one position that is known to be in range."""
        if self.is_progression:
            return self.start + position * self.step
        return int(self.resolve(np.array([position], np.int64))[0])

    def stride(self, start: int, stop: int, step: int = 1) -> Selection:
        """Return the selection of positions `range(start, stop, step)`, which must be in range."""
        count = len(range(start, stop, step))
        if self.rows is not None:
            picked = self.rows[start : stop if stop >= 0 else None : step]
            return Selection(0, 1, count, picked)
        return Selection(self.start + start * self.step, self.step * step, count, None, self.mapped)

    def through(self, row_map: RowMap) -> Selection:
        """Return the selection of the positions that a map has, in its order, in O(1) memory."""
        return Selection(0, 1, len(row_map), None, (row_map, self))

    def pick(self, index: slice | Rows) -> Selection:
        """Return the selection of a normalised index into this one, which keeps no memory of the caller's."""
        if isinstance(index, slice):
            return self.stride(*index.indices(self.count))
        rows = np.array(self.resolve(index))
        rows.flags.writeable = False
        return Selection(0, 1, len(rows), rows)

    def fingerprint(self) -> str:
        """Return 16 hex digits that tell which rows are meant and how: the same in every process, for ever.

        Equal choices have equal fingerprints; rows that were listed differ from the same ones as a slice.
        """
        digest = hashlib.blake2b(digest_size=8)
        if self.rows is not None:
            digest.update(f"rows {self.count}:".encode())
            digest.update(self.rows.astype("<i8").tobytes())
        else:
            # No rows have no start, and a single one has no step.
            start, step = self.start if self.count else 0, self.step if self.count > 1 else 1
            digest.update(f"progression {start} {step} {self.count}".encode())
            if self.mapped is not None:
                row_map, table = self.mapped
                digest.update(f" of {row_map.text} of {table.fingerprint()}".encode())
        return digest.hexdigest()


def normalize(index: Any, count: int) -> int | slice | Rows:
    """Turn an index into `count` rows into a non-negative int, a slice, or an int64 array of rows in range.

    Args:
        index: an integer, a slice, a sequence or array of integers, or a boolean mask of length `count`.
        count: how many rows there are.

    Raises:
        IndexError: if a row is out of range or a mask has another length.
        TypeError: if the index is anything else, such as floats or a tuple.
    """
    if type(index) is np.ndarray and index.dtype is _INT64 and index.ndim == 1:
        return _all_in_range(index, count)  # what a training loop asks for, without all the questions below
    if isinstance(index, slice):
        return slice(*index.indices(count)) if (index.step or 1) > 0 else index
    if not isinstance(index, np.ndarray) or index.ndim == 0:
        if isinstance(index, bool | np.bool_):
            raise TypeError(f"a single boolean ({index}) is no row; expected a row number or a mask of all rows")
        # A tensor of one element passes for an integer, too.
        if getattr(index, "ndim", 0) == 0:
            try:
                return _in_range(operator.index(index), count)
            except TypeError:
                pass
        if isinstance(index, tuple):
            raise TypeError("a tuple indexes several axes, but only rows are indexed here: index the result again")
        if not isinstance(index, list | range) and not hasattr(index, "__array__"):
            raise TypeError(
                f"{type(index).__name__} is no row index; expected an int, a slice, integers or a boolean mask"
            )
    array = np.asarray(index)
    if array.ndim != 1:
        raise TypeError(f"an index of rows has one axis, found {array.ndim}")
    if array.dtype == np.bool_:
        if len(array) != count:
            raise IndexError(f"the mask has {len(array):,} values for {count:,} rows")
        return np.flatnonzero(array).astype(np.int64, copy=False)
    if array.size == 0 and isinstance(index, list | range):
        return np.empty(0, np.int64)  # NumPy takes an empty list for floats
    if array.dtype.kind not in "iu":
        raise TypeError(f"rows are integers or a boolean mask, found {array.dtype}")
    return _all_in_range(array, count)


def _in_range(row: int, count: int) -> int:
    if not -count <= row < count:
        raise IndexError(f"row {row:,} is out of range for {count:,} rows")
    return row + count if row < 0 else row


def _all_in_range(rows: NDArray[Any], count: int) -> Rows:
    if not len(rows):
        return np.empty(0, np.int64)
    if rows.dtype is _INT64 and np.maximum.reduce(rows.view(np.uint64)) < count:
        return rows  # one look finds both ends: negative numbers are the largest unsigned ones
    low, high = int(rows.min()), int(rows.max())
    if low < -count or high >= count:
        _in_range(low if low < -count else high, count)
    rows = rows.astype(np.int64, copy=False)
    return np.where(rows < 0, rows + count, rows) if low < 0 else rows


def rows_of_runs(starts: Rows, stops: Rows) -> Rows:
    """Return the rows of runs of consecutive rows, one after the other."""
    lengths = stops - starts
    rows: Rows = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
    return rows
