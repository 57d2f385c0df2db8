"""An operation in a child process, in which one call to the file system fails, or is the last one."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from shardstore.errors import ShardStoreError
from tools.watching import Call, Watch

# What can happen at a call: the process is killed before it, or after half of what it writes; it fails once as on a
# broken or full disk; it fails and so do all that follow.
FOREVER = "EIO from here on"
FAULTS = ("kill", "torn", "EIO", "ENOSPC", FOREVER)
# What makes names different from all others.
_RANDOM = re.compile("-[0-9a-f]{8}")


@dataclass(frozen=True)
class Outcome:
    """How a child has ended.

    Attributes:
        kind: "finished", "killed" or "failed".
        calls: what it has called, unless it was killed: "write s/.zarr.json.partial-*", ….
        hit: the call at which the fault was, or "" if it did not come so far.
        error: what it raised.
        is_clear: whether that is an error that users are told of.
    """

    kind: str
    calls: tuple[str, ...] = ()
    hit: str = ""
    error: str = ""
    is_clear: bool = True


class _Injector:
    """An observer that lets a fault happen at a call."""

    def __init__(self, folder: Path, fault: str, at: int, say: Callable[..., None]) -> None:
        self._folder = os.path.realpath(folder)
        self._fault = fault
        self._at = at
        self._say = say
        self._lock = threading.Lock()
        self.calls: list[str] = []

    def __call__(self, call: Call, act: Callable[..., Any]) -> Any:
        described = f"{call.name} {_RANDOM.sub('-*', os.path.relpath(call.path, self._folder))}"
        with self._lock:
            number = len(self.calls)
            self.calls.append(described)
        if number == self._at:
            self._say(hit=described)
            if self._fault == "torn" and call.name == "write" and len(call.data) > 1:
                act(call.data[: len(call.data) // 2])
            if self._fault in ("kill", "torn"):
                os.kill(os.getpid(), signal.SIGKILL)
        if number == self._at or (number > self._at and self._fault == FOREVER):
            code = errno.ENOSPC if self._fault == "ENOSPC" else errno.EIO
            raise OSError(code, os.strerror(code), None if call.handle and call.name != "open" else call.path)
        # Nothing is lost with a process of what the system has: to wait for the disk would be for nothing.
        return None if call.name == "fsync" else act()


def attempt(run: Callable[[Path], object], folder: Path, fault: str = "", at: int = -1) -> Outcome:
    """Run an operation on a folder in a child of this process, with a fault at its `at`-th call below the folder."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Where there are threads: the child takes no lock that they may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        os.close(reading)
        _run_and_exit(run, folder, fault, at, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said: dict[str, Any] = {}
        for line in pipe:
            said |= json.loads(line)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"the child died of signal {os.WTERMSIG(status)}"
        return Outcome("killed", **said)
    assert "calls" in said, f"the child ended with status {status} and no word"
    said["calls"] = tuple(said["calls"])
    return Outcome("failed" if "error" in said else "finished", **said)


def _run_and_exit(run: Callable[[Path], object], folder: Path, fault: str, at: int, pipe: int) -> NoReturn:
    """Do what a child does; nothing of the parent's goes on in it."""
    write = os.write

    def say(**words: Any) -> None:
        write(pipe, json.dumps(words).encode() + b"\n")

    try:
        injector = _Injector(folder, fault, at, say)
        try:
            with Watch(folder, injector):
                run(folder)
        except BaseException as error:
            is_clear = isinstance(error, ShardStoreError | OSError)
            text = f"{type(error).__name__}: {error}"
            say(error=text if is_clear else "".join(traceback.format_exception(error)), is_clear=is_clear)
        say(calls=injector.calls)
    finally:
        os._exit(0)
