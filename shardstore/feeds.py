"""Feeds: the rows at positions of an epoch, read in the way that suits the order.

A pass over an epoch has a feed of its own. It is asked in two steps: `locate` computes which rows many positions have
(permuting a few numbers costs as much as permuting thousands), `gather` reads some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardstore.background import Task
from shardstore.buffers import Allocate
from shardstore.order import MixtureOrder, Order, RepeatedWindows, Sequential, WindowShuffle
from shardstore.order.orders import Window
from shardstore.ragged import Ragged, Values, place_parts
from shardstore.schema import Field
from shardstore.selection import Rows, rows_of_runs

Arrays = dict[str, Values]


class Located(Protocol):
    """Positions of an epoch whose rows are known."""

    def expect(self, start: int, stop: int) -> None:
        """Be told that rows of positions number `start` to `stop` will be gathered soon."""

    def gather(self, start: int, stop: int) -> Arrays:
        """Return the rows of positions number `start` to `stop`: fresh arrays, unless views were asked for."""

    def names(self, start: int, stop: int) -> Arrays:
        """Return fresh arrays that tell which rows these are: `"rows"`, their numbers in the store."""

    def rows(self, start: int, stop: int) -> Rows:
        """Return the numbers of these rows in the table, as int64 that the caller must not change."""


class Feed(Protocol):
    """Rows by position of an epoch."""

    def run(self, start: int, stop: int) -> Located | None:
        """Return positions that follow one another, if their rows do so, too, in every epoch; else None."""

    def close(self) -> None:
        """Let go of what is being read ahead."""

    def locate(self, epoch: int, positions: Rows) -> Located:
        """Find the rows at int64 positions that are known to be in range."""


class RowSource(Protocol):
    """Rows of a table by number, all of which are known to be in range."""

    @property
    def schema(self) -> dict[str, Field]:
        """Name, dtype and row shape of each column."""

    @property
    def decoded(self) -> tuple[str, ...]:
        """The columns that have to be decoded, a chunk at a time."""

    def gather(self, rows: Rows, empty: Allocate) -> Arrays:
        """Return some rows of all columns in arrays made by `empty`."""

    def gather_run(self, start: int, stop: int, empty: Allocate | None) -> Arrays:
        """Return consecutive rows of all columns in arrays made by `empty`; without it, as views where possible."""

    def wants(self, count: int) -> bool:
        """Whether so many rows that will be read soon should be named to `expect` or `expect_run`."""

    def expect(self, rows: Rows) -> None:
        """Ask the system for the pages of rows that will be read soon."""

    def expect_run(self, start: int, stop: int) -> None:
        """Ask the system for the pages of consecutive rows that will be read soon, and of some behind them."""

    def buffer_nbytes(self) -> int:
        """Return how many bytes the memory budget has for buffers."""

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of one column into the C-contiguous `out`."""

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of one column, one after the other, into the C-contiguous `out`."""

    def read_ragged(self, name: str, rows: Rows) -> Ragged:
        """Gather rows of one ragged column."""

    def store_rows(self, rows: Rows) -> Rows:
        """Return the store's numbers of some rows."""


Windowed = WindowShuffle | RepeatedWindows


def feed_of(source: RowSource, order: Order, empty: Allocate = np.empty, copy: bool = True) -> Feed:
    """Return the feed that suits an order and the columns of a source.

    Args:
        source: the rows.
        order: which of them comes when.
        empty: makes the arrays that rows are gathered into.
        copy: whether all are gathered; else consecutive ones may be views of files.
    """
    if isinstance(order, Windowed) and source.decoded:
        return WindowFeed(source, order, empty)
    if isinstance(order, Sequential):
        return RunFeed(source, order, empty if copy else None)
    return DirectFeed(source, order, empty)


