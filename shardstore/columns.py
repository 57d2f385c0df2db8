"""Writing columns: rows go into one shard file after the other, those of a ragged column into two arrays.

Writing may go on behind rows that are there already. Whole shards stay as they are. What the last, short one holds is
copied into a longer file, which takes its place: no file is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shardstore.entries import ArrayEntry, ColumnEntry, Successor, successor_key
from shardstore.ragged import Ragged
from shardstore.schema import ArrayLayout, ColumnLayout
from shardstore.shardfile import ShardRecord, ShardWriter, whole_shard


@dataclass(frozen=True)
class Tail:
    """The first rows of a shard, in a file that a longer one is to replace.

    Attributes:
        path: the file.
        record: its size and footer checksum.
        rows_in_file: how many rows it has.
        rows: how many of these count.
        generation: that of the commit which puts the longer file in its place; None if nobody reads the shard yet.
    """

    path: Path
    record: ShardRecord
    rows_in_file: int
    rows: int
    generation: int | None


@dataclass(frozen=True)
class ArrayStart:
    """What there is of an array when its writing goes on.

    Attributes:
        rows: how many rows.
        records: the shards that are full of them.
        tail: where the rows behind these are, or None if there are none.
        successor: see `ArrayEntry`; of the array as it is.
    """

    rows: int = 0
    records: tuple[ShardRecord, ...] = ()
    tail: Tail | None = None
    successor: Successor | None = None

    @classmethod
    def of(cls, store: Path, entry: ArrayEntry, rows: int | None = None, generation: int | None = None) -> ArrayStart:
        """Return the start behind the first rows of an array, all of them by default."""
        rows, layout = entry.rows if rows is None else rows, entry.layout
        whole, rest = divmod(rows, layout.shard_rows) if layout.field.row_nbytes else (0, 0)
        tail = None
        if rest:
            path = store / layout.shard_key(whole)
            tail = Tail(path, entry.record(whole), entry.rows_in_file(whole), rest, generation)
        return cls(rows, tuple(entry.record(shard) for shard in range(whole)), tail, entry.successor)

    def entry(self, layout: ArrayLayout, rows: int, written: Sequence[ShardRecord]) -> ArrayEntry:
        """Return what the manifest says of the array once shards were written behind the start."""
        records, successor = [*self.records, *written], None
        if not written:
            records += [] if self.tail is None else [self.tail.record]
            successor = self.successor
        elif self.tail is not None and self.tail.generation is not None:
            successor = Successor(len(self.records), self.tail.generation)
        return ArrayEntry(
            layout,
            rows,
            np.array([record.nbytes for record in records], np.int64),
            np.array([record.footer_crc32c for record in records], np.int64),
            successor,
        )


@dataclass(frozen=True)
class ColumnStart:
    """What there is of a column when its writing goes on.

    Attributes:
        data: of the array of its rows; of a ragged column, of its values.
        ranges: of a ragged column, of its ranges.
    """

    data: ArrayStart = ArrayStart()
    ranges: ArrayStart = ArrayStart()

    @classmethod
    def of(cls, store: Path, entry: ColumnEntry, generation: int | None = None) -> ColumnStart:
        """Return the start behind all rows of a column."""
        data = ArrayStart.of(store, entry.data, None, generation)
        return cls(data) if entry.ranges is None else cls(data, ArrayStart.of(store, entry.ranges, None, generation))


NOTHING = ColumnStart()


class ArrayWriter:
    """Writes rows into an array's shard files, from shard `first_shard` on.

    A context manager: leaving it without `finish` removes the unfinished shard file.

    Args:
        store: the store's directory.
        layout: how the array is cut.
        first_shard: number of the first shard to write.
        tail: the rows that it has already, in the file that it replaces.
        resumed: whether shards are taken over that are there, written of the same rows.
        rows: how many rows will come, where that is known: else only full shards are taken over.
    """

    def __init__(
        self,
        store: Path,
        layout: ArrayLayout,
        first_shard: int = 0,
        tail: Tail | None = None,
        resumed: bool = False,
        rows: int | None = None,
    ) -> None:
        self._store = store
        self._layout = layout
        self._first_shard = first_shard
        self._tail = tail
        self._resumed = resumed
        self._expected = rows
        self._there = 0  # rows to come that a shard file holds which is there
        self._shard: ShardWriter | None = None
        self._records: list[ShardRecord] = []
        if tail is not None and tail.rows < tail.rows_in_file:
            self._begin_shard()  # also if nothing comes: it has to become shorter

    @property
    def finished(self) -> list[ShardRecord]:
        """The records of the shards that are complete."""
        return self._records

    def append(self, rows: NDArray[Any]) -> None:
        """Write any number of C-contiguous rows of the field's dtype."""
        if not self._layout.field.row_nbytes:
            return
        while len(rows):
            if self._resumed and self._shard is None and not self._there:
                self._take_over_shard()
            if self._there:
                fits = min(len(rows), self._there)
                rows, self._there = rows[fits:], self._there - fits
                continue
            shard = self._shard or self._begin_shard()
            fits = min(len(rows), shard.room)
            shard.append(rows[:fits])
            rows = rows[fits:]
            if not shard.room:
                self._end_shard()

    def finish(self) -> list[ShardRecord]:
        """Complete the last shard and return the records of all that were written."""
        # Where nobody knew how many rows would come, the last shard may be full but for its last chunk.
        missing = 0 if self._expected is None and self._there < self._layout.chunk_rows else self._there
        assert not missing, "a shard file that was taken over has rows that did not come"
        if self._shard is not None:
            self._end_shard()
        return self._records

    @property
    def _next_key(self) -> str:
        return self._layout.shard_key(self._first_shard + len(self._records))

    def _take_over_shard(self) -> None:
        """Look whether the next shard is there."""
        rows = self._layout.shard_rows
        if self._expected is not None:
            rows = self._layout.rows_in_shard(len(self._records), self._expected)
        record = whole_shard(self._store / self._next_key, self._layout, rows)
        if record is not None:
            self._records.append(record)
            self._there = rows

    def _begin_shard(self) -> ShardWriter:
        key = self._next_key
        tail, self._tail = self._tail, None
        if tail is not None and tail.generation is not None:
            key = successor_key(key, tail.generation)
        self._shard = ShardWriter(self._store / key, self._layout)
        if tail is not None:
            self._shard.take_over(tail.path, tail.record, tail.rows_in_file, tail.rows)
        return self._shard

    def _end_shard(self) -> None:
        assert self._shard is not None
        with self._shard:
            self._records.append(self._shard.finish())
        self._shard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.__exit__(kind, error, trace)
            self._shard = None


