"""Arrays that are handed out again once nobody holds them.

Large arrays that are made and dropped again and again cost more than what is written to them: the system gives each one
fresh pages and zeroes them. A pool keeps the memory of the last few, and counts references: as long as anything shows a
part of an array (a batch, a tensor, a view of either), it is not handed out again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
# So many arrays of a column are kept: that which is filled, those that wait, and that which the consumer has.
_KEPT = 4
# What is smaller comes from the allocator's own lists of free memory, without new pages.
_MIN_NBYTES = 256 << 10


class Allocate(Protocol):
    """Makes arrays, whose contents do not matter: `np.empty`, or `BufferPool.empty`."""

    def __call__(self, shape: Sequence[int], dtype: np.dtype[Any], /) -> NDArray[Any]:
        """Return a C-contiguous array."""


def _fresh(nbytes: int) -> Bytes:
    return np.empty(nbytes, np.uint8)


class BufferPool:
    """Makes arrays from memory that earlier ones of about the same size have left. For one thread at a time.

    Args:
        allocate: makes a uint8 array of so many bytes.
    """

    def __init__(self, allocate: Callable[[int], Bytes] = _fresh) -> None:
        self._allocate = allocate
        self._kept: dict[int, list[Bytes]] = {}

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a C-contiguous array, whose contents do not matter."""
        nbytes = prod(shape) * dtype.itemsize
        if nbytes < _MIN_NBYTES or _UNSHARED is None:
            return np.empty(shape, dtype)
        unit = 1 << max(0, nbytes.bit_length() - 3)  # blocks of about one size share memory
        size = -(-nbytes // unit) * unit
        kept = self._kept.setdefault(size, [])
        free = _first_unshared(kept, _UNSHARED)
        if free is None:
            kept.append(self._allocate(size))
            free = len(kept) - 1
        memory = kept[free]
        if len(kept) > _KEPT:
            kept.pop(0)  # its holders keep it as long as they like
        array: NDArray[Any] = memory[:nbytes].view(dtype).reshape(shape)
        return array


def _first_unshared(arrays: list[Bytes], unshared: int) -> int | None:
    """Return the number of the first array that nothing else refers to."""
    for i in range(len(arrays)):
        if sys.getrefcount(arrays[i]) <= unshared:
            return i
    return None


def _unshared_count() -> int | None:
    """Return what the interpreter counts for an array in a list that nothing else refers to; None if it cannot tell."""
    # Without the global lock, counts of other threads are not to be had.
    if not hasattr(sys, "getrefcount") or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return None
    arrays = [np.empty(1, np.uint8)]
    counts = {count for count in range(8) if _first_unshared(arrays, count) is not None}
    return min(counts) if counts else None


_UNSHARED = _unshared_count()
