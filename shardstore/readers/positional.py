"""Rows read from open files by position, without a mapping: what they leave behind is in the page cache only."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from shardstore.entries import ArrayEntry
from shardstore.errors import CorruptionError
from shardstore.readers.base import Reader, cut_runs, group_rows
from shardstore.readers.shared import Shared
from shardstore.selection import Rows
from shardstore.shardfile import RESTORE
from shardstore.shards import OpenShard, ShardDirectory

# Windows has no such reads.
CAN_READ_BY_POSITION = hasattr(os, "preadv")


class ShardFiles:
    """The open shard files of an array, of which all arrays of a store share a bounded number."""

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, shared: Shared) -> None:
        self._directory = directory
        self._entry = entry
        self._shared = shared

    def get(self, shard: int) -> OpenShard:
        """Return a shard file, open for reading as long as the caller holds what this returns.

        Raises:
            CorruptionError: if it is missing or has another size than the manifest says.
            OSError: if the process may not open one more file.
        """
        name = self._entry.layout.field.name
        return self._shared.shard(name, shard, lambda: OpenShard(self._directory, self._entry, shard))

    def path(self, shard: int) -> Any:
        """Return where a shard file is."""
        return self._directory.path / self._entry.layout.shard_key(shard)


class PositionalReads:
    """Reads rows of a raw array from its files, each with one system call."""

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, shared: Shared) -> None:
        self._files = ShardFiles(directory, entry, shared)
        self._shard_rows = entry.layout.shard_rows
        self._row_nbytes = entry.layout.field.row_nbytes

    def read_rows(self, rows: Rows, out: NDArray[Any]) -> None:
        """Read rows, in their order, into the C-contiguous `out`."""
        nbytes = self._row_nbytes
        target = out.reshape(-1).view(np.uint8).data
        for shard, positions, local in group_rows(rows, self._shard_rows):
            file = self._files.get(shard)
            places = zip((positions * nbytes).tolist(), (local * nbytes).tolist(), strict=True)
            for place, offset in places:
                if os.preadv(file.descriptor, (target[place : place + nbytes],), offset) != nbytes:
                    self._became_shorter(shard)

    def read_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of consecutive rows, one after the other, into the C-contiguous `out`."""
        nbytes = self._row_nbytes
        target = out.reshape(-1).view(np.uint8).data
        place = 0
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            for shard, first, last in cut_runs(start, stop, self._shard_rows):
                end = place + (last - first) * nbytes
                self._read(shard, (first - shard * self._shard_rows) * nbytes, target[place:end])
                place = end

    def _read(self, shard: int, offset: int, target: memoryview) -> None:
        file = self._files.get(shard)
        while len(target):  # one call of Linux reads no more than 2 GiB
            count = os.preadv(file.descriptor, (target,), offset)
            if not count:
                self._became_shorter(shard)
            target, offset = target[count:], offset + count

    def _became_shorter(self, shard: int) -> NoReturn:
        raise CorruptionError(f"{self._files.path(shard)}: the shard file became shorter while it was read; {RESTORE}")


class PositionalReader(Reader):
    """Reads a raw array whose shards cannot all be mapped. Slices are copies."""

    slices_are_views = False

    def __init__(self, directory: ShardDirectory, entry: ArrayEntry, shared: Shared) -> None:
        super().__init__(entry.layout.field)
        self._reads = PositionalReads(directory, entry, shared)

    def take(self, rows: Rows, out: NDArray[Any]) -> None:
        """Read the given rows."""
        self._reads.read_rows(rows, out)

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Read consecutive rows into a fresh array."""
        return self.join_runs(np.array([start]), np.array([stop]))

    def take_runs(self, starts: Rows, stops: Rows, out: NDArray[Any]) -> None:
        """Read runs of rows."""
        self._reads.read_runs(starts, stops, out)
