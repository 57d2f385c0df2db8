"""`Table` and `View`: reading rows of columns by the indexing rules of `shardstore.selection`.

A store is a table of all its rows and columns, a view one of some of them; whatever reads, works on both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstore.column import SCAN_NBYTES, Column, as_rows
from shardstore.joining import JoinedFiles, Side
from shardstore.order import Order, Plan, Remainder
from shardstore.planning import WINDOW_BYTES, Shuffle, choose_order
from shardstore.reading import StreamSource
from shardstore.sampling.draws import check_seed, draw
from shardstore.sampling.parts import part_sizes, split_by_group, split_by_value, split_evenly
from shardstore.schema import EXTENDED_DTYPES, Field
from shardstore.selection import Selection, normalize
from shardstore.statistics.summary import DEFAULT_BINS, ColumnStatistics
from shardstore.stream import Streamable, column_names, known_columns
from shardstore.table_rows import ColumnFiles, TableRows
from shardstore.token_windows import Cut, WindowFiles

# How many rows' lengths are read at a time for statistics.
_LENGTHS_AT_ONCE = 1 << 20


class Table(Streamable):
    """Some rows of some columns, and all the ways to read them."""

    # What it is

    @property
    @abstractmethod
    def files(self) -> ColumnFiles:
        """Where the rows lie."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns' names, in order."""

    @property
    @abstractmethod
    def selection(self) -> Selection:
        """Which of the store's rows these are."""

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return len(self.selection)

    @property
    def schema(self) -> dict[str, Field]:
        """Name, dtype, row shape and kind of each column."""
        return {name: self.files.field(name) for name in self.columns}

    @property
    def row_nbytes(self) -> int:
        """Decoded bytes of one row of all columns; of ragged ones, their mean in the store, rounded up."""
        return sum(self.files.chunking(name).row_nbytes for name in self.columns)

    @property
    def nbytes(self) -> int:
        """Decoded bytes of all rows; of ragged columns, about."""
        return self.num_rows * self.row_nbytes

    def __len__(self) -> int:
        return self.num_rows

    def __contains__(self, name: object) -> bool:
        """Whether there is a column of this name."""
        return name in self.columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield row by row; `batches` is much faster."""
        for row in range(self.num_rows):
            yield self[row]

    def __repr__(self) -> str:
        columns = ", ".join(f"{name}: {field}" for name, field in self.schema.items())
        return f"{type(self).__name__}({self.num_rows:,} rows of {{{columns}}} in {str(self.files.path)!r})"

    def compute_stats(
        self, columns: str | Sequence[str] | None = None, bins: int = DEFAULT_BINS
    ) -> dict[str, ColumnStatistics]:
        """Compute statistics of columns from all rows, a block at a time: what `shardstore.Normalize` takes.

        Args:
            columns: the columns; all by default.
            bins: how many bins a histogram has at most.

        Raises:
            KeyError: if a column is unknown.
            ValueError: if `bins` makes no sense.
        """
        names = self.columns if columns is None else self._known(column_names(columns))
        return {name: self._statistics(self._column(name), bins) for name in names}

    @property
    def stats(self) -> Mapping[str, ColumnStatistics]:
        """Statistics of all columns. Those of a store are kept in it; those of a view are computed anew each time."""
        return self.compute_stats()

    def _statistics(self, column: Column, bins: int) -> ColumnStatistics:
        from shardstore.statistics.describing import compute_column_statistics  # which reading rows does not need

        def lengths() -> Iterator[NDArray[Any]]:
            for start in range(0, len(self), _LENGTHS_AT_ONCE):
                yield self.rows(slice(start, start + _LENGTHS_AT_ONCE))[column.name].lengths

        return compute_column_statistics(column.field, column.blocks, lengths, bins)

    # Narrowing it

    def select(self, *columns: str) -> View:
        """Return a view of some columns, in the given order; raise `KeyError` if one is unknown."""
        return View(self.files, self._known(columns), self.selection)

    def rows(self, selection: Any) -> View:
        """Return a view of some rows: a slice (O(1) memory), integers or a boolean mask of this view's rows."""
        index = normalize(selection, self.num_rows)
        if isinstance(index, int):
            index = slice(index, index + 1)
        return View(self.files, self.columns, self.selection.pick(index))

    def where(self, predicate: Callable[[dict[str, Any]], ArrayLike], columns: str | Sequence[str]) -> View:
        """Return a view of the rows for which `predicate` holds.

        Args:
            predicate: gets a dict of arrays (or `Ragged`) of some consecutive rows; returns one boolean per row.
            columns: the column or columns that it needs; only these are read, a block at a time.

        Raises:
            TypeError: if the predicate returns anything but one boolean per row.
        """
        part = self.select(*column_names(columns))
        block_rows = max(1, SCAN_NBYTES // max(1, part.row_nbytes))
        found = [np.empty(0, np.int64)]
        for start in range(0, len(part), block_rows):
            block = part[start : start + block_rows]
            mask = np.asarray(predicate(block))
            rows = min(block_rows, len(part) - start)
            if mask.dtype != np.bool_ or mask.shape != (rows,):
                raise TypeError(
                    f"the predicate must return one boolean per row, shape ({rows},); "
                    f"it returned {mask.dtype} of shape {mask.shape}"
                )
            found.append(np.flatnonzero(mask) + start)
        return self.rows(np.concatenate(found))

    def sample(
        self,
        n: int,
        *,
        replace: bool = False,
        weights: str | ArrayLike | None = None,
        stratify: str | None = None,
        seed: int = 0,
    ) -> View:
        """Return a view of `n` random rows, in the order of the draws. The same arguments always draw the same rows.

        Args:
            n: how many rows to draw.
            replace: whether a row may be drawn again. If not, and without the two below, this takes O(n) memory.
            weights: how likely each row is: a column of numbers, or one number a row. Without replacement, every draw
                is by the weights of the rows that are left.
            stratify: a column of scalars; each of its values gets its exact share of the draws.
            seed: any integer.

        Raises:
            KeyError: if a column is unknown.
            ValueError, TypeError: if an argument makes no sense, or there are too few rows.
        """
        if isinstance(weights, str):
            weights = self._scalars("weights", weights)
        strata = None if stratify is None else self._scalars("stratify", stratify)
        rows = draw(self.num_rows, n, replace=replace, weights=weights, strata=strata, seed=seed)
        return self.rows(rows)

    def split(
        self, *, seed: int = 0, stratify: str | None = None, group: str | None = None, **parts: float
    ) -> dict[str, View]:
        """Split the rows at random into disjoint views: `store.split(train=0.9, val=0.1)`.

        The sizes are exact. The views take O(1) memory and keep the rows' order but for some thousand rows; by
        the values of a column, O(rows) memory and the order as it is. The same arguments always give the same parts.

        Args:
            seed: any integer.
            stratify: a column of scalars; each part gets its share of the rows of every value.
            group: a column of scalars; no value is in two parts. Sizes are met as far as the groups allow.
            **parts: by name, fractions that sum to 1, or numbers of rows that sum to all of them.

        Raises:
            KeyError: if a column is unknown.
            ValueError, TypeError: if an argument makes no sense, a group is larger than every part, or groups leave a
                part empty.
        """
        seed, sizes = check_seed(seed), part_sizes(self.num_rows, parts)
        if stratify is not None and group is not None:
            raise ValueError("stratify and group do not go together: a value's rows are in all parts or in one")
        numbers = list(sizes.values())
        if stratify is not None:
            chosen = [
                self.selection.pick(p) for p in split_by_value(self._scalars("stratify", stratify), numbers, seed)
            ]
        elif group is not None and self.num_rows:
            chosen = [self.selection.pick(p) for p in split_by_group(self._scalars("group", group), sizes, seed)]
        else:
            chosen = split_evenly(self.selection, numbers, seed)
        return {name: View(self.files, self.columns, rows) for name, rows in zip(sizes, chosen, strict=True)}

    def windows(
        self,
        column: str,
        length: int,
        stride: int | None = None,
        across_rows: bool = True,
        *,
        documents: bool = False,
        positions: bool = False,
    ) -> View:
        """Return a view of windows over a ragged column: its rows are `length` consecutive items each.

        The rows of this table are the documents, in its order. Window *i* begins with item `i * stride` of all
        documents end to end; what is left behind the last whole window is in none. Where no window fits, the view has
        no rows. A window is found in O(1) memory if this table's rows follow one another in the store; for other rows,
        and with `across_rows=False`, each process that reads holds 8 bytes a document.

        Args:
            column: a ragged column, or strings or bytes, whose items are uint8.
            length: items of a window, at least 1.
            stride: how many items each window begins behind the one before it; `length` by default. Less makes windows
                overlap, more leaves items out.
            across_rows: whether windows go on from one document into the next; else every document is cut by itself,
                and what is left of each, as all of those shorter than `length`, is in no window.
            documents: add a column `document`, int64 `(windows, length)`: the row of this table that each item is of.
            positions: add a column `position`, int64 `(windows, length)`: each item's place in its document, from 0.

        Raises:
            KeyError: if the column is unknown.
            TypeError: if it is not ragged, or a number is no integer.
            ValueError: if a number is below 1, or the column has the name of one that is to be added.
        """
        if not isinstance(column, str):
            raise TypeError(f"column is a {type(column).__name__}; expected the name of a ragged column")
        cut = Cut.checked(length, stride, across_rows, documents, positions)
        self._known((column,))
        if not (field := self.files.field(column)).is_ragged:
            raise TypeError(f"column {column!r} holds {field}; windows are cut from a ragged column, strings or bytes")
        source, documents_of = self.files.ragged_source(column, self.selection)
        files = WindowFiles(source, column, documents_of, cut)
        return View(files, files.columns, files.all_windows)

    # Widening it

    def join(self, other: Table) -> View:
        """Return a view of the columns of both, row *i* of one beside row *i* of the other. Nothing is copied.

        The rows of the view are numbered from 0. Narrow columns with `select` where names clash.

        Args:
            other: a store or view of as many rows.

        Raises:
            SchemaError: if the numbers of rows differ, or a column of each has the same name.
            TypeError: if `other` is no table.
        """
        if not isinstance(other, Table):
            raise TypeError(f"a table is joined with a store or a view, found a {type(other).__name__}")
        sides = [Side(table.files, table.columns, table.selection) for table in (self, other)]
        files = JoinedFiles(*sides)
        return View(files, files.columns, Selection.all(self.num_rows))

    # Reading it

    def __getitem__(self, index: Any) -> Any:
        """Return a `Column` for a name; for rows, a dict of a value (an int) or an array per column."""
        if isinstance(index, str):
            return self._column(*self._known((index,)))
        index = normalize(index, self.num_rows)
        return {name: self._column(name)[index] for name in self.columns}

    def take(
        self,
        rows: Any,
        columns: str | Sequence[str] | None = None,
        out: Mapping[str, NDArray[Any]] | None = None,
    ) -> dict[str, Any]:
        """Gather rows, in the order given and as often as given, into fresh writable arrays (or `Ragged`).

        Args:
            rows: integers; negative ones count from the end.
            columns: the columns to read; all by default.
            out: by column, C-contiguous arrays of the right shape and dtype to gather into instead; only for fixed
                columns.
        """
        names = self.columns if columns is None else self._known(column_names(columns))
        index = as_rows(rows, self.num_rows)
        if out is not None and set(out) != set(names):
            raise ValueError(f"out must hold exactly the columns {', '.join(names)}; it holds {', '.join(out)}")
        return {name: self._column(name).take(index, None if out is None else out[name]) for name in names}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return rows as `self[row]` gives each, gathered together: what PyTorch's `DataLoader` asks for a batch."""
        arrays = self.take(list(indices))
        return [dict(zip(arrays, values, strict=True)) for values in zip(*arrays.values(), strict=True)]

    _getitems = __getitems__  # what Grain asks for several rows

    def plan(
        self,
        batch_size: int,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        remainder: Remainder = "keep",
        window_bytes: int | str = WINDOW_BYTES,
        lanes: int = 1,
    ) -> Plan:
        """Return which rows of this table each step of each epoch has; see `batches` for the arguments."""
        columns = [self.files.chunking(name) for name in self.files.columns]
        return Plan(choose_order(columns, self.selection, shuffle, seed, window_bytes, lanes), batch_size, remainder)

    def source(self, order: Order) -> StreamSource:
        """Return the rows of this table in an order that its plan has."""
        return TableRows(self.files, self.columns, self.selection, order)

    def _scalars(self, argument: str, name: str) -> NDArray[Any]:
        """Return a column that an argument names and that must have one value a row."""
        if not isinstance(name, str):
            raise TypeError(f"{argument} is a {type(name).__name__}; expected the name of a column")
        column = self._column(*self._known((name,)))
        if argument == "weights" and column.field.kind in ("utf8", "binary", "categorical"):
            raise TypeError(f"weights: column {name!r} holds {column.field}; expected one number a row")
        if column.field.kind == "utf8":
            return np.unique(column[:].to_numpy(), return_inverse=True)[1]
        if column.ndim != 1:
            raise ValueError(
                f"{argument}: column {name!r} has rows of shape {column.shape[1:]}; expected one value a row"
            )
        values = np.asarray(column)
        return values.astype(np.float64) if values.dtype.name in EXTENDED_DTYPES else values

    def _column(self, name: str) -> Column:
        return Column(self.files, self.selection, name)

    def _known(self, names: Sequence[str]) -> tuple[str, ...]:
        return known_columns(names, self.columns)


class View(Table):
    """Some rows of some columns of a store. Reads like a store and holds no data; slices of it take O(1) memory.

    Made by `select`, `rows`, `where`, `sample` and `split`. Pickles as the store's path with the choice of rows and
    columns.
    """

    def __init__(self, files: ColumnFiles, columns: tuple[str, ...], selection: Selection) -> None:
        self._files = files
        self._columns = columns
        self._selection = selection

    @property
    def files(self) -> ColumnFiles:
        """Where the rows lie."""
        return self._files

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return self._columns

    @property
    def selection(self) -> Selection:
        """Which of the store's rows these are."""
        return self._selection
