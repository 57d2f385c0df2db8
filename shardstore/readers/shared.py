"""`Shared`: what the readers of a store's columns have in common."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from shardstore.access import DEFAULT_ACCESS, AccessOptions, Budget
from shardstore.cache import BoundedCache
from shardstore.shardfile import OpenShard

# Decoded chunks by column and number.
ChunkCache = BoundedCache[tuple[str, int], NDArray[Any]]


class Shared:
    """What the readers of all columns of a store share.

    Attributes:
        budget: its memory budget.
        chunks: decoded chunks.
        shards: open files of compressed shards, by column and number.
    """

    _MAX_OPEN = 128  # of 1,024 descriptors that a process usually may have

    def __init__(self, options: AccessOptions = DEFAULT_ACCESS) -> None:
        self.budget = Budget(options)
        self.chunks: ChunkCache = BoundedCache(self.budget.cache_nbytes, lambda chunk: chunk.nbytes)
        self.shards: BoundedCache[tuple[str, int], OpenShard] = BoundedCache(self._MAX_OPEN, lambda shard: 1)
