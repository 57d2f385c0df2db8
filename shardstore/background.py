"""Work in threads: a call whose result is wanted later, and iterating some items ahead of the consumer.

Threads end with whoever waits for them: when that is closed or collected, or with the interpreter.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Self, TypeVar

from shardstore.decoding import DECODING_THREADS

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_here = threading.local()
# Threads end soon once they are told. But one may work on something of the user's that never ends; and the collector
# may stop one anywhere, also in a thread that holds a lock which the other needs: nobody waits for ever.
_CLOSE_SECONDS = 10.0
_EXIT_SECONDS = 5.0
_COLLECT_SECONDS = 1.0


class _Work(ABC):
    """A thread, in the process that has it. The child of a fork has none."""

    def __init__(self, name: str) -> None:
        self._process = os.getpid()
        self._stopped = False
        # The one whose thread has made this, and may wait for it.
        self._parent: _Work | None = getattr(_here, "work", None)
        self._thread = threading.Thread(target=self._begin, name=f"shardstore-{name}", daemon=True)
        self._thread.start()
        _running.add(self)

    def _begin(self) -> None:
        _here.work = self
        self._run()

    @abstractmethod
    def _run(self) -> None:
        """What the thread does."""

    @property
    def lost(self) -> bool:
        """Whether the thread is in another process, this one's parent."""
        return self._process != os.getpid()

    def stop(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Say that nobody waits for the thread any more, and wait for it to end, so many seconds at most."""
        self._stopped = True
        if not self.lost and not self._waits_for_this_thread():
            self._thread.join(seconds)

    def _waits_for_this_thread(self) -> bool:
        """Whether to wait would be for ever. The collector may call `stop` anywhere, also in the thread itself."""
        if threading.current_thread().name.startswith(DECODING_THREADS):
            return True
        work: _Work | None = getattr(_here, "work", None)
        while work is not None and work is not self:
            work = work._parent
        return work is self


class Task(_Work, Generic[_Result]):
    """A call that a thread of its own makes now, and whose result is wanted later.

    Args:
        function: called in the thread, with a function that says whether nobody waits for the result any more.
        name: what the thread is for.
    """

    def __init__(self, function: Callable[[Callable[[], bool]], _Result], name: str) -> None:
        self._function = function
        self._results: list[_Result] = []
        self._error: BaseException | None = None
        super().__init__(name)

    def _run(self) -> None:
        try:
            self._results.append(self._function(lambda: self._stopped))
        except BaseException as error:  # whatever it is, it is that of whoever asks for the result
            self._error = error

    def result(self) -> _Result:
        """Wait, and return what the call returned or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results.pop()


class Ahead(Iterator[_Item]):
    """Iterates over what a thread makes while the consumer works.

    What it raises is raised here, in its turn. The thread begins with the first item that is asked for, and has ended
    when this iterator is exhausted, closed or collected; after `close` it gives nothing more.

    Args:
        make: called in the thread.
        ahead: how many items may wait for the consumer.
    """

    def __init__(self, make: Callable[[], Iterable[_Item]], ahead: int) -> None:
        self._make = make
        self._ahead = ahead
        self._handover: _Handover[_Item] | None = None
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Item:
        if self._closed:
            raise StopIteration
        if self._handover is None:
            self._handover = _Handover(self._make, self._ahead)
        if self._handover.lost:
            raise RuntimeError("this iterator's thread is in the process that was forked; begin a new pass here")
        try:
            return self._handover.take()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of all that is waiting, and of the thread. Any thread may call this."""
        self._closed = True
        if self._handover is not None:
            self._handover.stop()

    def __del__(self) -> None:
        self._closed = True
        if self._handover is not None:
            self._handover.stop(_COLLECT_SECONDS)


class _Handover(_Work, Generic[_Item]):
    def __init__(self, make: Callable[[], Iterable[_Item]], ahead: int) -> None:
        self._make = make
        self._ahead = ahead
        self._waiting: deque[_Item] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        super().__init__("loader")

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._make():
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
            if not self._stopped:
                self._waiting.append(item)
                self._changed.notify_all()
            return not self._stopped

    def take(self) -> _Item:
        """Return the next item as it comes; raise what the thread raised, or `StopIteration` if there is no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended or self._stopped)
            if self._waiting:
                item = self._waiting.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None and not self._stopped:
            raise self._error
        raise StopIteration

    def stop(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Let go of all that is waiting, too."""
        if not self.lost:
            with self._changed:
                self._stopped = True
                self._waiting.clear()
                self._changed.notify_all()
        super().stop(seconds)


# Whatever a thread does while the interpreter is taken down may end in a crash, so all are stopped before.
_running: weakref.WeakSet[_Work] = weakref.WeakSet()


def _stop_all() -> None:
    stopped: set[_Work] = set()
    while running := set(_running) - stopped:  # one that ends may have begun another
        for work in running:
            work.stop(_EXIT_SECONDS)
        stopped |= running


def _forget_all() -> None:
    _running.clear()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
