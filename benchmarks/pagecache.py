"""The page cache of given files: dropped before a cold run, and looked at."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def files_of(path: Path) -> list[Path]:
    """Return a file, or all files below a directory."""
    return [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file())


def drop(paths: Iterable[Path]) -> None:
    """Write the files' pages to the disk and let go of those in the page cache.

    Raises:
        RuntimeError: if more than 1 % of their pages are still there (a process that maps them keeps them).
    """
    files = [file for path in paths for file in files_of(path)]
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    left, size = sum(map(resident_nbytes, files)), sum(file.stat().st_size for file in files)
    if left > size / 100:
        raise RuntimeError(f"{left:,} of {size:,} bytes are still in the page cache")


def resident_nbytes(path: Path) -> int:
    """Return how many bytes of a file's pages are in the page cache, as mincore tells."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
            view = np.frombuffer(mapped, np.uint8)
            failed = _libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), _address(pages))
            error = ctypes.get_errno()
            del view  # it holds the map open
    if failed:
        raise OSError(error, os.strerror(error), str(path))
    return int((pages & 1).sum()) * mmap.PAGESIZE


def warm(paths: Iterable[Path], single_pages: bool = False) -> None:
    """Read the files, so that they are in the page cache.

    Args:
        paths: files and directories.
        single_pages: whether the cache gets them page by page, as random access does, and not in large folios, which
            the kernel can map as huge pages.
    """
    buffer = bytearray(8 << 20)
    for path in paths:
        for file in files_of(path):
            with file.open("rb", buffering=0) as opened:
                if single_pages:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                while opened.readinto(buffer):
                    pass


def _address(array: NDArray[np.uint8]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


_libc = ctypes.CDLL(None, use_errno=True)
