"""The footers of an array's shard files, and the error for a chunk that is not what was written."""

from __future__ import annotations

from shardstore.cache import BoundedCache
from shardstore.entries import ArrayEntry
from shardstore.errors import CorruptionError
from shardstore.readers.positional import ShardFiles
from shardstore.shardfile import RESTORE, ChunkError, Footer
from shardstore.shards import OpenShard

_CACHE_NBYTES = 32 << 20


class Footers:
    """The footers of an array's shard files, each read and checked against the manifest when it is first needed."""

    def __init__(self, files: ShardFiles, entry: ArrayEntry) -> None:
        self._files = files
        self._entry = entry
        # By shard and checksum: the file of the last shard may become a longer one.
        self._footers: BoundedCache[tuple[int, int], Footer] = BoundedCache(
            _CACHE_NBYTES, lambda footer: footer.bounds.nbytes + footer.checksums.nbytes
        )

    def get(self, shard: int, file: OpenShard) -> Footer:
        """Return the footer of a shard file, which `file` holds open.

        Raises:
            CorruptionError: if it is not the one that the manifest vouches for.
        """
        return self._footers.get((shard, file.shard.record.footer_crc32c), lambda key: file.read_footer())

    def damage(self, shard: int, error: ChunkError) -> CorruptionError:
        """Return the error that names the file, the chunk and the rows of a damaged chunk."""
        layout = self._entry.layout
        first = shard * layout.shard_rows + error.chunk * layout.chunk_rows
        last = min(first + layout.chunk_rows, self._entry.rows) - 1
        return CorruptionError(
            f"{self._files.path(shard)}, chunk {error.chunk} (rows {first:,} to {last:,}): {error}; {RESTORE}"
        )