class ColumnWriter:
    """Writes rows into a column, behind those that are there. A context manager like `ArrayWriter`."""

    def __init__(self, store: Path, layout: ColumnLayout, start: ColumnStart = NOTHING, resumed: bool = False) -> None:
        self._layout = layout
        self._start = start
        self._data = ArrayWriter(store, layout.data, len(start.data.records), start.data.tail, resumed)
        self._ranges: ArrayWriter | None = None
        self._rows = self._items = start.data.rows
        if layout.ranges is not None:
            first = len(start.ranges.records)
            self._ranges = ArrayWriter(store, layout.ranges, first, start.ranges.tail, resumed)
            self._rows = start.ranges.rows

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self._rows

    @property
    def items(self) -> int:
        """How many items the rows of a ragged column have."""
        return self._items

    def append(self, rows: NDArray[Any] | Ragged) -> None:
        """Write any number of rows: a C-contiguous array of the field's dtype, or a `Ragged` of it."""
        if isinstance(rows, Ragged):
            assert self._ranges is not None
            offsets = rows.offsets + self._items
            self._data.append(rows.values)
            self._ranges.append(np.stack([offsets[:-1], offsets[1:]], axis=1))
            self._items += len(rows.values)
        else:
            self._data.append(rows)
        self._rows += len(rows)

    def finish(self) -> ColumnEntry:
        """Complete the last shards and return what the manifest says of the column."""
        self._data.finish()
        if self._ranges is None:
            return self._entry(self._rows, self._rows)
        self._ranges.finish()
        return self._entry(self._rows, self._items)

    def whole_shards(self) -> ColumnEntry:
        """Return what the manifest would say of the shards that are complete, all of them full."""
        data = self._layout.data.shard_rows * (len(self._start.data.records) + len(self._data.finished))
        if self._ranges is None:
            return self._entry(data, data)
        assert self._layout.ranges is not None
        shards = len(self._start.ranges.records) + len(self._ranges.finished)
        return self._entry(self._layout.ranges.shard_rows * shards, data)

    def _entry(self, rows: int, items: int) -> ColumnEntry:
        layout, start = self._layout, self._start
        if self._ranges is None:
            return ColumnEntry(layout.field, start.data.entry(layout.data, rows, self._data.finished))
        assert layout.ranges is not None
        data = start.data.entry(layout.data, items, self._data.finished)
        return ColumnEntry(layout.field, data, start.ranges.entry(layout.ranges, rows, self._ranges.finished))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.__exit__(kind, error, trace)
        if self._ranges is not None:
            self._ranges.__exit__(kind, error, trace)
