"""One writer at a time: a lock on a store, which readers never take.

It is an advisory lock of the system on the store's directory, so it is free again as soon as its process is gone, also
where children of a fork live on. Where directories cannot be locked (Windows, some network file systems), a file
`.lock` in the store is.
"""

from __future__ import annotations

import errno
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardstore.errors import FormatError, LockedError
from shardstore.locks import without_forks

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_FILE = ".lock"
_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
# What systems say that lock only files open for writing, or no directories.
_NO_LOCK = (errno.EBADF, errno.EINVAL, errno.EISDIR, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def store_lock(store: Path) -> Iterator[None]:
    """Hold the lock of the store at a directory.

    Raises:
        LockedError: if somebody else holds it, in this process or in another one.
        FormatError: if there is no such directory.
    """
    with without_forks:
        descriptor = _lock(store)
        # Whoever overwrites the store holds the lock while its name goes to another directory.
        while not _names(store, descriptor):
            os.close(descriptor)
            descriptor = _lock(store)
        held = _Held(descriptor)
    try:
        yield
    finally:
        held.release()


class _Held:
    """A locked descriptor. A child of a fork closes it: it may outlive the lock's process, and must not unlock."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        _all_held.add(self)

    def release(self) -> None:
        """Unlock the store, unless this is a child of the process that holds the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            _unlock(descriptor)
            os.close(descriptor)

    def abandon(self) -> None:
        """Leave the lock to the process that was forked."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_all_held: weakref.WeakSet[_Held] = weakref.WeakSet()


def _abandon_all() -> None:
    for held in _all_held:
        held.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


def _lock(store: Path) -> int:
    try:
        if sys.platform != "win32":
            descriptor = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
            if _try_lock(store, descriptor):
                return descriptor
        return _lock_file(store)
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(f"{store}: not a shardstore store: no such directory") from None


def _lock_file(store: Path) -> int:
    descriptor = os.open(store / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    if not _try_lock(store, descriptor):
        raise OSError(errno.ENOLCK, "the file system has no locks", str(store))
    return descriptor


def _try_lock(store: Path, descriptor: int) -> bool:
    """Lock an open file, or close it: return False where it cannot be locked; raise `LockedError` if it is."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        status = os.fstat(descriptor)
        os.close(descriptor)
        if error.errno in _HELD:
            raise LockedError(
                f"{store}: the store is being changed by {_holder(status)}, and only one writer may at a time: wait "
                "until it has finished, or end it, and try again"
            ) from None
        if error.errno in _NO_LOCK:
            return False
        raise
    return True


def _holder(locked: os.stat_result) -> str:
    """Say who holds the lock of a file, as far as the system tells (Linux does)."""
    place = f"{os.major(locked.st_dev):02x}:{os.minor(locked.st_dev):02x}:{locked.st_ino}"
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        pid = next(int(fields[4]) for fields in lines if fields[1] == "FLOCK" and fields[5] == place)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (OSError, StopIteration, ValueError, IndexError):
        return "another writer"
    if pid == os.getpid():
        return f"another writer of this process ({pid})"
    words = " ".join(words.split())[:80]
    return f"process {pid} ({words})" if words else f"process {pid}"


def _unlock(descriptor: int) -> None:
    # Not left to closing it: a child that Python did not fork may hold the descriptor, too.
    if sys.platform == "win32":
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _names(store: Path, descriptor: int) -> bool:
    """Whether a store's name still leads to what was locked."""
    locked = os.fstat(descriptor)
    for path in (store, store / LOCK_FILE):
        try:
            if os.path.samestat(path.stat(), locked):
                return True
        except OSError:
            continue
    return False
