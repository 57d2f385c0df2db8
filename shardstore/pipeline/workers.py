"""Workers: threads of our own, or any executor of the user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def executor_of(workers: int | Executor | None) -> Iterator[tuple[Executor, bool]]:
    """Give the executor to use, and whether it is one of our own threads.

    Raises:
        ValueError: if it is a number below 1.
    """
    if isinstance(workers, Executor):
        yield workers, False
        return
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers is {workers}; expected at least 1, or an Executor")
    with ThreadPoolExecutor(workers or default_workers(), "shardstore-ingest") as executor:
        yield executor, True


def default_workers() -> int:
    """Return how many threads an ingest has where nobody says it."""
    # More threads than cores: while one waits for the disk to take a finished shard, another copies.
    return min(8, (os.cpu_count() or 1) + 2)
