"""Work in threads: a call whose result is wanted later, and iterating some items ahead of the consumer."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Task(Generic[_Result]):
    """A call that a thread of its own makes now, and whose result is wanted later. The child of a fork has none of it.

    Args:
        function: called in the thread, with a function that says whether nobody waits for the result any more.
        name: what the thread is for.
    """

    def __init__(self, function: Callable[[Callable[[], bool]], _Result], name: str) -> None:
        self._function = function
        self._process = os.getpid()
        self._stopped = False
        self._results: list[_Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"shardstore-{name}", daemon=True)
        _running.add(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._function(lambda: self._stopped))
        except BaseException as error:  # whatever it is, it is that of whoever asks for the result
            self._error = error

    @property
    def lost(self) -> bool:
        """Whether the thread is in another process, this one's parent."""
        return self._process != os.getpid()

    def result(self) -> _Result:
        """Wait, and return what the call returned or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results.pop()

    def stop(self) -> None:
        """Say that nobody waits for the result, and wait for the thread to end."""
        self._stopped = True
        if not self.lost:
            self._thread.join()


def in_background(make: Callable[[], Iterable[_Item]], ahead: int) -> Generator[_Item, None, None]:
    """Yield the items of `make()`, which a thread makes while the consumer works.

    What it raises is raised here, in its turn. The thread begins with the first item that is asked for, and has ended
    when this iterator is exhausted, closed or collected.

    Args:
        make: called in the thread.
        ahead: how many items may wait for the consumer.
    """
    process = os.getpid()
    handover: _Handover[_Item] = _Handover(ahead)
    thread = handover.thread = threading.Thread(
        target=handover.fill, args=(make,), name="shardstore-loader", daemon=True
    )
    _running.add(handover)
    thread.start()
    try:
        for item in handover.items():
            yield item
            if os.getpid() != process:
                raise RuntimeError("this iterator's thread is in the process that was forked; begin a new pass here")
    finally:
        if os.getpid() == process:
            handover.stop()


class _Handover(Generic[_Item]):
    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._waiting: deque[_Item] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._stopped = False
        self._changed = threading.Condition()
        self.thread: threading.Thread | None = None

    def fill(self, make: Callable[[], Iterable[_Item]]) -> None:
        """Make all items, until the consumer stops."""
        error: BaseException | None = None
        try:
            for item in make():
                if not self._put(item):
                    break
        except BaseException as raised:  # whatever it is, it is the consumer's
            error = raised
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _put(self, item: _Item) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._waiting) < self._ahead)
            self._waiting.append(item)
            self._changed.notify_all()
            return not self._stopped

    def items(self) -> Iterator[_Item]:
        """Yield the items as they come."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    break
                item = self._waiting.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let go of all that is waiting, and wait for the thread to end."""
        with self._changed:
            self._stopped = True
            self._waiting.clear()
            self._changed.notify_all()
        if self.thread is not None:
            self.thread.join()


# Whatever a thread does while the interpreter is taken down may end in a crash, so all are stopped before.
_running: weakref.WeakSet[Task[Any] | _Handover[Any]] = weakref.WeakSet()


def _stop_all() -> None:
    for work in list(_running):
        work.stop()


def _forget_all() -> None:
    _running.clear()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
