"""Every change that Python makes to the files below a folder, seen before it happens.

While a `Watch` is entered, its observer gets each call that changes something: files opened for writing, writes,
fsyncs, truncations, renames, links, removals, folders made. The observer lets it happen, or does something else.
Calls that would change nothing, such as making a folder that is there, are not shown.
"""

from __future__ import annotations

import builtins
import ctypes
import io
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock


@dataclass(frozen=True)
class Call:
    """A change that is about to be made.

    Attributes:
        name: "open", "write", "fsync", "truncate", "rename", "exchange", "link", "unlink", "rmdir" or "mkdir".
        path: what it is done to: an absolute path, which of an open file is the one it was opened by.
        target: the other path of a "rename", "exchange" or "link".
        handle: a number for each open of a file, the same for all that is done through it; 0 for calls by path.
        data: the bytes of a "write".
        offset: where in the file they go; the new size for "truncate".
        empties: whether an "open" leaves nothing of what was in the file.
    """

    name: str
    path: str
    target: str = ""
    handle: int = 0
    data: bytes = b""
    offset: int = 0
    empties: bool = False


# Gets a call and what makes it happen, which takes other bytes for a "write"; returns what that returns.
Observer = Callable[[Call, Callable[..., Any]], Any]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class _Open:
    """What is known of a descriptor."""

    path: str
    handle: int
    appends: bool = False


