"""Rows that come again when an ingest of rows is resumed: are they those that are there?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shardstore.column_progress import ColumnProgress
from shardstore.encoding import contiguous
from shardstore.entries import ArrayEntry
from shardstore.errors import SourceError
from shardstore.files import Directory
from shardstore.ragged import Ragged, Values
from shardstore.readers.base import Reader
from shardstore.readers.opening import open_reader
from shardstore.readers.shared import Shared


class Replay:
    """The rows that an interrupted writer has finished.

    Args:
        directory: the new store's directory.
        columns: what is there of each column.
        rows: how many rows of it count.

    Attributes:
        next: the number of the row that comes next.
    """

    def __init__(self, directory: Path, columns: Mapping[str, ColumnProgress], rows: int) -> None:
        self._directory = Directory(directory)
        self._columns = columns
        self._readers: dict[str, Reader] = {}
        self._shared = Shared()
        self.next = 0
        self._rows = rows

    @property
    def left(self) -> int:
        """How many rows are still to come again."""
        return self._rows - self.next

    def check(self, rows: Mapping[str, Values]) -> None:
        """Compare the next rows, as they are stored; raise `SourceError` if they are not the same."""
        count = len(next(iter(rows.values())))
        for name, values in rows.items():
            if not self._same(name, values, self.next, self.next + count):
                raise SourceError(
                    f"rows {self.next:,} to {self.next + count - 1:,}, column {name!r}: not the rows that the "
                    "interrupted ingest has written there; an ingest is resumed with the same rows, so begin a new one "
                    'with mode="create"'
                )
        self.next += count

    def close(self) -> None:
        """Let go of the files."""
        self._readers.clear()
        self._shared.close()

    def _same(self, name: str, values: Values, start: int, stop: int) -> bool:
        entry = self._columns[name].entry
        if isinstance(values, Ragged) != entry.field.is_ragged:
            return False
        values = contiguous(values, entry.field)
        if not isinstance(values, Ragged):
            return self._reader(entry.data).slice(start, stop).tobytes() == values.tobytes()
        assert entry.ranges is not None
        ranges = self._reader(entry.ranges).slice(start, stop)
        if not np.array_equal(ranges[:, 1] - ranges[:, 0], np.diff(values.offsets)):
            return False
        items = self._reader(entry.data).slice(int(ranges[0, 0]), int(ranges[-1, 1]))
        return items.tobytes() == values.values.tobytes()

    def _reader(self, entry: ArrayEntry) -> Reader:
        path = entry.layout.field.name
        if path not in self._readers:
            self._readers[path] = open_reader(self._directory, entry, self._shared)
        return self._readers[path]
