"""`Shared`: what the readers of a store's columns have in common."""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray

from shardstore.access import DEFAULT_ACCESS, AccessOptions, Budget
from shardstore.cache import BoundedCache
from shardstore.machine import max_open_files
from shardstore.shards import OpenShard

_File = TypeVar("_File")

# Decoded chunks by column and number.
ChunkCache = BoundedCache[tuple[str, int], NDArray[Any]]


# Open shard files of all stores of this process, by a store's own token, column and number: so many at most, since a
# process usually may have 1,024 descriptors for everything.
_MAX_OPEN = max(32, min(1024, max_open_files() // 4))
_open_shards: BoundedCache[tuple[object, str, int], OpenShard] = BoundedCache(_MAX_OPEN, lambda shard: 1)


class Shared:
    """What the readers of all columns of a store share.

    Attributes:
        budget: its memory budget.
        chunks: decoded chunks.
        max_open: how many shard files can be held open at a time.
    """

    max_open = _MAX_OPEN

    def __init__(self, options: AccessOptions = DEFAULT_ACCESS) -> None:
        self.budget = Budget(options)
        self.chunks: ChunkCache = BoundedCache(self.budget.cache_nbytes, lambda chunk: chunk.nbytes)
        self._token = object()
        weakref.finalize(self, _forget, self._token).atexit = False

    def shard(self, column: str, number: int, load: Callable[[], OpenShard]) -> OpenShard:
        """Return a shard file, open as long as the caller holds what this returns; `load` opens it if it is not."""
        return _open_shards.get((self._token, column, number), lambda key: with_room(load))

    def close(self) -> None:
        """Close all files that nobody reads from, and count nothing any more."""
        self.budget.close()
        _forget(self._token)


def _forget(token: object) -> None:
    _open_shards.discard(lambda key: key[0] is token)


def with_room(load: Callable[[], _File]) -> _File:
    """Open a file; where the process has too many, close what is held here, and try again.

    Raises:
        OSError: if it still has too many, with what to do.
    """
    try:
        return load()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    _open_shards.clear()  # those that no thread reads from are closed
    try:
        return load()
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        message = "this process has too many open files to read one more: raise the limit (ulimit -n)"
        raise OSError(errno.EMFILE, message, error.filename) from None
