"""The footers of an array's shard files, and the error for a chunk that is not what was written."""

from __future__ import annotations

from shardstore.cache import BoundedCache
from shardstore.entries import ArrayEntry
from shardstore.errors import CorruptionError
from shardstore.readers.positional import ShardFiles
from shardstore.shardfile import RESTORE, ChunkError, Footer, read_footer

_CACHE_NBYTES = 32 << 20


class Footers:
    """The footers of an array's shard files, each read and checked against the manifest when it is first needed."""

    def __init__(self, files: ShardFiles, entry: ArrayEntry) -> None:
        self._files = files
        self._entry = entry
        self._footers: BoundedCache[int, Footer] = BoundedCache(
            _CACHE_NBYTES, lambda footer: footer.bounds.nbytes + footer.checksums.nbytes
        )

    def get(self, shard: int) -> Footer:
        """Return the footer of a shard file.

        Raises:
            CorruptionError: if it is not the one that the manifest vouches for.
        """
        return self._footers.get(shard, self._read)

    def _read(self, shard: int) -> Footer:
        layout, file = self._entry.layout, self._files.get(shard)
        rows = layout.rows_in_shard(shard, self._entry.rows)
        return read_footer(file.descriptor, self._files.path(shard), layout, self._entry.record(shard), rows)

    def damage(self, shard: int, error: ChunkError) -> CorruptionError:
        """Return the error that names the file, the chunk and the rows of a damaged chunk."""
        layout = self._entry.layout
        first = shard * layout.shard_rows + error.chunk * layout.chunk_rows
        last = min(first + layout.chunk_rows, self._entry.rows) - 1
        return CorruptionError(
            f"{self._files.path(shard)}, chunk {error.chunk} (rows {first:,} to {last:,}): {error}; {RESTORE}"
        )
