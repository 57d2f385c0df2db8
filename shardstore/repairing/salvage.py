"""One shard file from what is left of it, as far as the footer checksum in the manifest proves it right."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardstore.repairing.frames import chunk_ends
from shardstore.schema import ArrayLayout
from shardstore.shardfile import Footer, ShardRecord, footer_checksum, footer_nbytes, read_at

_COPIED_AT_ONCE = 8 << 20


@dataclass(frozen=True)
class Remains:
    """A damaged shard file, and what is known of the one that was written.

    Attributes:
        descriptor: the open file.
        layout: how its array is cut.
        record: its size and the checksum of its footer, from the manifest.
        rows: how many rows it holds.
    """

    descriptor: int
    layout: ArrayLayout
    record: ShardRecord
    rows: int

    def write(self, path: Path) -> bool:
        """Write the file anew, with its footer as it was; chunks are copied as they are now.

        What stands behind the last row of a raw shard is zero, and the footer made again from the chunks, or the parts
        of it that are left: whichever the manifest proves right.

        Returns:
            False if no footer can be proven right; then there is no file.
        """
        footer = self._footer()
        if footer is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for start in range(0, self._data_nbytes, _COPIED_AT_ONCE):
                file.write(self._read(start, min(_COPIED_AT_ONCE, self._data_nbytes - start)))
            file.write(footer.to_bytes(self.layout.slots))
            file.flush()
            os.fsync(file.fileno())
        return True

    @property
    def _data_nbytes(self) -> int:
        return self.record.nbytes - footer_nbytes(self.layout.slots)

    def _read(self, offset: int, nbytes: int) -> bytes:
        """Read chunks; what the file no longer has is zero, and so is what stands behind the last row."""
        end = self.rows * self.layout.field.row_nbytes if self.layout.codec.is_raw else self._data_nbytes
        return read_at(self.descriptor, max(0, min(nbytes, end - offset)), offset).ljust(nbytes, b"\0")

    def _read_stored(self, offset: int, nbytes: int) -> bytes:
        return read_at(self.descriptor, nbytes, offset)

    def _footer(self) -> Footer | None:
        slots, chunks = self.layout.slots, self.layout.chunks_for(self.rows)
        size = footer_nbytes(slots)
        left = read_at(self.descriptor, size, self._data_nbytes).ljust(size, b"\0")
        kept = np.frombuffer(left, "<u4", chunks)
        for bounds in self._possible_bounds(left, chunks):
            if int(bounds[-1]) != self._data_nbytes:
                continue
            for checksums in (lambda: kept, lambda bounds=bounds: self._checksums(bounds)):
                footer = Footer(bounds, checksums())
                if footer_checksum(footer.to_bytes(slots)) == self.record.footer_crc32c:
                    return footer
        return None

    def _possible_bounds(self, left: bytes, chunks: int) -> Iterator[NDArray[np.uint64]]:
        """Yield where the chunks may lie: as the rows want it, as the index says, or as their own bytes say."""
        layout = self.layout
        if layout.codec.is_raw:
            yield np.arange(chunks + 1, dtype=np.uint64) * np.uint64(layout.chunk_nbytes)
            return
        sizes = np.frombuffer(left, "<u8", 2 * chunks, 4 * layout.slots).reshape(chunks, 2)[:, 1]
        if (sizes <= self._data_nbytes).all():
            yield np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)])
        ends = list(chunk_ends(layout.codec, self._read_stored, chunks, layout.chunk_nbytes))
        if len(ends) == chunks:
            yield np.array([0, *ends], np.uint64)

    def _checksums(self, bounds: NDArray[np.uint64]) -> NDArray[np.uint32]:
        stored = (self._read(begin, end - begin) for begin, end in pairwise(bounds.tolist()))
        return np.array([self.layout.codec.checksum(chunk) for chunk in stored], np.uint32)
