"""Writing columns: rows go into one shard file after the other, those of a ragged column into two arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.ragged import Ragged
from shardstore.schema import ArrayLayout, ColumnLayout
from shardstore.shardfile import ShardRecord, ShardWriter


class ArrayWriter:
    """Writes rows into an array's shard files, from shard `first_shard` on.

    A context manager: leaving it without `finish` removes the unfinished shard file.
    """

    def __init__(self, store: Path, layout: ArrayLayout, first_shard: int = 0) -> None:
        self._store = store
        self._layout = layout
        self._first_shard = first_shard
        self._shard: ShardWriter | None = None
        self._records: list[ShardRecord] = []

    @property
    def finished(self) -> list[ShardRecord]:
        """The records of the shards that are complete."""
        return self._records

    def append(self, rows: NDArray[Any]) -> None:
        """Write any number of C-contiguous rows of the field's dtype."""
        if not self._layout.field.row_nbytes:
            return
        while len(rows):
            if self._shard is None:
                key = self._layout.shard_key(self._first_shard + len(self._records))
                self._shard = ShardWriter(self._store / key, self._layout)
            fits = min(len(rows), self._shard.room)
            self._shard.append(rows[:fits])
            rows = rows[fits:]
            if not self._shard.room:
                self._end_shard()

    def finish(self) -> list[ShardRecord]:
        """Complete the last shard and return the records of all."""
        if self._shard is not None:
            self._end_shard()
        return self._records

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


@dataclass(frozen=True)
class Finished:
    """What there is of a column whose writing was interrupted.

    Attributes:
        rows: how many rows there are: whole shards of the array that has an entry for each row.
        items: how many items these have; of a fixed column, the same.
        data: the records of the whole shards of the rows; of a ragged column, of its values.
        ranges: those of its ranges; empty for a fixed column.
        tail: the items that no whole shard of values has, or None.
    """

    rows: int
    items: int
    data: list[ShardRecord]
    ranges: list[ShardRecord]
    tail: NDArray[Any] | None


NOTHING = Finished(0, 0, [], [], None)


class ColumnWriter:
    """Writes rows into a column, behind those that are finished. A context manager like `ArrayWriter`."""

    def __init__(self, store: Path, layout: ColumnLayout, finished: Finished = NOTHING) -> None:
        self._layout = layout
        self._before = finished
        self._data = ArrayWriter(store, layout.data, len(finished.data))
        self._ranges = None if layout.ranges is None else ArrayWriter(store, layout.ranges, len(finished.ranges))
        self._rows = finished.rows
        self._items = finished.items
        if finished.tail is not None:
            self._data.append(finished.tail)

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
        data = self._layout.data.shard_rows * (len(self._before.data) + len(self._data.finished))
        if self._ranges is None:
            return self._entry(data, data)
        assert self._layout.ranges is not None
        shards = len(self._before.ranges) + len(self._ranges.finished)
        return self._entry(self._layout.ranges.shard_rows * shards, data)

    def _entry(self, rows: int, items: int) -> ColumnEntry:
        layout, before = self._layout, self._before
        data = array_entry(layout.data, items, [*before.data, *self._data.finished])
        if self._ranges is None:
            return ColumnEntry(layout.field, data)
        assert layout.ranges is not None
        return ColumnEntry(
            layout.field, data, array_entry(layout.ranges, rows, [*before.ranges, *self._ranges.finished])
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.__exit__(kind, error, trace)
        if self._ranges is not None:
            self._ranges.__exit__(kind, error, trace)


def array_entry(layout: ArrayLayout, rows: int, records: Sequence[ShardRecord]) -> ArrayEntry:
    """Put the records of an array's shards, in order, into its manifest entry."""
    return ArrayEntry(
        layout,
        rows,
        np.array([record.nbytes for record in records], np.int64),
        np.array([record.footer_crc32c for record in records], np.int64),
    )
