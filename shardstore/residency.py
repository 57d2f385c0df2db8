"""What of files is in memory: in the page tables of this process, and in the page cache, whoever brought it there."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterable
from functools import cache

import numpy as np

from shardstore.paging import PAGE, cached_pages, tells_cached

_CACHESTAT = 451  # the same number on every architecture of Linux
# _IOWR('f', 16, struct pm_scan_arg), and its category of pages that are there.
_PAGEMAP_SCAN = 0xC0606610
_IS_PRESENT = 1 << 3
_REGIONS_AT_ONCE = 4096
# A word of /proc/self/pagemap has this bit where the page is there.
_PRESENT = 63
_WORD = 8
_WORDS_AT_ONCE = 1 << 16


class _Scan(ctypes.Structure):
    """Linux' `struct pm_scan_arg`."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages"),
            *("category_inverted", "category_mask", "category_anyof_mask", "return_mask"),
        )
    )


class _CacheRange(ctypes.Structure):
    """Linux' `struct cachestat_range`; a length of 0 is all that follows."""

    _fields_ = (("off", ctypes.c_uint64), ("len", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    """Linux' `struct cachestat`, in pages."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted"))


def resident_nbytes(ranges: Iterable[tuple[int, int]]) -> int | None:
    """Return how many bytes of ranges of addresses this process has in its page tables; None where it is not told.

    It is exact, to the page. Linux 6.7 lists what is there; for older versions the cost grows with the ranges instead:
    about a millisecond a gigabyte.

    Args:
        ranges: address and bytes of each, whole pages.
    """
    if sys.platform != "linux":
        return None
    total = 0
    try:
        descriptor = os.open("/proc/self/pagemap", os.O_RDONLY)
    except OSError:
        return None
    try:
        for address, nbytes in _joined(ranges):
            found = _scanned(descriptor, address, nbytes)
            total += _counted(descriptor, address, nbytes) if found is None else found
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return total


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges with those put together that lie side by side, as the shards of a column often do."""
    joined: list[tuple[int, int]] = []
    for address, nbytes in sorted(ranges):
        if joined and sum(joined[-1]) == address:
            joined[-1] = joined[-1][0], joined[-1][1] + nbytes
        else:
            joined.append((address, nbytes))
    return joined


def _scanned(pagemap: int, address: int, nbytes: int) -> int | None:
    """Ask for the resident stretches of a range; None where the system cannot list them."""
    regions = np.zeros((_REGIONS_AT_ONCE, 3), np.uint64)  # struct page_region: start, end, categories
    start, end, total = address, address + nbytes, 0
    while start < end:
        scan = _Scan(
            size=ctypes.sizeof(_Scan),
            start=start,
            end=end,
            vec=regions.ctypes.data,
            vec_len=len(regions),
            category_mask=_IS_PRESENT,
            return_mask=_IS_PRESENT,
        )
        count = _libc().ioctl(pagemap, ctypes.c_ulong(_PAGEMAP_SCAN), ctypes.byref(scan))
        if count < 0 or scan.walk_end <= start:
            return None
        begins, ends = regions[:count, 0].astype(np.int64), regions[:count, 1].astype(np.int64)
        # Where page tables change meanwhile, the system may list a stretch twice.
        seen = np.maximum.accumulate(np.concatenate([[start], ends]))[:-1]
        total += int(np.maximum(ends - np.maximum(begins, seen), 0).sum())
        start = int(scan.walk_end)
    return total


def _counted(pagemap: int, address: int, nbytes: int) -> int:
    """Count the resident pages of a range one by one."""
    first, count, found = address // PAGE, -(-nbytes // PAGE), 0
    for start in range(0, count, _WORDS_AT_ONCE):
        size = min(_WORDS_AT_ONCE, count - start) * _WORD
        words = np.frombuffer(os.pread(pagemap, size, (first + start) * _WORD), np.uint64)
        found += int((words >> np.uint64(_PRESENT)).sum())
    return found * PAGE


def cached_nbytes(descriptor: int) -> int | None:
    """Return how many bytes of an open file are in the page cache; None where the system does not tell this user."""
    status = os.fstat(descriptor)
    if sys.platform != "linux" or not status.st_size:
        return None if sys.platform != "linux" else 0
    found = _CacheStat()
    whole = ctypes.byref(_CacheRange(0, 0))
    if _libc().syscall(_CACHESTAT, descriptor, whole, ctypes.byref(found), 0) == 0:
        return int(min(found.cache * PAGE, status.st_size))
    if not tells_cached(status):  # before Linux 6.5, or where it was refused
        return None
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        pages = cached_pages(view.ctypes.data, status.st_size)
        del view  # it holds the map open
    return None if pages is None else min(int(pages.sum()) * PAGE, status.st_size)


def drop_cached(descriptor: int) -> None:
    """Let go of an open file's pages in the page cache, but for those that somebody has mapped or not yet written.

    Raises:
        OSError: if the system refuses, or has no such call.
    """
    if not hasattr(os, "posix_fadvise"):
        raise OSError("this platform cannot let go of a file's pages in the page cache")
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
