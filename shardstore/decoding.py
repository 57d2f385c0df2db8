"""Threads for decoding: compressors release the interpreter lock, so chunks decode side by side.

There is one small pool a process. It is made when several chunks are first asked for, and again in the child of a
fork; its threads end when nobody holds a `Decoders` any more.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shardstore.machine import cpu_count

_Item = TypeVar("_Item")
# Below this the hand-over costs more than a second thread gains.
_MIN_ITEMS = 4
_SHARES = 4
DECODING_THREADS = "shardstore-decode"


class Decoders:
    """The threads that decode. Get them by `decoders()`, and hold on to them for as long as there may be work."""

    def __init__(self) -> None:
        self._threads = min(8, cpu_count())
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def for_each(self, function: Callable[[_Item], None], items: list[_Item]) -> None:
        """Call `function` for every item, on several threads if there are enough items; raise the first error."""
        if self._threads == 1 or len(items) < _MIN_ITEMS:
            for item in items:
                function(item)
            return
        if self._pool is None or self._process != os.getpid():  # in the child of a fork there are no threads
            self._pool, self._process = ThreadPoolExecutor(self._threads, DECODING_THREADS), os.getpid()

        def run(share: list[_Item]) -> None:
            for item in share:
                function(item)

        # Neighbours in the file stay together; with a few shares a thread, none waits long for the slowest.
        size = -(-len(items) // (self._threads * _SHARES))
        futures = [self._pool.submit(run, items[start : start + size]) for start in range(0, len(items), size)]
        for future in futures:
            future.exception()  # all are done before `out` goes back to the caller
        for future in futures:
            future.result()


_shared: weakref.ref[Decoders] | None = None


def decoders() -> Decoders:
    """Return the threads that all readers of this process share."""
    global _shared
    found = None if _shared is None else _shared()
    if found is None:
        found = Decoders()
        _shared = weakref.ref(found)
    return found
