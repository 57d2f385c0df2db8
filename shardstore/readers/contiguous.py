"""`ContiguousReader`: a raw array as one mapping of all its shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.access import RUN_AHEAD_NBYTES, PageKeeper
from shardstore.entries import ArrayEntry
from shardstore.mapping import MappedFiles, spacing_nbytes
from shardstore.paging import tells_cached
from shardstore.ragged import join_runs
from shardstore.readers.base import Reader, cut_runs
from shardstore.readers.positional import PositionalReads
from shardstore.readers.shared import Shared, with_room
from shardstore.selection import Rows
from shardstore.shards import ShardDirectory, open_shard

_MAPPED_AT_ONCE = 64


class ContiguousReader(Reader):
    """Reads a raw column as one array; maps a shard's part of it when a row of that shard is first asked for.

    `take` and `slice` raise `CannotMapError` where the process has run out of mappings since.
    """

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, shared: Shared) -> None:
        layout, rows = entry.layout, entry.rows
        super().__init__(layout.field)
        count = len(entry.nbytes)
        spacing = spacing_nbytes(layout.shard_nbytes, layout.field.row_nbytes)
        last = layout.rows_in_shard(count - 1, rows) * layout.field.row_nbytes
        data_nbytes = [layout.shard_nbytes] * (count - 1) + [last]
        self._files = MappedFiles(
            lambda i: with_room(lambda: open_shard(directory, entry, i, confirm=False).descriptor),
            data_nbytes,
            spacing,
            directory.confirm,
        )
        tells = _tells_cached(directory, layout.shard_key(0))
        self._pages = PageKeeper(self._files, layout.field.row_nbytes, shared.budget, tells)
        # Scattered rows of an array that does not stay resident: a fault costs more than a call, and makes up to 2 MiB
        # resident that have to be given back.
        by_position = not self._pages.kept and count <= shared.max_open
        self._reads = PositionalReads(directory, entry, shared) if by_position else None
        self._array = self._files.data.view(layout.field.dtype).reshape(-1, *layout.field.row_shape)
        self._rows = rows
        self._shard_rows = layout.shard_rows
        # Behind a single shard there is none.
        self._phantom_rows = (spacing - layout.shard_nbytes) // layout.field.row_nbytes if count > 1 else 0
        self.slices_are_views = not self._phantom_rows
        self._shift = layout.shard_rows.bit_length() - 1

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Copy the given rows into `out`, in one gather where they stay resident."""
        if self._pages.must_ask(len(rows)):
            self.expect(rows)
            self._pages.forget()
        if self._reads is not None:
            self._reads.read_rows(rows, out)
            return
        if not self._files.complete:
            self._files.ensure(rows >> self._shift)
        places = self._places(rows)
        if self._pages.kept:
            # mode="clip" spares take the buffer that it needs to leave `out` untouched by a bad index.
            self._array.take(places, axis=0, out=out, mode="clip")
            return
        # There are more shards than can be held open.
        size = self._pages.rows_at_once
        for start in range(0, len(places), size):
            part = places[start : start + size]
            self._array.take(part, axis=0, out=out[start : start + size], mode="clip")
            self._pages.after_rows(len(part))

    def _places(self, rows: Rows) -> Rows:
        """Return where rows are in the array, phantom rows counted."""
        return rows + (rows >> self._shift) * self._phantom_rows if self._phantom_rows else rows

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Return a view; only rows on both sides of phantom rows have to be copied."""
        if start < stop and not self._files.complete:
            self._files.ensure(self._shards(start, stop))
        if not self._pages.kept:
            self._pages.after_run(stop - start)
        if not self._phantom_rows or start == stop:
            return self._array[start:stop]
        pieces = [self._array[first:last] for first, last in self._pieces(start, stop)]
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        joined.flags.writeable = False
        return joined

    def _shards(self, start: int, stop: int) -> Rows:
        return np.arange(start >> self._shift, ((stop - 1) >> self._shift) + 1)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut consecutive rows where phantom rows are between them: yields places in the array."""
        if not self._phantom_rows:
            yield start, stop
            return
        for shard, first, last in cut_runs(start, stop, self._shard_rows):
            yield first + shard * self._phantom_rows, last + shard * self._phantom_rows

    def take_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Copy all runs at once where there are no phantom rows."""
        self._ask_for_runs(starts, stops)
        if self._reads is not None:
            self._reads.read_runs(starts, stops, out)
        elif self._phantom_rows:
            super().take_runs(starts, stops, out)
        else:
            self._map_runs(starts, stops)
            join_runs(self._array, starts, stops, out)
            if not self._pages.kept:
                self._pages.after_rows(len(starts))

    def take_blocks(self, first: int, length: int, blocks: Rows, out: NDArray[Any]) -> None:
        """Copy all blocks in one gather where there are no phantom rows: they are rows of a table."""
        if self._phantom_rows or not (self._pages.kept and self._files.complete) or self._pages.must_ask(len(blocks)):
            super().take_blocks(first, length, blocks, out)
            return
        count = (len(self._array) - first) // length
        row_shape = (length, *self._field.row_shape)
        table = self._array[first : first + count * length].reshape(count, *row_shape)
        table.take(blocks, axis=0, out=out.reshape(len(blocks), *row_shape), mode="clip")

    def join_runs(self, starts: Rows, stops: Rows) -> NDArray[Any]:
        """Copy all runs at once where there are no phantom rows."""
        if self._phantom_rows or not self._pages.kept:
            return super().join_runs(starts, stops)
        self._ask_for_runs(starts, stops)
        self._map_runs(starts, stops)
        return join_runs(self._array, starts, stops)

    def peek(self, start: int, stop: int) -> NDArray[Any]:
        """Return a view; read by position what scattered rows are."""
        return self.slice(start, stop) if self._reads is None else self.join_runs(np.array([start]), np.array([stop]))

    def _ask_for_runs(self, starts: Rows, stops: Rows) -> None:
        if self._pages.must_ask(len(starts)):
            self.expect_runs(starts, stops)
            self._pages.forget()

    def _map_runs(self, starts: Rows, stops: Rows) -> None:
        if self._files.complete:
            return
        filled = starts < stops
        firsts, lasts = starts[filled] >> self._shift, (stops[filled] - 1) >> self._shift
        inner = [np.arange(a + 1, b) for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True) if a + 1 < b]
        self._files.ensure(np.concatenate([firsts, lasts, *inner]))

    @property
    def mapped_ranges(self) -> list[tuple[int, int]]:
        """Address and bytes of the pages of each shard that is mapped now."""
        return self._files.ranges()

    def begin_pass(self) -> None:
        """Look again whether pages are in the page cache."""
        self._pages.begin_pass()

    def wants(self, count: int) -> bool:
        """Whether pages may be missing from the page cache, or nobody has looked for some time."""
        return self._pages.wants(count)

    def expect(self, rows: Rows) -> None:
        """Map the shards of rows, and ask for their pages."""
        self._files.ensure(rows >> self._shift)
        self._pages.expect(self._places(rows))

    def expect_runs(self, starts: Rows, stops: Rows) -> None:
        """Map the shards of runs, and ask for their pages."""
        self._map_runs(starts, stops)
        firsts = self._places(starts)
        # Where phantom rows lie within a run, its end is not asked for.
        self._pages.expect_runs(firsts, firsts + (stops - starts))

    def expect_run(self, start: int, stop: int) -> None:
        """Map the shards of consecutive rows and of some megabytes behind them, and ask for their pages."""
        if start >= stop or not self._pages.wants(stop - start):
            return
        self._files.ensure(self._shards(start, stop))
        if not any(self._pages.misses_run(first, last) for first, last in self._pieces(start, stop)):
            return
        ahead = min(self._rows, stop + RUN_AHEAD_NBYTES // self._field.row_nbytes)
        self._files.ensure(self._shards(start, ahead))
        for first, last in self._pieces(start, ahead):
            self._pages.ask_for_run(first, last)

    def populate(self, start: int, stop: int, stopped: Callable[[], bool]) -> None:
        """Map the shards of consecutive rows, then bring them in, one after the other, if they are to stay."""
        if self._pages.kept:
            self._bring(start, stop, stopped)

    def warm(self) -> None:
        """Map all shards, then bring them in, one after the other."""
        self._bring(0, self._rows, lambda: False)

    def _bring(self, start: int, stop: int, stopped: Callable[[], bool]) -> None:
        shards = self._shards(start, stop) if start < stop else np.empty(0, np.int64)
        # First all mappings: a thread that maps waits for those that populate.
        for first in range(0, len(shards), _MAPPED_AT_ONCE):
            if stopped():
                return
            self._files.ensure(shards[first : first + _MAPPED_AT_ONCE])
        for shard in shards.tolist():
            if stopped() or not self._pages.populate(shard, stopped):
                return

    def close(self) -> None:
        """Count no longer for the memory budget."""
        self._pages.close()


def _tells_cached(directory: ShardDirectory, key: str) -> bool:
    (status,) = directory.stats((key,))
    return status is not None and tells_cached(status)
