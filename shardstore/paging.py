"""What the system is told, and asked, about the pages of mapped files.

Every call is advice: where a platform lacks it, nothing happens, and rows are read as they would be without it.
Addresses are those of mapped, readable pages; nothing here touches their bytes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

if sys.platform != "win32":
    import resource

PAGE = mmap.PAGESIZE
_PROCESS_MADVISE = 440  # the same on every architecture of Linux, like all system calls since 5.1
_PIDFD_OPEN = 434
_MAX_RANGES = 1024  # of one system call (IOV_MAX)
_MAX_ASKED = 128 << 10  # of one range: the least read-ahead that is usual


class Advice(IntEnum):
    """Advice of Linux' madvise(2). Other systems have other numbers, and are given the first one only."""

    WILLNEED = 3
    # On a shared file mapping the pages go from the process, not from the page cache. Elsewhere it may do less.
    DONTNEED = 4
    POPULATE_READ = 22


def advise(address: int, nbytes: int, advice: Advice) -> bool:
    """Give advice about whole pages; return whether the system took it."""
    call = _madvise()
    if call is None or not nbytes or (sys.platform != "linux" and advice > Advice.WILLNEED):
        return False
    done: bool = call(address, nbytes, advice) == 0
    return done


def ask_for(starts: NDArray[np.int64], nbytes: int | NDArray[np.int64]) -> None:
    """Have the system read some stretches of mapped files into the page cache, without waiting for them.

    Args:
        starts: int64, the address of each stretch.
        nbytes: the length of each of them, or of all, in bytes.
    """
    first = starts & -PAGE
    lengths = ((starts + (nbytes + PAGE - 1)) & -PAGE) - first
    if len(lengths) and lengths.max() > _MAX_ASKED:
        # Of one range, the system reads no more than a device's read-ahead, and forgets about the rest.
        pieces = -(-lengths // _MAX_ASKED)
        number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        lengths = np.minimum(np.repeat(lengths, pieces) - number * _MAX_ASKED, _MAX_ASKED)
        first = np.repeat(first, pieces) + number * _MAX_ASKED
    ranges = np.stack([first, lengths], axis=1)
    if not _ask_at_once(ranges):
        for address, length in ranges.tolist():
            advise(address, length, Advice.WILLNEED)


def _ask_at_once(ranges: NDArray[np.int64]) -> bool:
    """Ask for int64 `(n, 2)` addresses and lengths by few system calls; return False where there is none for that."""
    call = _vectored_madvise()
    if call is None:
        return False
    for start in range(0, len(ranges), _MAX_RANGES):
        part = ranges[start : start + _MAX_RANGES]
        if call(part.ctypes.data, len(part)) < 0:
            return False
    return True


def cached_share(addresses: Iterable[int]) -> float | None:
    """Return which share of the pages at some page addresses is in the page cache; None where the system hides it."""
    call = _mincore()
    if call is None:
        return None
    seen = ctypes.c_ubyte()
    place = ctypes.byref(seen)
    count = found = 0
    for address in addresses:
        if call(address, PAGE, place):
            return None
        count += 1
        found += seen.value & 1
    return found / count if count else None


def cached_pages(address: int, nbytes: int) -> NDArray[np.bool_] | None:
    """Return which pages of a range are in the page cache, whoever brought them there; None where that is not told."""
    call = _mincore()
    seen = np.empty(-(-nbytes // PAGE), np.uint8)
    if call is None or call(address, nbytes, seen.ctypes.data):
        return None
    return (seen & 1).astype(np.bool_)


def tells_cached(status: os.stat_result) -> bool:
    """Whether the system says which pages of a file are cached: to its owner, and to who may write to it.

    Others are told that all are.
    """
    if sys.platform != "linux":
        return False
    mode = status.st_mode
    by_group = mode & stat.S_IWGRP and status.st_gid in (os.getegid(), *os.getgroups())
    return os.geteuid() in (0, status.st_uid) or bool(by_group or mode & stat.S_IWOTH)


@cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    libc = _libc()
    if libc is None or not hasattr(libc, "madvise"):
        return None
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc.madvise


@cache
def _mincore() -> Callable[[int, int, Any], int] | None:
    libc = _libc()
    if sys.platform != "linux" or libc is None:
        return None
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return libc.mincore


def _vectored_madvise() -> Callable[[int, int], int] | None:
    return _vectored_madvise_of(os.getpid())  # the descriptor is that of one process, not of its children


@cache
def _vectored_madvise_of(process: int) -> Callable[[int, int], int] | None:
    """Return process_madvise(2), which takes many ranges at once (Linux 5.10), for this process, asking for pages."""
    libc = _libc()
    if sys.platform != "linux" or libc is None:
        return None
    number = ctypes.c_long
    descriptor = libc.syscall(number(_PIDFD_OPEN), number(process), number(0))
    if descriptor < 0:
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = (number, number, ctypes.c_void_p, ctypes.c_size_t, number, number)

    def ask(ranges: int, count: int) -> int:
        advised: int = syscall(_PROCESS_MADVISE, descriptor, ranges, count, Advice.WILLNEED, 0)
        return advised

    return ask


def resident_file_nbytes() -> int | None:
    """Return how many bytes of files this process has resident, shared memory among them; None where it is not told."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123, a path's own open costs more
            return int(file.read().split()[2]) * PAGE
    except (OSError, ValueError, IndexError):
        return None


def major_faults() -> int | None:
    """Return how often this process has waited for the disk in a page fault; None where the system does not tell."""
    return None if sys.platform == "win32" else resource.getrusage(resource.RUSAGE_SELF).ru_majflt
