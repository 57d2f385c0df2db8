"""Which reader suits an array."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.entries import ArrayEntry
from shardstore.mapping import CannotMapError
from shardstore.readers.base import Reader
from shardstore.readers.checked import CheckedReader
from shardstore.readers.chunked import ChunkReader
from shardstore.readers.contiguous import ContiguousReader
from shardstore.readers.positional import CAN_READ_BY_POSITION, PositionalReader
from shardstore.readers.shardwise import ShardwiseReader
from shardstore.readers.shared import Shared
from shardstore.selection import Rows
from shardstore.shards import ShardDirectory, check_shards

_log = logging.getLogger("shardstore")


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
    check_shards(directory, entry)
    if not layout.codec.is_raw:
        return ChunkReader(directory, entry, shared)
    reader = _open_raw(directory, entry, shared, contiguous)
    if shared.budget.options.verify == "on_read":
        return CheckedReader(reader, directory, entry, shared)
    return reader


def _open_raw(directory: ShardDirectory, entry: ArrayEntry, shared: Shared, contiguous: bool) -> Reader:
    if contiguous:
        try:
            return ContiguousReader(directory, entry, shared)
        except CannotMapError as error:
            warn_of_maps(directory.path, entry, error)
    if CAN_READ_BY_POSITION:
        return PositionalReader(directory, entry, shared)
    return ShardwiseReader(directory, entry, shared.budget)


def warn_of_maps(path: Path, entry: ArrayEntry, error: CannotMapError) -> None:
    """Say that an array is not mapped; not where the platform has nothing else."""
    if CAN_READ_BY_POSITION:
        _log.warning(
            "%s: the %s shard files of column %r cannot be mapped at once (%s). Their rows are read with a system call "
            "each, which is slower; where mappings ran out, raise vm.max_map_count, or write larger shard_bytes",
            path, f"{len(entry.nbytes):,}", entry.layout.field.name, error,
        )  # fmt: skip


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
