"""`Column`: one column of a table, read by the indexing rules of `shardstore.selection`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from shardstore.locks import cached_property
from shardstore.ragged import Ragged, Strings, Values
from shardstore.schema import Field
from shardstore.selection import Rows, Selection, normalize
from shardstore.table_rows import ColumnFiles, take_rows

# How many bytes are read at a time where all rows are gone through.
SCAN_NBYTES = 8 << 20


class Column:
    """One column of a table. Indexes like a NumPy array along its rows.

    A slice of a raw column is a read-only view into the mapped files, without a copy; integers and masks gather
    into fresh writable arrays. `np.asarray(column)` gives all of it. Several rows of a ragged column are a `Ragged`, of
    strings a `Strings`, of bytes a `Blobs`; one row is an array, a `str` or `bytes`.
    """

    def __init__(self, files: ColumnFiles, selection: Selection, name: str) -> None:
        self._name = name
        self._files = files
        self._selection = selection

    @property
    def name(self) -> str:
        """The column's name."""
        return self._name

    @cached_property
    def _field(self) -> Field:
        return self._files.field(self._name)

    def __getstate__(self) -> dict[str, Any]:
        # A field may have many categories, which the store has, too.
        return {name: value for name, value in self.__dict__.items() if name != "_field"}

    @property
    def field(self) -> Field:
        """What a row holds."""
        return self._field

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of its items."""
        return self._field.dtype

    @property
    def shape(self) -> tuple[int | None, ...]:
        """`(rows, *row_shape)`; of a ragged column `(rows, None, *item_shape)`."""
        return (len(self), *((None,) if self._field.is_ragged else ()), *self._field.row_shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Decoded bytes of all rows; of a ragged column, by their mean in the store."""
        return len(self) * self._files.chunking(self._name).row_nbytes

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 `(rows,)`: the number of items of each row of a ragged column; of strings, of their bytes.

        Raises:
            TypeError: if all rows are of one shape.
        """
        if not self._field.is_ragged:
            raise TypeError(f"column {self._name!r} is not ragged: each of its rows has shape {self._field.row_shape}")
        rows = self._selection.resolve(np.arange(len(self), dtype=np.int64))
        ranges = self._files.read_ranges(self._name, rows)
        return ranges[:, 1] - ranges[:, 0]

    @property
    def categories(self) -> tuple[str, ...]:
        """The names that the numbers of a categorical column stand for; empty for others."""
        return self._field.categories

    def decode(self, codes: ArrayLike) -> NDArray[Any]:
        """Return the names of categories by their numbers, as an array of NumPy's `StringDType` in the same shape.

        Raises:
            TypeError: if the column is not categorical.
            IndexError: if a number is that of no category.
        """
        if self._field.kind != "categorical":
            raise TypeError(f"column {self._name!r} holds {self._field}, which has no categories")
        names: NDArray[Any] = np.array(self.categories, np.dtypes.StringDType())
        return np.asarray(names[np.asarray(codes)])

    def __len__(self) -> int:
        return self._selection.count

    def __getitem__(self, index: Any) -> Any:
        """Return one row (an int), a slice of rows, or the rows of an integer array or a boolean mask."""
        index = normalize(index, self._selection.count)
        if isinstance(index, int):
            row = self._selection.row(index)
            return self._files.read_slice(self._name, row, row + 1)[0]
        if isinstance(index, slice):
            return self._slice(self._selection.pick(index))
        return self._read(self._selection.resolve(index))

    def __iter__(self) -> Iterator[Any]:
        """Yield row by row, reading a block at a time."""
        for block in self.blocks():
            yield from block

    def blocks(self, nbytes: int = SCAN_NBYTES) -> Iterator[Values]:
        """Yield all rows in order, about `nbytes` bytes of them at a time (at least one row)."""
        block_rows = max(1, nbytes // max(1, self._files.chunking(self._name).row_nbytes))
        for start in range(0, len(self), block_rows):
            yield self[start : start + block_rows]

    def take(self, rows: Any, out: NDArray[Any] | None = None) -> Values:
        """Gather rows by number, in order, into a fresh array (or `Ragged`) or into `out`."""
        index = as_rows(rows, self._selection.count)
        if out is None:
            return self._read(self._selection.resolve(index))
        self._check_out(out, len(index))
        self._files.read(self._name, self._selection.resolve(index), out)
        return out

    def _read(self, rows: Rows) -> Values:
        """Gather int64 rows of the *store*, which are in range."""
        return take_rows(self._files, self._name, rows)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        values: Values = self[:]
        if isinstance(values, Strings):
            return values.to_numpy()
        if isinstance(values, Ragged):
            raise TypeError(
                f"the rows of column {self._name!r} differ in length, so they make no array: take column[:], a Ragged "
                "with values and offsets, or column[:].to_padded()"
            )
        array = values
        if dtype is not None and np.dtype(dtype) != array.dtype:
            if copy is False:
                raise ValueError(f"an array of {dtype} needs a copy of this column of {array.dtype}")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        return f"Column({self._name!r}, shape={self.shape}, dtype={self.dtype})"

    def _check_out(self, out: NDArray[Any], count: int) -> None:
        if self._field.is_ragged:
            raise ValueError(f"out is for columns of one row shape, and column {self._name!r} holds {self._field}")
        shape = (count, *self._field.row_shape)
        if out.shape != shape or out.dtype != self.dtype or not (out.flags.c_contiguous and out.flags.writeable):
            raise ValueError(
                f"out for column {self._name!r} must be a writable C-contiguous {self.dtype} array of shape {shape}, "
                f"found {out.dtype} of shape {out.shape}"
            )

    def _slice(self, picked: Selection) -> Values:
        if not picked.is_progression or not picked.count:
            return self._read(picked.resolve(np.arange(picked.count, dtype=np.int64)))
        first, last, step = picked.start, picked.row(picked.count - 1), picked.step
        if step == 1 or (not self._field.is_ragged and self._files.slices_are_views(self._name)):
            rows: Values = self._files.read_slice(self._name, min(first, last), max(first, last) + 1)[::step]
            return rows
        return self._read(np.arange(first, last + step, step, dtype=np.int64))


def as_rows(rows: Any, count: int) -> Rows:
    """Return an array of row numbers that are in range; raise `TypeError` if rows are given in another way."""
    index = normalize(rows, count)
    if isinstance(index, np.ndarray):
        return index
    raise TypeError(f"take gathers an array of row numbers, found {type(rows).__name__}")
