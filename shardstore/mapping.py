"""All shard files of a raw column behind one another in one range of addresses.

A range is reserved with a mapping that nothing may touch; each shard file is then mapped over its own part of it.
The whole column is so one array: slices across shards need no copy, and one `np.take` serves any rows.

A mapping begins at a page. Where a shard's rows are not whole pages, shards are spaced by the next multiple of
lcm(page, row bytes), and the array has *phantom rows* between them that no row number leads to.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.locks import ForkSafeLock
from shardstore.machine import max_map_count

_PROT_NONE = 0
_HUGE_PAGE = 2 << 20
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
_FAILED = ctypes.c_void_p(-1).value


class CannotMapError(Exception):
    """The system has no such call, or no room for the mappings; plain mappings serve instead."""


def spacing_nbytes(shard_nbytes: int, row_nbytes: int) -> int:
    """Return the distance of shards in the range: whole pages and whole rows."""
    unit = math.lcm(mmap.ALLOCATIONGRANULARITY, row_nbytes)
    return -(-shard_nbytes // unit) * unit


class MappedFiles:
    """Files mapped one behind the other, read-only, each when it is first needed.

    Args:
        open_file: opens file *i* and returns a descriptor; the file must be at least as long as what is mapped of it.
        data_nbytes: how many bytes of each file to map, from its beginning.
        spacing: distance of their beginnings, in bytes; a multiple of the page size, at least each of `data_nbytes`.
        confirm: called after files were opened and before anybody reads them; raises if they must not be read.

    Attributes:
        data: uint8 `((files - 1) · spacing + data_nbytes[-1],)`, read-only. Only bytes of files that `ensure` has
            mapped may be touched. The mapping lives as long as any array that shows it.
        address: where the range begins.
        span_nbytes: its length in bytes, gaps and what is not mapped yet among them.
        count: how many files there are.

    Raises:
        CannotMapError: if the system cannot do this.
    """

    def __init__(
        self, open_file: Callable[[int], int], data_nbytes: Sequence[int], spacing: int, confirm: Callable[[], None]
    ) -> None:
        count = len(data_nbytes)
        self._data_nbytes = data_nbytes
        self._spacing = spacing
        self._mmap, munmap = _calls()
        length = (count - 1) * spacing + self._pages(data_nbytes[-1])
        self._usage = _Usage()
        self._usage.become(self._mappings(1))  # fails here, rather than with the first row
        reserved = length + _HUGE_PAGE
        start = self._mmap(None, reserved, _PROT_NONE, _reserved_flags(), -1, 0)
        if start == _FAILED:
            self._usage.become(0)
            raise CannotMapError(f"no range of {reserved:,} addresses: {os.strerror(ctypes.get_errno())}")
        # Aligned, so that the kernel can map the page cache's large folios as huge pages: random rows then cost
        # fewer page walks, as they do in NumPy's own large arrays.
        base = -(-start // _HUGE_PAGE) * _HUGE_PAGE
        holder = (ctypes.c_ubyte * length).from_address(base)
        weakref.finalize(holder, _release, munmap, start, reserved, self._usage).atexit = False
        # A read-only memoryview in between: nobody can make the array writable again, which would end in a signal.
        self.data = np.frombuffer(memoryview(holder).toreadonly(), np.uint8, (count - 1) * spacing + data_nbytes[-1])
        self.address = base
        self.span_nbytes = length
        self.count = count
        self._open_file = open_file
        self._confirm = confirm
        self._mapped = np.zeros(count, np.bool_)
        self._complete = False
        self._lock = ForkSafeLock()

    @property
    def nbytes(self) -> int:
        """Bytes of all files' data, mapped or not."""
        return sum(self._data_nbytes)

    def range_of(self, i: int) -> tuple[int, int]:
        """Return the address of a file's pages, and their bytes."""
        return self.address + i * self._spacing, self._pages(self._data_nbytes[i])

    def ranges(self) -> list[tuple[int, int]]:
        """Return address and bytes of the pages of each file that is mapped."""
        return [self.range_of(i) for i in np.flatnonzero(self._mapped).tolist()]

    @property
    def complete(self) -> bool:
        """Whether all files are mapped, so that `ensure` has nothing left to do."""
        return self._complete

    def ensure(self, files: NDArray[np.int64]) -> None:
        """Map those of the given files that are not yet mapped; raise `CannotMapError` if the system refuses."""
        if self._mapped[files].all():
            return
        needed = np.zeros(len(self._mapped), np.bool_)
        needed[files] = True
        with self._lock:
            missing = np.flatnonzero(needed & ~self._mapped)
            self._usage.become(self._mappings(int(self._mapped.sum()) + len(missing)))
            for i in missing.tolist():
                self._map(i)
            self._confirm()  # once for all of them: it costs as much as opening several
            self._mapped[missing] = True
            self._complete = bool(self._mapped.all())

    def _mappings(self, mapped: int) -> int:
        """Return how many mappings the system counts at most for so many mapped files, gaps among them."""
        count = len(self._data_nbytes)
        gaps = mapped if self._spacing > self._pages(self._data_nbytes[0]) else min(mapped + 1, count - mapped)
        return mapped + gaps

    @staticmethod
    def _pages(nbytes: int) -> int:
        """Return the bytes of the pages that hold `nbytes`."""
        return -(-nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY

    def _map(self, i: int) -> None:
        place, nbytes = self.address + i * self._spacing, self._data_nbytes[i]
        descriptor = self._open_file(i)
        try:
            mapped = self._mmap(place, nbytes, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, 0)
            error = ctypes.get_errno()
        finally:
            os.close(descriptor)
        if mapped != place:
            # Keep the place reserved: the failed call may have left a hole that another mapping could fall into.
            self._mmap(place, self._pages(nbytes), _PROT_NONE, _reserved_flags() | _MAP_FIXED, -1, 0)
            raise CannotMapError(f"cannot map {nbytes:,} bytes: {os.strerror(error)}")


def _reserved_flags() -> int:
    return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


def _release(munmap: Any, base: int, length: int, usage: _Usage) -> None:
    munmap(base, length)
    usage.become(0)


class _Usage:
    """Mappings that one range has taken of the process's."""

    def __init__(self) -> None:
        self._count = 0

    def become(self, count: int) -> None:
        """Have so many; raise `CannotMapError` if there are not enough."""
        _budget.change(count - self._count)
        self._count = count


class _Budget:
    """Keeps this process below three quarters of the mappings that Linux allows it (`vm.max_map_count`)."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._used = 0

    def change(self, count: int) -> None:
        """Use so many more, or fewer."""
        with self._lock:
            if count > 0 and self._used + count > max_map_count() * 3 // 4:
                raise CannotMapError(
                    f"{count:,} more mappings would come near the {max_map_count():,} that vm.max_map_count allows"
                )
            self._used += count


_budget = _Budget()


@cache
def _calls() -> tuple[Any, Any]:
    """Return the C library's mmap and munmap."""
    if os.name != "posix" or ctypes.sizeof(ctypes.c_void_p) < 8:
        raise CannotMapError("this platform cannot map files at chosen addresses")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc.mmap, libc.munmap
