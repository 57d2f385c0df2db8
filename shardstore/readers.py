"""Readers: rows of one column, from its shard files.

`ContiguousReader` reads raw columns through one mapping of all shards, `ShardwiseReader` through a plain mapping
per shard where that is impossible, and `ChunkReader` decodes compressed columns.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.access import DEFAULT_ACCESS, RUN_AHEAD_NBYTES, AccessOptions, Budget, PageKeeper
from shardstore.cache import BoundedCache
from shardstore.decoding import decoders
from shardstore.entries import ArrayEntry
from shardstore.errors import CorruptionError
from shardstore.locks import ForkSafeLock
from shardstore.mapping import CannotMapError, MappedFiles, spacing_nbytes
from shardstore.paging import tells_cached
from shardstore.ragged import join_runs
from shardstore.schema import Field
from shardstore.selection import Rows
from shardstore.shardfile import (
    RESTORE,
    ChunkError,
    Footer,
    OpenShard,
    ShardDirectory,
    check_shards,
    open_shard,
    read_chunks,
    read_footer,
)

# Decoded chunks by column and number.
ChunkCache = BoundedCache[tuple[str, int], NDArray[Any]]


class Shared:
    """What the readers of all columns of a store share.

    Attributes:
        budget: its memory budget.
        chunks: decoded chunks.
    """

    def __init__(self, options: AccessOptions = DEFAULT_ACCESS) -> None:
        self.budget = Budget(options)
        self.chunks: ChunkCache = BoundedCache(self.budget.cache_nbytes, lambda chunk: chunk.nbytes)


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

    # What follows is of use for mapped files; elsewhere there is nothing to do ahead.

    @property
    def mapped_ranges(self) -> list[tuple[int, int]]:
        """Address and bytes of the pages of each file that is mapped now."""
        return []

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
        """Bring consecutive rows into the page cache and, if they are to stay resident, into the page tables."""


def open_reader(directory: ShardDirectory, entry: ArrayEntry, shared: Shared, contiguous: bool = True) -> Reader:
    """Open the reader that suits an array.

    Args:
        directory: the store's directory.
        entry: the array.
        shared: what the arrays of a store share.
        contiguous: whether to try one mapping of all shards where the array is raw.

    Raises:
        CorruptionError: if any of the array's shard files is missing, short or overlong.
    """
    layout = entry.layout
    if not entry.rows or not layout.field.row_nbytes:
        return EmptyReader(entry)
    check_shards(directory, entry.keys, entry.nbytes.tolist())
    if not layout.codec.is_raw:
        return ChunkReader(directory, entry, shared.chunks)
    if contiguous:
        with suppress(CannotMapError):
            return ContiguousReader(directory, entry, shared.budget)
    return ShardwiseReader(directory, entry, shared.budget)


class EmptyReader(Reader):
    """Reads a column without bytes: no rows, or rows of shape such as `(3, 0)`."""

    slices_are_views = True

    def __init__(self, entry: ArrayEntry) -> None:
        super().__init__(entry.layout.field)
        self._array = np.empty((entry.rows, *self._field.row_shape), self._field.dtype)
        self._array.flags.writeable = False

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """There is nothing to copy."""

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Return a view of nothing."""
        return self._array[start:stop]

    def take_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """There is nothing to copy."""


