"""`CheckedReader`: a raw array whose chunks are checked against their checksums before rows of them are first read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.checksum import crc32c
from shardstore.entries import ArrayEntry
from shardstore.locks import ForkSafeLock
from shardstore.readers.base import Reader
from shardstore.readers.footers import Footers
from shardstore.readers.positional import ShardFiles
from shardstore.readers.shared import Shared
from shardstore.selection import Rows, rows_of_runs
from shardstore.shardfile import ChunkError, check_sum, read_at
from shardstore.shards import ShardDirectory


class CheckedReader(Reader):
    """Reads through another reader, and checks each chunk once, in what this one reads of it.

    What a slice shows may be touched at any time after, so all of it is checked before. Several threads may check a
    chunk at the same time; none gets rows of it before it was checked.
    """

    def __init__(self, reader: Reader, directory: ShardDirectory, entry: ArrayEntry, shared: Shared) -> None:
        layout = entry.layout
        super().__init__(layout.field)
        self._reader = reader
        self._layout = layout
        self._rows = entry.rows
        self._files = ShardFiles(directory, entry, shared)
        self._footers = Footers(self._files, entry)
        self._shift = layout.chunk_rows.bit_length() - 1
        self._checked = np.zeros(layout.chunks_for(entry.rows), np.bool_)
        # How many chunks are not checked yet. Behind the last one nothing is looked up any more.
        self._left = len(self._checked)
        self._counting = ForkSafeLock()
        self.slices_are_views = reader.slices_are_views

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Check the chunks of rows, and copy the rows."""
        if self._left:
            self._check(rows >> self._shift)
        self._reader.take(rows, out)

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Check the chunks of consecutive rows, and return the rows."""
        if self._left and start < stop:
            self._check(np.arange(start >> self._shift, ((stop - 1) >> self._shift) + 1))
        return self._reader.slice(start, stop)

    def take_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Check the chunks of runs, and copy the runs."""
        self._check_runs(starts, stops)
        self._reader.take_runs(starts, stops, out)

    def take_blocks(self, first: int, length: int, blocks: Rows, out: NDArray[Any]) -> None:
        """Check the chunks of blocks, and copy the blocks."""
        starts = first + blocks * length
        self._check_runs(starts, starts + length)
        self._reader.take_blocks(first, length, blocks, out)

    def join_runs(self, starts: Rows, stops: Rows) -> NDArray[Any]:
        """Check the chunks of runs, and join the runs."""
        self._check_runs(starts, stops)
        return self._reader.join_runs(starts, stops)

    def _check_runs(self, starts: Rows, stops: Rows) -> None:
        if self._left:
            self._check(self._chunks_of(starts, stops))

    def _chunks_of(self, starts: Rows, stops: Rows) -> Rows:
        filled = starts < stops
        return rows_of_runs(starts[filled] >> self._shift, ((stops[filled] - 1) >> self._shift) + 1)

    def peek(self, start: int, stop: int) -> NDArray[Any]:
        """Return consecutive rows of one shard as they are, unchecked."""
        return self._reader.peek(start, stop)

    def _check(self, chunks: Rows) -> None:
        """Check those of an array's chunks that are not checked yet.

        Raises:
            CorruptionError: if one is not what was written, or the footer of its shard is not.
        """
        unchecked = self._unchecked(chunks)
        if not len(unchecked):
            return
        starts = unchecked << self._shift
        if self._reader.wants(len(unchecked)):
            self._reader.expect_runs(starts, self._ends(unchecked))
        for chunk in unchecked.tolist():
            self._check_chunk(chunk)
        with self._counting:  # of two threads, one counts
            # In this order: the child of a fork may see half of it, and must not take any for checked that are not.
            others = len(unchecked) - int(self._checked[unchecked].sum())
            self._checked[unchecked] = True
            self._left -= others

    def _unchecked(self, chunks: Rows) -> Rows:
        checked = self._checked[chunks]
        unchecked: Rows = chunks[:0] if checked.all() else np.unique(chunks[~checked])
        return unchecked

    def _ends(self, chunks: Rows) -> Rows:
        ends: Rows = np.minimum((chunks + 1) << self._shift, self._rows)
        return ends

    def _check_chunk(self, chunk: int) -> None:
        layout = self._layout
        shard, slot = divmod(chunk, layout.slots)
        file = self._files.get(shard)
        expected = int(self._footers.get(shard, file).checksums[slot])
        start = chunk << self._shift
        rows = self._reader.peek(start, min(start + layout.chunk_rows, self._rows))
        try:
            if rows.nbytes == layout.chunk_nbytes:
                check_sum(slot, crc32c(rows), expected)
                return
            # Rows may follow that were appended since, and the rows above may be read from the file before that. Behind
            # the last row a chunk is filled up with zeros, which nobody reads.
            there = min(layout.chunk_rows, file.shard.rows - slot * layout.chunk_rows) * layout.field.row_nbytes
            stored = read_at(file.descriptor, there, slot * layout.chunk_nbytes)
            check_sum(slot, crc32c(bytes(layout.chunk_nbytes - there), crc32c(stored)), expected)
            if not stored.startswith(rows.tobytes()):
                raise ChunkError(slot, "its rows differ from those in the file")
        except ChunkError as error:
            raise self._footers.damage(shard, error) from None

    # Ahead of reading: chunks that are not checked yet will be read as a whole.

    @property
    def mapped_ranges(self) -> list[tuple[int, int]]:
        """Address and bytes of the pages of each file that is mapped now."""
        return self._reader.mapped_ranges

    def begin_pass(self) -> None:
        """Be told that many rows will be read."""
        self._reader.begin_pass()

    def wants(self, count: int) -> bool:
        """Whether so many rows that will be read soon should be named to the methods below."""
        return self._reader.wants(count)

    def expect(self, rows: Rows) -> None:
        """Ask the system for the pages of rows that will be read soon."""
        if self._left:
            self.expect_runs(rows, rows + 1)
        else:
            self._reader.expect(rows)

    def expect_runs(self, starts: Rows, stops: Rows) -> None:
        """Ask the system for the pages of runs of consecutive rows that will be read soon."""
        if self._left:
            unchecked = self._unchecked(self._chunks_of(starts, stops))
            known = self._checked[np.minimum(starts >> self._shift, len(self._checked) - 1)]
            starts = np.concatenate([unchecked << self._shift, starts[known]])
            stops = np.concatenate([self._ends(unchecked), stops[known]])
        self._reader.expect_runs(starts, stops)

    def expect_run(self, start: int, stop: int) -> None:
        """Ask the system for the pages of consecutive rows that will be read soon, and of some behind them."""
        self._reader.expect_run(start, stop)

    def populate(self, start: int, stop: int, stopped: Callable[[], bool]) -> None:
        """Bring consecutive rows into the page cache and the page tables; they are checked when they are read."""
        self._reader.populate(start, stop, stopped)

    def warm(self) -> None:
        """Bring all rows into the page cache; they are checked when they are read."""
        self._reader.warm()

    def close(self) -> None:
        """Count no longer for the memory budget."""
        self._reader.close()
