"""Which reader suits an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.entries import ArrayEntry
from shardstore.mapping import CannotMapError
from shardstore.readers.base import Reader
from shardstore.readers.chunked import ChunkReader
from shardstore.readers.contiguous import ContiguousReader
from shardstore.readers.shardwise import ShardwiseReader, warn_of_maps
from shardstore.readers.shared import Shared
from shardstore.selection import Rows
from shardstore.shardfile import ShardDirectory, check_shards


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
        return ChunkReader(directory, entry, shared)
    if contiguous:
        try:
            return ContiguousReader(directory, entry, shared.budget)
        except CannotMapError as error:
            warn_of_maps(directory.path, entry, error)
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
