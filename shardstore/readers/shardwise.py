"""`ShardwiseReader`: a raw array through a mapping per shard, for platforms that have nothing better (Windows)."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.access import Budget
from shardstore.cache import BoundedCache
from shardstore.entries import ArrayEntry
from shardstore.readers.base import Reader, cut_runs, group_rows
from shardstore.selection import Rows
from shardstore.shards import ShardDirectory, open_shard


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
        with os.fdopen(open_shard(self._directory, self._entry, shard).descriptor, "rb") as file:
            return np.memmap(file, layout.field.dtype, "r", shape=shape).view(np.ndarray)

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Copy the given rows, a shard at a time."""
        for shard, positions, local in group_rows(rows, self._entry.layout.shard_rows):
            out[positions] = np.take(self._maps.get(shard, self._map), local, axis=0)

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Return a view; rows of several shards have to be copied."""
        layout = self._entry.layout
        out = np.empty((stop - start, *layout.field.row_shape), layout.field.dtype)
        for shard, first, last in cut_runs(start, stop, layout.shard_rows):
            before = shard * layout.shard_rows
            piece = self._maps.get(shard, self._map)[first - before : last - before]
            if len(piece) == len(out):
                return piece
            out[first - start : last - start] = piece  # and let go of the mapping before the next one
        out.flags.writeable = False
        return out