class DirectFeed:
    """Reads rows where they are."""

    def __init__(self, source: RowSource, order: Order, empty: Allocate) -> None:
        self._source = source
        self._order = order
        self._empty = empty

    def locate(self, epoch: int, positions: Rows) -> Located:
        """Find the rows at some positions."""
        return _LocatedRows(self._source, self._order.rows(epoch, positions), self._empty)

    def run(self, start: int, stop: int) -> Located | None:
        """Return None: rows are where they are."""
        return None

    def close(self) -> None:
        """There is nothing to let go of."""


class _LocatedRows:
    def __init__(self, source: RowSource, rows: Rows, empty: Allocate) -> None:
        self._source = source
        self._rows = rows
        self._empty = empty

    def expect(self, start: int, stop: int) -> None:
        if self._source.wants(stop - start):
            self._source.expect(self._rows[start:stop])

    def gather(self, start: int, stop: int) -> Arrays:
        return self._source.gather(self._rows[start:stop], self._empty)

    def rows(self, start: int, stop: int) -> Rows:
        return self._rows[start:stop]

    def names(self, start: int, stop: int) -> Arrays:
        # A copy, so that a batch's row numbers are as much its own as its columns.
        return {"rows": self._source.store_rows(self._rows[start:stop]).copy()}


class RunFeed(DirectFeed):
    """Reads rows in the table's own order: those that follow one another, as one run.

    Args:
        source: the rows.
        order: their own.
        empty: makes the arrays that runs are copied into; None for views where there can be any.
    """

    def __init__(self, source: RowSource, order: Order, empty: Allocate | None) -> None:
        super().__init__(source, order, empty or np.empty)
        self._run_empty = empty

    def run(self, start: int, stop: int) -> Located:
        """Return consecutive rows."""
        return _LocatedRun(self._source, start, stop, self._run_empty)


class _LocatedRun:
    def __init__(self, source: RowSource, first: int, end: int, empty: Allocate | None) -> None:
        self._source = source
        self._first = first
        self._end = end
        self._empty = empty

    def expect(self, start: int, stop: int) -> None:
        if self._source.wants(stop - start):
            self._source.expect_run(self._first + start, self._first + stop)

    def gather(self, start: int, stop: int) -> Arrays:
        return self._source.gather_run(self._first + start, self._first + stop, self._empty)

    def rows(self, start: int, stop: int) -> Rows:
        return np.arange(self._first + start, self._first + stop, dtype=np.int64)

    def names(self, start: int, stop: int) -> Arrays:
        return {"rows": self._source.store_rows(self.rows(start, stop)).copy()}


class WindowFeed:
    """Decodes a window at a time, and picks its rows from what was decoded; meanwhile a thread decodes the next one.

    Holds the decoded columns of two windows for each lane that is read, or of one where the memory budget has no room
    for two. A window's buffers take the next but one.
    """

    def __init__(self, source: RowSource, order: Windowed, empty: Allocate) -> None:
        self._source = source
        self._empty = empty
        self._order = order
        self._staged: dict[int, _StagedWindow] = {}
        self._coming: dict[int, tuple[Window, Task[_StagedWindow]]] = {}
        self._spare: dict[int, dict[str, NDArray[Any]]] = {}
        row_nbytes = sum(source.schema[name].row_nbytes for name in source.decoded)
        self._reads_ahead = 2 * order.max_window_rows * row_nbytes <= source.buffer_nbytes()

    def locate(self, epoch: int, positions: Rows) -> Located:
        """Find the windows that hold some positions, and the places there."""
        return _LocatedPlaces(self, len(positions), self._order.windows(epoch, positions), self._empty)

    def run(self, start: int, stop: int) -> Located | None:
        """Return None: rows are permuted."""
        return None

    @property
    def source(self) -> RowSource:
        """Where the rows come from."""
        return self._source

    def staged(self, window: Window) -> _StagedWindow:
        """Return a window with its columns decoded; from the second time on, the next one is being decoded, too."""
        _, lane, _ = window.name
        last = self._staged.get(lane)
        if last is not None and last.window.name == window.name:
            self._decode_ahead(window, lane)
            return last
        self._staged.pop(lane, None)  # whatever happens while its buffers are filled
        buffers = {} if last is None else last.buffers
        coming, task = self._coming.pop(lane, (None, None))
        if coming is not None and task is not None and not task.lost:
            if coming.name == window.name:
                ready = self._staged[lane] = task.result()
                self._spare[lane] = buffers
                return ready
            task.stop()  # nobody wants that window, nor what went wrong with it
        staged = self._staged[lane] = _StagedWindow(self._source, window, buffers)
        return staged

    def _decode_ahead(self, window: Window, lane: int) -> None:
        if not self._reads_ahead or lane in self._coming:
            return
        following = self._order.following(window)
        if following is not None:
            buffers = self._spare.pop(lane, {})
            stage = partial(_StagedWindow, self._source, following, buffers)
            self._coming[lane] = following, Task(lambda stopped: stage(), "window")

    def close(self) -> None:
        """Let go of the window that is being decoded."""
        for _, task in self._coming.values():
            task.stop()
        self._coming.clear()


