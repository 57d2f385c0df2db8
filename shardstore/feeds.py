"""Feeds: the rows at positions of an epoch, read in the way that suits the order.

A pass over an epoch has a feed of its own. It is asked in two steps: `locate` computes which rows many positions have
(permuting a few numbers costs as much as permuting thousands), `gather` reads some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shardstore.order import MixtureOrder, Order, RepeatedWindows, WindowShuffle
from shardstore.order.orders import Window
from shardstore.ragged import Ragged, Values, place_parts
from shardstore.ragged_rows import rows_of_runs
from shardstore.schema import Field
from shardstore.selection import Rows

Arrays = dict[str, Values]


class Located(Protocol):
    """Positions of an epoch whose rows are known."""

    def gather(self, start: int, stop: int) -> Arrays:
        """Return fresh arrays of the rows of positions number `start` to `stop`."""

    def names(self, start: int, stop: int) -> Arrays:
        """Return fresh arrays that tell which rows these are: `"rows"`, their numbers in the store."""


class Feed(Protocol):
    """Rows by position of an epoch."""

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

    def gather(self, rows: Rows) -> Arrays:
        """Return fresh arrays of some rows of all columns."""

    def read(self, name: str, rows: Rows, out: NDArray[Any]) -> None:
        """Gather rows of one column into the C-contiguous `out`."""

    def read_runs(self, name: str, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows of one column, one after the other, into the C-contiguous `out`."""

    def read_ragged(self, name: str, rows: Rows) -> Ragged:
        """Gather rows of one ragged column."""

    def store_rows(self, rows: Rows) -> Rows:
        """Return the store's numbers of some rows."""


Windowed = WindowShuffle | RepeatedWindows


def feed_of(source: RowSource, order: Order) -> Feed:
    """Return the feed that suits an order and the columns of a source."""
    if isinstance(order, Windowed) and source.decoded:
        return WindowFeed(source, order)
    return DirectFeed(source, order)


class DirectFeed:
    """Reads rows where they are."""

    def __init__(self, source: RowSource, order: Order) -> None:
        self._source = source
        self._order = order

    def locate(self, epoch: int, positions: Rows) -> Located:
        """Find the rows at some positions."""
        return _LocatedRows(self._source, self._order.rows(epoch, positions))


class _LocatedRows:
    def __init__(self, source: RowSource, rows: Rows) -> None:
        self._source = source
        self._rows = rows

    def gather(self, start: int, stop: int) -> Arrays:
        return self._source.gather(self._rows[start:stop])

    def names(self, start: int, stop: int) -> Arrays:
        # A copy, so that a batch's row numbers are as much its own as its columns.
        return {"rows": self._source.store_rows(self._rows[start:stop]).copy()}


class WindowFeed:
    """Decodes a window at a time, and picks its rows from what was decoded.

    Holds the decoded columns of one window for each lane that is read. A window's buffers take the next one.
    """

    def __init__(self, source: RowSource, order: Windowed) -> None:
        self._source = source
        self._order = order
        self._staged: dict[int, _StagedWindow] = {}

    def locate(self, epoch: int, positions: Rows) -> Located:
        """Find the windows that hold some positions, and the places there."""
        return _LocatedPlaces(self, len(positions), self._order.windows(epoch, positions))

    @property
    def source(self) -> RowSource:
        """Where the rows come from."""
        return self._source

    def staged(self, window: Window) -> _StagedWindow:
        """Return a window with its columns decoded."""
        _, lane, _ = window.name
        staged = self._staged.get(lane)
        if staged is None or staged.window.name != window.name:
            buffers = {} if staged is None else staged.buffers
            self._staged.pop(lane, None)  # whatever happens while its buffers are filled
            staged = self._staged[lane] = _StagedWindow(self._source, window, buffers)
        return staged


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

    def __init__(self, feed: WindowFeed, count: int, windows: list[tuple[Window, slice | Rows, Rows]]) -> None:
        self._feed = feed
        self._windows = windows
        # Where a window has consecutive positions (always, with one lane), no position is looked for.
        self._rows: Rows | None = None
        self._count = count

    def gather(self, start: int, stop: int) -> Arrays:
        source = self._feed.source
        merged = _Merged(stop - start)
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
                out = np.empty((stop - start, *field.row_shape), field.dtype)
                source.read(name, rows, out)
                gathered[name] = out
        return gathered

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

    def __init__(self, feeds: Sequence[Feed], order: MixtureOrder) -> None:
        self._feeds = feeds
        self._order = order

    def locate(self, epoch: int, positions: Rows) -> Located:
        """Find the rows at some positions, source by source."""
        dealt = self._order.deal(positions)
        return _LocatedParts([(number, where, self._feeds[number].locate(epoch, own)) for number, where, own in dealt])


class _LocatedParts:
    """Positions sorted by source: the number of each source, which positions it has (ascending), and their rows."""

    def __init__(self, parts: list[tuple[int, Rows, Located]]) -> None:
        self._parts = parts

    def gather(self, start: int, stop: int) -> Arrays:
        return self._merged(start, stop, lambda _, located, first, last: located.gather(first, last))

    def names(self, start: int, stop: int) -> Arrays:
        def named(number: int, located: Located, first: int, last: int) -> Arrays:
            return {**located.names(first, last), "source": np.full(last - first, number, np.int64)}

        return self._merged(start, stop, named)

    def _merged(self, start: int, stop: int, read: Callable[[int, Located, int, int], Arrays]) -> Arrays:
        merged = _Merged(stop - start)
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
    """Fresh columns of `count` rows that come in parts."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._fixed: dict[str, NDArray[Any]] = {}
        self._ragged: dict[str, list[tuple[slice | Rows, Ragged]]] = {}

    def add(self, name: str, where: slice | Rows, rows: Values, places: Rows | None = None) -> None:
        """Put some rows, or those at some places of them, where they belong."""
        if isinstance(rows, Ragged):
            self._ragged.setdefault(name, []).append((where, rows if places is None else rows[places]))
            return
        out = self._fixed.get(name)
        if out is None:
            out = self._fixed[name] = np.empty((self._count, *rows.shape[1:]), rows.dtype)
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
