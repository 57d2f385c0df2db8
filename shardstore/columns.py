"""Writing columns: rows go into one shard file after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shardstore.manifest import ColumnEntry
from shardstore.schema import ColumnLayout
from shardstore.shardfile import ShardRecord, ShardWriter


class ColumnWriter:
    """Writes rows into a column's shard files, from shard `first_shard` on.

    A context manager: leaving it without `finish` removes the unfinished shard file.
    """

    def __init__(self, store: Path, layout: ColumnLayout, first_shard: int = 0) -> None:
        self._store = store
        self._layout = layout
        self._first_shard = first_shard
        self._shard: ShardWriter | None = None
        self._records: list[ShardRecord] = []

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


def column_entry(layout: ColumnLayout, records: Sequence[ShardRecord]) -> ColumnEntry:
    """Put the records of a column's shards, in order, into its manifest entry."""
    return ColumnEntry(
        layout,
        np.array([record.nbytes for record in records], np.int64),
        np.array([record.footer_crc32c for record in records], np.int64),
    )