class _StagedWindow:
    """The decoded rows of a window, in the places' order."""

    def __init__(self, source: RowSource, window: Window, buffers: dict[str, NDArray[Any]]) -> None:
        self.window = window
        self.buffers = buffers
        self.columns: Arrays = {}
        starts, stops = window.runs()
        count = len(window)
        for name in source.decoded:
            field = source.schema[name]
            if field.is_ragged:
                self.columns[name] = source.read_ragged(name, rows_of_runs(starts, stops))
                continue
            buffer = buffers.get(name)
            if buffer is None or len(buffer) < count:
                buffer = buffers[name] = np.empty((count, *field.row_shape), field.dtype)
            self.columns[name] = buffer[:count]
            source.read_runs(name, starts, stops, buffer[:count])


class _LocatedPlaces:
    """Positions sorted into windows, and their rows' places there."""

    def __init__(
        self, feed: WindowFeed, count: int, windows: list[tuple[Window, slice | Rows, Rows]], empty: Allocate
    ) -> None:
        self._feed = feed
        self._empty = empty
        self._windows = windows
        # Where a window has consecutive positions (always, with one lane), no position is looked for.
        self._rows: Rows | None = None
        self._count = count

    def expect(self, start: int, stop: int) -> None:
        source = self._feed.source
        if len(source.decoded) < len(source.schema) and source.wants(stop - start):
            source.expect(self._all_rows()[start:stop])

    def gather(self, start: int, stop: int) -> Arrays:
        source = self._feed.source
        merged = _Merged(stop - start, self._empty)
        for window, where, places in self._parts(start, stop):
            staged = self._feed.staged(window)
            for name in source.decoded:
                merged.add(name, where, staged.columns[name], places)
        arrays = merged.arrays()
        rows = self._all_rows()[start:stop] if len(source.decoded) < len(source.schema) else None
        gathered: Arrays = {}
        for name, field in source.schema.items():
            if name in arrays:
                gathered[name] = arrays[name]
            elif field.is_ragged:
                assert rows is not None
                gathered[name] = source.read_ragged(name, rows)
            else:
                assert rows is not None
                out = self._empty((stop - start, *field.row_shape), field.dtype)
                source.read(name, rows, out)
                gathered[name] = out
        return gathered

    def rows(self, start: int, stop: int) -> Rows:
        return self._all_rows()[start:stop]

    def names(self, start: int, stop: int) -> Arrays:
        return {"rows": self._feed.source.store_rows(self._all_rows()[start:stop]).copy()}

    def _parts(self, start: int, stop: int) -> list[tuple[Window, slice | Rows, Rows]]:
        """Return the windows that hold positions `[start, stop)`, which of these each holds, and their places."""
        parts: list[tuple[Window, slice | Rows, Rows]] = []
        for window, where, places in self._windows:
            if isinstance(where, slice):
                first, last = max(start, where.start), min(stop, where.stop)
                if first < last:
                    parts.append(
                        (window, slice(first - start, last - start), places[first - where.start : last - where.start])
                    )
            else:
                first, last = np.searchsorted(where, (start, stop)).tolist()
                if first < last:
                    parts.append((window, where[first:last] - start, places[first:last]))
        return parts

    def _all_rows(self) -> Rows:
        if self._rows is None:
            self._rows = np.empty(self._count, np.int64)
            for window, where, places in self._windows:
                self._rows[where] = window.rows(places)
        return self._rows