class ContiguousReader(Reader):
    """Reads a raw column as one array; maps a shard's part of it when a row of that shard is first asked for.

    `take` and `slice` raise `CannotMapError` where the process has run out of mappings since.
    """

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, budget: Budget) -> None:
        layout, rows = entry.layout, entry.rows
        super().__init__(layout.field)
        keys, sizes = entry.keys, entry.nbytes.tolist()
        spacing = spacing_nbytes(layout.shard_nbytes, layout.field.row_nbytes)
        last = layout.rows_in_shard(len(keys) - 1, rows) * layout.field.row_nbytes
        data_nbytes = [layout.shard_nbytes] * (len(keys) - 1) + [last]
        self._files = MappedFiles(
            lambda i: open_shard(directory, keys[i], sizes[i], confirm=False), data_nbytes, spacing, directory.confirm
        )
        self._pages = PageKeeper(self._files, layout.field.row_nbytes, budget, _tells_cached(directory, keys[0]))
        self._array = self._files.data.view(layout.field.dtype).reshape(-1, *layout.field.row_shape)
        self._rows = rows
        self._shard_rows = layout.shard_rows
        # Behind a single shard there is none.
        self._phantom_rows = (spacing - layout.shard_nbytes) // layout.field.row_nbytes if len(keys) > 1 else 0
        self.slices_are_views = not self._phantom_rows
        self._shift = layout.shard_rows.bit_length() - 1

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Copy the given rows into `out` in one gather, or in several where the budget bounds what is resident."""
        if not self._files.complete:
            self._files.ensure(rows >> self._shift)
        places = self._places(rows)
        self._pages.before(places)
        if self._pages.kept:
            # mode="clip" spares take the buffer that it needs to leave `out` untouched by a bad index.
            self._array.take(places, axis=0, out=out, mode="clip")
            return
        size = self._pages.rows_at_once()
        for start in range(0, len(places), size):
            part = places[start : start + size]
            self._array.take(part, axis=0, out=out[start : start + size], mode="clip")
            self._pages.after(len(part))

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
        for shard, first, last in _runs(start, stop, self._shard_rows):
            yield first + shard * self._phantom_rows, last + shard * self._phantom_rows

    def take_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Copy all runs at once where there are no phantom rows."""
        if self._phantom_rows:
            super().take_runs(starts, stops, out)
            return
        if not self._files.complete:
            self._map_runs(starts, stops)
        self._pages.before_runs(starts, stops)
        join_runs(self._array, starts, stops, out)
        self._after_runs(starts, stops)

    def take_blocks(self, first: int, length: int, blocks: Rows, out: NDArray[Any]) -> None:
        """Copy all blocks in one gather where there are no phantom rows: they are rows of a table."""
        if self._phantom_rows or not (self._files.complete and self._pages.kept) or self._pages.wants(len(blocks)):
            super().take_blocks(first, length, blocks, out)
            return
        count = (len(self._array) - first) // length
        row_shape = (length, *self._field.row_shape)
        table = self._array[first : first + count * length].reshape(count, *row_shape)
        table.take(blocks, axis=0, out=out.reshape(len(blocks), *row_shape), mode="clip")

    def join_runs(self, starts: Rows, stops: Rows) -> NDArray[Any]:
        """Copy all runs at once where there are no phantom rows."""
        if self._phantom_rows:
            return super().join_runs(starts, stops)
        if not self._files.complete:
            self._map_runs(starts, stops)
        self._pages.before_runs(starts, stops)
        joined = join_runs(self._array, starts, stops)
        self._after_runs(starts, stops)
        return joined

    def _after_runs(self, starts: Rows, stops: Rows) -> None:
        if not self._pages.kept:
            self._pages.after(len(starts))
            self._pages.after_run(int((stops - starts).sum()))

    def _map_runs(self, starts: Rows, stops: Rows) -> None:
        filled = starts < stops
        firsts, lasts = starts[filled] >> self._shift, (stops[filled] - 1) >> self._shift
        inner = [np.arange(a + 1, b) for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True) if a + 1 < b]
        self._files.ensure(np.concatenate([firsts, lasts, *inner]))

    @property
    def mapped_ranges(self) -> list[tuple[int, int]]:
        """Address and bytes of the pages of each shard that is mapped now."""
        return self._files.ranges()

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
        """Map the shards of consecutive rows and bring them in, one after the other."""
        for shard in self._shards(start, stop) if start < stop else ():
            if stopped():
                break
            self._files.ensure(np.array([shard]))
            if not self._pages.populate(int(shard), stopped):
                break


