"""Rows a second, measured for a limited time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

_WINDOWS = 3


@dataclass(frozen=True)
class Rate:
    """What was taken, and how long it took.

    Attributes:
        count: rows or bytes.
        seconds: the time.
        per_second: the rate: of the whole, or the median of parts of it.
    """

    count: int
    seconds: float
    per_second: float


def run_once(counts: Iterator[int], seconds: float) -> Rate:
    """Take counts until there are no more or the time is up: what cannot be repeated, such as a cold run."""
    begin, total = time.perf_counter(), 0
    for count in counts:
        total += count
        if time.perf_counter() - begin > seconds:
            break
    taken = max(time.perf_counter() - begin, 1e-9)
    return Rate(total, taken, total / taken)


def run_steadily(counts: Iterator[int], seconds: float) -> Rate:
    """Take counts from an endless iterator; the rate is the median of three windows of time.

    What comes first is taken before the time begins: it also opens files and starts threads.
    """
    next(counts)
    parts = [run_once(counts, seconds / _WINDOWS) for _ in range(_WINDOWS)]
    rate = statistics.median(part.per_second for part in parts)
    return Rate(sum(part.count for part in parts), sum(part.seconds for part in parts), rate)
