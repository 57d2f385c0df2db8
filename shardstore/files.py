"""Directories and documents that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import stat
import sys
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
T = TypeVar("T")
_RELATIVE = os.open in os.supports_dir_fd and os.stat in os.supports_dir_fd
# Parsed, metadata takes some twenty times its bytes of memory.
MOST_METADATA_BYTES = 1 << 28


class UnfitFileError(OSError):
    """What has a file's name in a directory is not read; the message is what is wrong with it."""


class Directory:
    """An open directory. What is read through it belongs together, also after its name went to another directory.

    Nothing outside it is read: the directory itself may be reached by a symbolic link, but within it none is followed.
    Nor are devices and pipes opened, some of which never end or wait for a writer.

    Where the system cannot open files relative to a directory (Windows), names are looked up by path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._absolute_path = path.absolute()
        # A file's name is the prefix and its own; with a descriptor it is looked up from there.
        self._prefix = ""
        self._descriptor: int | None = None
        if _RELATIVE:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            weakref.finalize(self, os.close, self._descriptor).atexit = False
        elif path.is_dir():
            self._prefix = f"{self._absolute_path}{os.sep}"
        else:
            raise (NotADirectoryError if path.exists() else FileNotFoundError)(path)

    @property
    def outdated(self) -> str | None:
        """What happened to the directory since it was opened, if it is no longer what it was."""
        return "the store was replaced since it was opened" if self.replaced else None

    @property
    def replaced(self) -> bool:
        """Whether the directory's name has gone to another one since it was opened."""
        if self._descriptor is None:
            return False
        try:
            return not os.path.samestat(self._absolute_path.stat(), os.fstat(self._descriptor))
        except OSError:
            return False

    def open(self, name: str) -> int:
        """Open a file for reading and return its descriptor; raise `UnfitFileError` if it is no file in here."""
        mode = self._status(name, set()).st_mode
        if not stat.S_ISREG(mode):
            raise UnfitFileError(f"is a {kind_of_file(mode)}")
        return os.open(self._prefix + name, _READ, dir_fd=self._descriptor)

    def _status(self, name: str, folders: set[str]) -> os.stat_result:
        """Return what the system knows of a file, or else of the first link on the way to it.

        Of folders that are none, `folders` keeps the names.
        """
        for end in (i for i, letter in enumerate(name) if letter == "/"):
            folder = name[:end]
            if folder in folders:
                continue
            status = os.stat(self._prefix + folder, dir_fd=self._descriptor, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                return status
            folders.add(folder)
        return os.stat(self._prefix + name, dir_fd=self._descriptor, follow_symlinks=False)

    def confirm(self) -> None:
        """Say nothing: the files of an open directory are what they are."""

    def latest(self, entry: T) -> T:
        """Return what was given: nobody looks here for what others have changed."""
        return entry

    def stats(self, names: Iterable[str]) -> Iterator[os.stat_result | None]:
        """Yield what the system knows of each file, None if it is missing. Quick: a store has thousands.

        Of a file that is reached by a symbolic link it is what is known of the link.
        """
        folders: set[str] = set()
        for name in names:
            try:
                yield self._status(name, folders)
            except (FileNotFoundError, NotADirectoryError):
                yield None

    def read(self, name: str) -> bytes:
        """Return all of a metadata file; raise `UnfitFileError` if it is no file in here, or a very large one."""
        with os.fdopen(self.open(name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MOST_METADATA_BYTES:
                raise UnfitFileError(
                    f"has {size:,} bytes, more than the {MOST_METADATA_BYTES:,} that metadata may have"
                )
            return file.read()


def kind_of_file(mode: int) -> str:
    """Return what something is that is no file, in words."""
    if stat.S_ISLNK(mode):
        return "symbolic link, which is not followed within a store"
    return "directory" if stat.S_ISDIR(mode) else "pipe, socket or device"


class Witness:
    """Tells whether a file that was read still has its name, or the name went to another file since.

    It holds the file open, so that no later one can pass for it; except on Windows, where that would keep others from
    replacing it.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self._directory = directory
        self._name = name
        descriptor = directory.open(name)
        self._identity = _identity(os.fstat(descriptor))
        if os.name == "nt":
            os.close(descriptor)
        else:
            weakref.finalize(self, os.close, descriptor).atexit = False

    @property
    def stands(self) -> bool:
        """Whether the name has not gone to another file. A name that is gone has not."""
        (status,) = self._directory.stats((self._name,))
        return status is None or _identity(status) == self._identity


def _identity(status: os.stat_result) -> tuple[int, ...]:
    if os.name == "nt":
        return status.st_ino, status.st_mtime_ns, status.st_size
    return status.st_dev, status.st_ino


def fsync_directory(path: Path) -> None:
    """Bring a directory's entries to disk (Windows has no such call and needs none)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Bring the entries of a directory and of all below it to disk."""
    for folder, _, _ in os.walk(path):
        fsync_directory(Path(folder))


def remove_others(folder: Path, keep: Callable[[str], bool]) -> None:
    """Remove all files below a folder but some, known by their paths in it, and then the folders that are empty."""
    for parent, folders, names in os.walk(folder, topdown=False):
        links = [name for name in folders if Path(parent, name).is_symlink()]  # nothing is written through them
        removed = [
            path
            for path in (Path(parent, name) for name in [*names, *links])
            if not keep(path.relative_to(folder).as_posix())
        ]
        for path in removed:
            path.unlink()
        if removed:  # what comes next may rely on it
            fsync_directory(Path(parent))
        for name in folders:
            with suppress(OSError):  # which is not empty
                Path(parent, name).rmdir()


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that at any moment either the old bytes or the new ones stand under its name.

    The name itself is on disk once its directory is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_directory(destination: Path) -> Path:
    """Return a new, empty directory beside `destination`, in which a tree can be built before it gets that name."""
    _make_folder(destination.parent)
    path = destination.with_name(f"{destination.name}.partial-{uuid.uuid4().hex[:8]}")
    path.mkdir()
    return path


def _make_folder(path: Path) -> None:
    """Make a folder, and those that it lies in, so that their names are on disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_directory(folder.parent)


def partial_directories(destination: Path) -> list[Path]:
    """Return the directories beside `destination` in which trees for that name were, or are being, built.

    Among them are trees that had the name and were replaced: not those that nothing has replaced yet.
    """
    kinds = "partial|replaced" if destination.exists() else "partial"
    name = re.compile(rf"{re.escape(destination.name)}\.({kinds})-[0-9a-f]{{8}}")
    return [path for path in destination.parent.iterdir() if name.fullmatch(path.name) and path.is_dir()]


def publish_directory(partial: Path, destination: Path) -> None:
    """Give a finished directory its name, which must be free; raise `FileExistsError` if it is not."""
    # rename() would silently replace an empty directory.
    if destination.exists():
        raise FileExistsError(destination)
    try:
        partial.rename(destination)
    except OSError as error:
        if destination.exists():
            raise FileExistsError(destination) from error
        raise
    fsync_directory(destination.parent)


def swap_directory(partial: Path, destination: Path) -> None:
    """Put a finished directory in the place of `destination`, and remove the old one.

    On Linux the two change names in one step; elsewhere there is an instant in which the name is free.
    """
    old = partial
    if not _exchange(partial, destination):
        old = destination.with_name(f"{destination.name}.replaced-{uuid.uuid4().hex[:8]}")
        destination.rename(old)
        try:
            partial.rename(destination)
        except BaseException:
            old.rename(destination)  # better the old one than none
            raise
    fsync_directory(destination.parent)
    shutil.rmtree(old)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names with renameat2(2); return False where the system or the file system has no such call."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_fdcwd, exchange = -100, 2
    return rename is not None and rename(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), exchange) == 0