def _tells_cached(directory: ShardDirectory, key: str) -> bool:
    (status,) = directory.stats((key,))
    return status is not None and tells_cached(status)


class ShardwiseReader(Reader):
    """Reads a raw column through a mapping per shard, of which it keeps a bounded number."""

    MAX_OPEN = 512
    slices_are_views = False

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, budget: Budget) -> None:
        super().__init__(entry.layout.field)
        self._directory = directory
        self._entry = entry
        self._rows = entry.rows
        room = max(self.MAX_OPEN, budget.streamed_nbytes)
        self._maps: BoundedCache[int, NDArray[Any]] = BoundedCache(
            room, lambda shard: max(shard.nbytes, room // self.MAX_OPEN)
        )

    def _map(self, shard: int) -> NDArray[Any]:
        try:
            return self._new_map(shard)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
        self._maps.clear()  # no room for one more mapping, or for its addresses: let go of the others
        return self._new_map(shard)

    def _new_map(self, shard: int) -> NDArray[Any]:
        layout = self._entry.layout
        shape = (layout.rows_in_shard(shard, self._rows), *layout.field.row_shape)
        nbytes = int(self._entry.nbytes[shard])
        with os.fdopen(open_shard(self._directory, layout.shard_key(shard), nbytes), "rb") as file:
            return np.memmap(file, layout.field.dtype, "r", shape=shape).view(np.ndarray)

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Copy the given rows, a shard at a time."""
        for shard, positions, local in _group(rows, self._entry.layout.shard_rows):
            out[positions] = np.take(self._maps.get(shard, self._map), local, axis=0)

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Return a view; rows of several shards have to be copied."""
        layout = self._entry.layout
        out = np.empty((stop - start, *layout.field.row_shape), layout.field.dtype)
        for shard, first, last in _runs(start, stop, layout.shard_rows):
            before = shard * layout.shard_rows
            piece = self._maps.get(shard, self._map)[first - before : last - before]
            if len(piece) == len(out):
                return piece
            out[first - start : last - start] = piece  # and let go of the mapping before the next one
        out.flags.writeable = False
        return out


class ChunkReader(Reader):
    """Reads a compressed column: decodes the chunks that hold the asked-for rows, each once a call."""

    slices_are_views = False
    _FOOTER_CACHE_NBYTES = 32 << 20
    _MAX_OPEN = 64  # of 1,024 descriptors that a process usually may have
    _SPAN_CHUNKS = 8  # that are read at once and decoded by one thread

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, chunks: ChunkCache) -> None:
        super().__init__(entry.layout.field)
        self._directory = directory
        self._entry = entry
        self._chunks = chunks
        self._layout = entry.layout
        self._rows = entry.rows
        self._files: BoundedCache[int, OpenShard] = BoundedCache(self._MAX_OPEN, lambda file: 1)
        self._footers: BoundedCache[int, Footer] = BoundedCache(
            self._FOOTER_CACHE_NBYTES, lambda footer: footer.bounds.nbytes + footer.checksums.nbytes
        )
        self._decoders = decoders()
        self._decodes = 0
        self._counting = ForkSafeLock()

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Copy the given rows, a chunk at a time, on several threads where there are several chunks."""

        def copy(group: tuple[int, Rows, Rows]) -> None:
            chunk, positions, local = group
            out[positions] = np.take(self._chunk(chunk), local, axis=0)

        self._decoders.for_each(copy, list(_group(rows, self._layout.chunk_rows)))

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Decode consecutive rows into a fresh array."""
        return self.join_runs(np.array([start]), np.array([stop]))

    def take_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Decode runs of rows into `out`, each chunk once: straight into its place where all of it is wanted."""
        layout = self._layout
        # Whole chunks, side by side in one file: the first, one past the last, and where they go.
        spans: list[tuple[int, int, int]] = []
        parts: dict[int, list[tuple[int, int, int]]] = {}
        place = 0
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            for chunk, first, last in _runs(start, stop, layout.chunk_rows):
                before = chunk * layout.chunk_rows
                if last - first < layout.chunk_rows:
                    parts.setdefault(chunk, []).append((first - before, last - before, place))
                elif self._can_follow(spans, chunk, place):
                    spans[-1] = (spans[-1][0], chunk + 1, spans[-1][2])
                else:
                    spans.append((chunk, chunk + 1, place))
                place += last - first
        flat = out.reshape(-1).view(np.uint8)

        def decode(span: tuple[int, int, int]) -> None:
            first, last, place = span
            begin = place * layout.field.row_nbytes
            self._decode(range(first, last), flat[begin : begin + (last - first) * layout.chunk_nbytes])

        def copy(chunk: int) -> None:
            decoded = self._chunk(chunk)  # its other rows are wanted in another window
            for first, last, place in parts[chunk]:
                out[place : place + last - first] = decoded[first:last]

        self._decoders.for_each(decode, spans)
        self._decoders.for_each(copy, list(parts))

    def _can_follow(self, spans: list[tuple[int, int, int]], chunk: int, place: int) -> bool:
        """Whether a chunk lies and goes behind the last span, in the same file, and that has not enough chunks."""
        if not spans or not chunk % self._layout.slots:
            return False
        first, last, begin = spans[-1]
        goes_behind = begin + (last - first) * self._layout.chunk_rows == place
        return last == chunk and goes_behind and chunk - first < self._SPAN_CHUNKS

    @property
    def chunks_decoded(self) -> int:
        """How many chunks were decoded since the column was opened."""
        return self._decodes

    def _chunk(self, chunk: int) -> NDArray[Any]:
        return self._chunks.get((self._layout.field.name, chunk), lambda key: self._decoded_chunk(chunk))

    def _decoded_chunk(self, chunk: int) -> NDArray[Any]:
        layout = self._layout
        decoded = np.empty((layout.chunk_rows, *layout.field.row_shape), layout.field.dtype)
        self._decode(range(chunk, chunk + 1), decoded.reshape(-1).view(np.uint8))
        return decoded

    def _decode(self, chunks: range, out: NDArray[np.uint8]) -> None:
        """Decode chunks of one shard into the bytes `out`."""
        layout = self._layout
        shard, slot = divmod(chunks.start, layout.slots)
        file = self._files.get(shard, self._open_shard)
        footer = self._footers.get(shard, lambda shard: self._read_footer(file.descriptor, shard))
        with self._counting:
            self._decodes += len(chunks)
        try:
            read_chunks(file.descriptor, layout, footer, range(slot, slot + len(chunks)), out)
        except ChunkError as error:
            path = self._directory.path / layout.shard_key(shard)
            first = shard * layout.shard_rows + error.chunk * layout.chunk_rows
            last = min(first + layout.chunk_rows, self._rows) - 1
            raise CorruptionError(
                f"{path}, chunk {error.chunk} (rows {first:,} to {last:,}): {error}; {RESTORE}"
            ) from None

    def _open_shard(self, shard: int) -> OpenShard:
        return OpenShard(self._directory, self._layout.shard_key(shard), int(self._entry.nbytes[shard]))

    def _read_footer(self, descriptor: int, shard: int) -> Footer:
        path = self._directory.path / self._layout.shard_key(shard)
        rows = self._layout.rows_in_shard(shard, self._rows)
        return read_footer(descriptor, path, self._layout, self._entry.record(shard), rows)


def _runs(start: int, stop: int, unit: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows `[start, stop)` at multiples of `unit`: yields number, first row, one past the last row."""
    while start < stop:
        number = start // unit
        end = min(stop, (number + 1) * unit)
        yield number, start, end
        start = end


def _group(rows: Rows, unit: int) -> Iterator[tuple[int, Rows, Rows]]:
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
