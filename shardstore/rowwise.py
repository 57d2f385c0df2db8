"""`Rowwise`: a transform of many rows at once, whose results may be kept within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.ragged import Ragged, Values
from shardstore.schema import parse_bytes
from shardstore.selection import Rows

Arrays = dict[str, Values]


class Rowwise:
    """A transform in which each row of the result is a function of the same row alone.

    So it need not be called batch by batch: streams and loaders call it with all rows that they read at once (some
    thousand, more than a batch or less), and with `cache` not again for rows whose results are kept. Which rows are
    kept is decided by their number, the first ones of a table: in any order, every epoch meets all of them.

    Args:
        function: gets a dict of arrays (or `Ragged`) of some rows, and returns one of as many rows. It may be called in
            a background thread, and must give the same result for a row each time if results are kept.
        cache: how much memory the results may take in this process, such as `"1GiB"`; 0 keeps none. Kept results must
            be arrays of one dtype and row shape.

    Raises:
        SchemaError, TypeError: if an argument makes no sense.
    """

    def __init__(self, function: Callable[[dict[str, Any]], Mapping[str, Any]], cache: int | str = 0) -> None:
        if not callable(function):
            raise TypeError(
                f"function is a {type(function).__name__}; expected something to call with a dict of arrays"
            )
        self._function = function
        self._cache_nbytes = 0 if cache == 0 else parse_bytes(cache)
        self._kept: dict[Any, _Kept] = {}

    @property
    def cached_nbytes(self) -> int:
        """Bytes of the results that are kept in this process."""
        return sum(kept.nbytes for kept in self._kept.values())

    def __call__(self, rows: dict[str, Any]) -> Arrays:
        """Return what the function makes of some rows.

        Raises:
            TypeError, ValueError: if that is not a dict of arrays of as many rows.
        """
        count = len(next(iter(rows.values())))
        made = self._function(rows)
        if not isinstance(made, Mapping):
            raise TypeError(f"a Rowwise function returned a {type(made).__name__}; expected a dict of arrays")
        result: Arrays = {}
        for name, values in made.items():
            column = result[name] = values if isinstance(values, Ragged) else np.asarray(values)
            if isinstance(column, np.ndarray) and not column.ndim:
                raise ValueError(f"a Rowwise function returned one value as {name!r}; expected {count:,} rows")
            if len(column) != count:
                raise ValueError(
                    f"a Rowwise function returned {len(column):,} rows of {name!r} for {count:,} rows; each row "
                    "of the result must come from one row"
                )
        return result

    def of_rows(self, table: Any, count: int, rows: Rows, read: Callable[[], Arrays]) -> Arrays:
        """Return the results of some rows of a table, and keep them as far as there is room.

        Args:
            table: what tells the table from others.
            count: how many rows it has.
            rows: int64, the numbers of the rows.
            read: returns these rows; called only if a result is missing.
        """
        if not self._cache_nbytes:
            return self(read())
        kept = self._kept.get(table)
        if kept is None:
            result = self(read())
            kept = _Kept(result, count, self._cache_nbytes - self.cached_nbytes)
            if kept.nbytes:
                self._kept[table] = kept
                kept.put(rows, result)
            return result
        known = kept.has(rows)
        if known.all():
            return kept.get(rows)
        if not known.any():
            result = self(read())
            kept.put(rows, result)
            return result
        missing = np.flatnonzero(~known)
        part = self({name: values[missing] for name, values in read().items()})
        kept.put(rows[missing], part)
        result = kept.get(np.where(known, rows, 0))
        for name, values in result.items():
            values[missing] = part[name]  # type: ignore[index]
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}


class _Kept:
    """The results of the first rows of a table, as many as fit.

    Args:
        result: of any rows: names, dtypes and row shapes.
        count: rows of the table.
        nbytes: room for results.
    """

    def __init__(self, result: Arrays, count: int, nbytes: int) -> None:
        for name, values in result.items():
            if not isinstance(values, np.ndarray) or values.dtype.hasobject:
                raise TypeError(
                    f"results are kept as arrays of one row shape, but {name!r} is a {type(values).__name__}: turn "
                    "cache off, or return arrays"
                )
        self._layout = _layout(result)
        row_nbytes = 1 + sum(prod(shape) * dtype.itemsize for shape, dtype in self._layout.values())
        capacity = min(count, max(0, nbytes) // row_nbytes)
        self.nbytes = capacity * row_nbytes
        self._ready = np.zeros(capacity, np.bool_)
        self._columns = {name: np.empty((capacity, *shape), dtype) for name, (shape, dtype) in self._layout.items()}

    def has(self, rows: Rows) -> NDArray[np.bool_]:
        """Return of which rows the results are here."""
        if not len(self._ready):
            return np.zeros(len(rows), np.bool_)
        inside = rows < len(self._ready)
        return inside & self._ready[np.where(inside, rows, 0)]

    def get(self, rows: Rows) -> Arrays:
        """Return fresh arrays of the results of rows; of those that are not here, anything."""
        return {name: column[rows] for name, column in self._columns.items()}

    def put(self, rows: Rows, result: Arrays) -> None:
        """Keep the results of rows, as far as there is room."""
        found = _layout(result)
        if found != self._layout:
            raise ValueError(
                f"results that are kept must have the same columns, dtypes and row shapes for all rows: expected "
                f"{self._layout}, found {found}"
            )
        inside = np.flatnonzero(rows < len(self._ready))
        for name, column in self._columns.items():
            column[rows[inside]] = result[name][inside]
        self._ready[rows[inside]] = True


def _layout(result: Arrays) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the row shape and dtype of each column."""
    return {name: (values.shape[1:], values.dtype) for name, values in result.items() if isinstance(values, np.ndarray)}