class Watch:
    """Shows an observer all changes below a folder. A context manager; one at a time in a process."""

    def __init__(self, folder: Path, observer: Observer) -> None:
        self._folder = os.path.realpath(folder)
        self._observer = observer
        self._patches = ExitStack()
        self._open: dict[int, _Open] = {}
        self._handles = 0
        # As they are before anything is replaced.
        self._os = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
        self._io_open = io.open
        self._library = ctypes.CDLL

    def __enter__(self) -> Self:
        watch = self

        class Library(self._library):  # type: ignore[name-defined, misc]
            def __getattr__(self, name: str) -> Any:
                function = super().__getattr__(name)
                return watch._renameat2(function) if name == "renameat2" else function

        replaced = {name[4:]: getattr(self, name) for name in dir(self) if name.startswith("_os_")}
        for name, function in replaced.items():
            if name in self._os:
                self._patches.enter_context(mock.patch.object(os, name, function))
        self._patches.enter_context(mock.patch.object(io, "open", self._opened))
        self._patches.enter_context(mock.patch.object(builtins, "open", self._opened))
        self._patches.enter_context(mock.patch.object(ctypes, "CDLL", Library))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patches.close()

    def show(self, call: Call, act: Callable[..., Any]) -> Any:
        """Show a call to the observer if it concerns the folder, else let it happen."""
        if not any(path == self._folder or path.startswith(self._folder + os.sep) for path in (call.path, call.target)):
            return act()
        return self._observer(call, act)

    def at(self, path: Any, dir_fd: int | None = None) -> str:
        """Return the absolute path that a call means."""
        if isinstance(path, int):
            return self._open[path].path if path in self._open else ""
        start = os.getcwd() if dir_fd is None else self._open[dir_fd].path if dir_fd in self._open else "/unknown"
        return os.path.normpath(os.path.join(start, os.fsdecode(path)))

    def note_open(self, descriptor: int, path: str, handle: int, appends: bool = False) -> None:
        """Remember what a descriptor leads to."""
        self._open[descriptor] = _Open(path, handle, appends)

    def note_close(self, descriptor: int) -> None:
        """Forget a descriptor."""
        self._open.pop(descriptor, None)

    def show_open(self, path: str, flags_or_mode: int | str, act: Callable[[], Any]) -> tuple[Any, int]:
        """Show an open for writing; return its result and the number that it has got."""
        self._handles += 1
        handle = self._handles
        empties = bool(flags_or_mode & os.O_TRUNC) if isinstance(flags_or_mode, int) else "w" in flags_or_mode
        return self.show(Call("open", path, handle=handle, empties=empties), act), handle

    def write(self, descriptor: int, data: Any, act: Callable[[Any], int], offset: int | None = None) -> int:
        """Show a write through a descriptor."""
        found = self._open.get(descriptor)
        if found is None:
            return act(data)
        if offset is None:
            end = self._os["fstat"](descriptor).st_size
            offset = end if found.appends else self._os["lseek"](descriptor, 0, os.SEEK_CUR)
        call = Call("write", found.path, handle=found.handle, data=bytes(data), offset=offset)
        return int(self.show(call, lambda other=data: act(other)))

    def truncate(self, descriptor: int, size: int, act: Callable[[], Any]) -> Any:
        """Show a change of size through a descriptor."""
        found = self._open.get(descriptor)
        if found is None:
            return act()
        return self.show(Call("truncate", found.path, handle=found.handle, offset=size), act)

    # What takes the places of the functions of `os`.

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def opened() -> int:
            return int(self._os["open"](path, flags, mode, dir_fd=dir_fd))

        where, handle = self.at(path, dir_fd), 0
        if flags & _WRITING:
            descriptor, handle = self.show_open(
                where, flags, lambda: self._os["open"](path, flags, mode, dir_fd=dir_fd)
            )
        else:
            descriptor = self._os["open"](path, flags, mode, dir_fd=dir_fd)
        self.note_open(descriptor, where, handle, bool(flags & os.O_APPEND))
        return int(descriptor)

    def _os_close(self, descriptor: int) -> None:
        self.note_close(descriptor)
        self._os["close"](descriptor)

    def _os_write(self, descriptor: int, data: Any) -> int:
        return self.write(descriptor, data, lambda other: self._os["write"](descriptor, other))

    def _os_pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        return self.write(descriptor, data, lambda other: self._os["pwrite"](descriptor, other, offset), offset)

    def _os_writev(self, descriptor: int, buffers: Any) -> int:
        return self._os_write(descriptor, b"".join(buffers))

    def _os_sendfile(self, out_fd: int, in_fd: int, offset: int | None, count: int) -> int:
        if out_fd not in self._open:
            return int(self._os["sendfile"](out_fd, in_fd, offset, count))
        start = self._os["lseek"](in_fd, 0, os.SEEK_CUR) if offset is None else offset
        size = min(count, self._os["fstat"](in_fd).st_size - start)
        data = self._os["pread"](in_fd, size, start)
        if not data:
            return 0
        return self.write(out_fd, data, lambda other: self._os["sendfile"](out_fd, in_fd, offset, len(other)))

    def _os_fsync(self, descriptor: int) -> None:
        path = self.at(descriptor)
        handle = self._open[descriptor].handle if descriptor in self._open else 0
        self.show(Call("fsync", path, handle=handle), lambda: self._os["fsync"](descriptor))

    _os_fdatasync = _os_fsync

    def _os_truncate(self, path: Any, length: int) -> None:
        if isinstance(path, int):
            self._os_ftruncate(path, length)
        else:
            self.show(Call("truncate", self.at(path), offset=length), lambda: self._os["truncate"](path, length))

    def _os_ftruncate(self, descriptor: int, length: int) -> None:
        self.truncate(descriptor, length, lambda: self._os["ftruncate"](descriptor, length))

    def _os_rename(self, src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        call = Call("rename", self.at(src, src_dir_fd), self.at(dst, dst_dir_fd))
        self.show(call, lambda: self._os["rename"](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd))

    def _os_replace(self, src: Any, dst: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        call = Call("rename", self.at(src, src_dir_fd), self.at(dst, dst_dir_fd))
        self.show(call, lambda: self._os["replace"](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd))

    def _os_link(self, src: Any, dst: Any, **options: Any) -> None:
        call = Call("link", self.at(src, options.get("src_dir_fd")), self.at(dst, options.get("dst_dir_fd")))
        self.show(call, lambda: self._os["link"](src, dst, **options))

    def _os_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        where = self.at(path, dir_fd)
        self._show_if(os.path.lexists(where), "unlink", where, lambda: self._os["unlink"](path, dir_fd=dir_fd))

    _os_remove = _os_unlink

    def _os_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        where = self.at(path, dir_fd)
        is_empty = os.path.isdir(where) and not self._os["listdir"](where)
        self._show_if(is_empty, "rmdir", where, lambda: self._os["rmdir"](path, dir_fd=dir_fd))

    def _os_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        where = self.at(path, dir_fd)
        is_free = not os.path.lexists(where) and os.path.isdir(os.path.dirname(where))
        self._show_if(is_free, "mkdir", where, lambda: self._os["mkdir"](path, mode, dir_fd=dir_fd))

    def _show_if(self, changes: bool, name: str, path: str, act: Callable[[], Any]) -> None:
        if changes:
            self.show(Call(name, path), act)
        else:
            act()

    def _renameat2(self, function: Any) -> Callable[..., int]:
        def renameat2(first_at: int, first: bytes, second_at: int, second: bytes, flags: int) -> int:
            call = Call("exchange" if flags & 2 else "rename", self.at(first), self.at(second))
            try:
                return int(self.show(call, lambda: function(first_at, first, second_at, second, flags)))
            except OSError as error:
                ctypes.set_errno(error.errno or 0)
                return -1

        return renameat2

    # What takes the place of `open`.

    def _opened(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if not set(mode) & set("wxa+") or opener is not None or (isinstance(file, int) and file not in self._open):
            return self._io_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        is_text = "b" not in mode
        raw = WatchedFile(self, file, mode.replace("b", "").replace("t", ""), closefd)
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1) if is_text else buffered


class WatchedFile(io.FileIO):
    """A file that is open for writing, and shows what is written."""

    def __init__(self, watch: Watch, file: Any, mode: str, closefd: bool) -> None:
        self._watch = watch
        path = watch.at(file)
        if isinstance(file, int):
            super().__init__(file, mode, closefd)
            return
        _, handle = watch.show_open(path, mode, lambda: super(WatchedFile, self).__init__(file, mode))
        watch.note_open(self.fileno(), path, handle, "a" in mode)

    def write(self, data: Any, /) -> int:
        """Write bytes at the file's position."""
        return self._watch.write(self.fileno(), memoryview(data).cast("B"), super().write)

    def truncate(self, size: int | None = None, /) -> int:
        """Give the file a size: by default, up to its position."""
        size = self.tell() if size is None else size
        act = super().truncate
        return int(self._watch.truncate(self.fileno(), size, lambda: act(size)))

    def close(self) -> None:
        """Close the file."""
        if not self.closed and self.closefd:
            self._watch.note_close(self.fileno())
        super().close()