class MixtureFeed:
    """Reads the rows of each source of a mixture with a feed of the source's own, and puts them where they belong."""

    def __init__(self, feeds: Sequence[Feed], order: MixtureOrder, empty: Allocate) -> None:
        self._feeds = feeds
        self._order = order
        self._empty = empty

    def locate(self, epoch: int, positions: Rows) -> Located:
        """Find the rows at some positions, source by source."""
        dealt = self._order.deal(positions)
        parts = [(number, where, self._feeds[number].locate(epoch, own)) for number, where, own in dealt]
        return _LocatedParts(parts, self._order.first_rows, self._empty)

    def run(self, start: int, stop: int) -> Located | None:
        """Return None: rows are mixed."""
        return None

    def close(self) -> None:
        """Let go of what is being read ahead."""
        for feed in self._feeds:
            feed.close()


class _LocatedParts:
    """Positions sorted by source: the number of each source, which positions it has (ascending), and their rows."""

    def __init__(self, parts: list[tuple[int, Rows, Located]], first_rows: list[int], empty: Allocate) -> None:
        self._parts = parts
        self._first_rows = first_rows
        self._empty = empty

    def expect(self, start: int, stop: int) -> None:
        for _, where, located in self._parts:
            located.expect(*np.searchsorted(where, (start, stop)).tolist())

    def gather(self, start: int, stop: int) -> Arrays:
        return self._merged(start, stop, lambda _, located, first, last: located.gather(first, last))

    def rows(self, start: int, stop: int) -> Rows:
        def numbered(number: int, located: Located, first: int, last: int) -> Arrays:
            return {"rows": located.rows(first, last) + self._first_rows[number]}

        rows: Rows = self._merged(start, stop, numbered)["rows"]  # type: ignore[assignment]
        return rows

    def names(self, start: int, stop: int) -> Arrays:
        def named(number: int, located: Located, first: int, last: int) -> Arrays:
            return {**located.names(first, last), "source": np.full(last - first, number, np.int64)}

        return self._merged(start, stop, named)

    def _merged(self, start: int, stop: int, read: Callable[[int, Located, int, int], Arrays]) -> Arrays:
        merged = _Merged(stop - start, self._empty)
        for number, where, located in self._parts:
            first, last = np.searchsorted(where, (start, stop)).tolist()
            if first == last:
                continue
            arrays = read(number, located, first, last)
            if last - first == stop - start:
                return arrays
            for name, array in arrays.items():
                merged.add(name, where[first:last] - start, array)
        return merged.arrays()


class _Merged:
    """Columns of `count` rows that come in parts, in arrays made by `empty`."""

    def __init__(self, count: int, empty: Allocate) -> None:
        self._count = count
        self._empty = empty
        self._fixed: dict[str, NDArray[Any]] = {}
        self._ragged: dict[str, list[tuple[slice | Rows, Ragged]]] = {}

    def add(self, name: str, where: slice | Rows, rows: Values, places: Rows | None = None) -> None:
        """Put some rows, or those at some places of them, where they belong."""
        if isinstance(rows, Ragged):
            self._ragged.setdefault(name, []).append((where, rows if places is None else rows[places]))
            return
        out = self._fixed.get(name)
        if out is None:
            out = self._fixed[name] = self._empty((self._count, *rows.shape[1:]), rows.dtype)
        if places is None:
            out[where] = rows
        elif isinstance(where, slice):
            # mode="clip" spares take the buffer that it needs to leave `out` untouched by a bad index.
            rows.take(places, axis=0, out=out[where], mode="clip")
        else:
            out[where] = rows.take(places, axis=0)

    def arrays(self) -> Arrays:
        """Return the columns."""
        return {**self._fixed, **{name: place_parts(parts) for name, parts in self._ragged.items()}}
