"""Threads for decoding: compressors release the interpreter lock, so chunks decode side by side.

There is one small pool a process. It is made when several chunks are first asked for, and again in the child of a
fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shardstore.machine import cpu_count

_Item = TypeVar("_Item")
# Below this the hand-over costs more than a second thread gains.
_MIN_ITEMS = 4
_SHARES = 4

_pool: ThreadPoolExecutor | None = None


def for_each(function: Callable[[_Item], None], items: list[_Item]) -> None:
    """Call `function` for every item, on several threads if there are enough items; raise the first error."""
    global _pool
    threads = min(8, cpu_count())
    if threads == 1 or len(items) < _MIN_ITEMS:
        for item in items:
            function(item)
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(threads, "shardstore-decode")

    def run(share: list[_Item]) -> None:
        for item in share:
            function(item)

    # Neighbours in the file stay together; with a few shares a thread, none waits long for the slowest.
    size = -(-len(items) // (threads * _SHARES))
    futures = [_pool.submit(run, items[start : start + size]) for start in range(0, len(items), size)]
    for future in futures:
        future.exception()  # all are done before `out` goes back to the caller
    for future in futures:
        future.result()


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
