"""What threads wait for, such that neither a fork nor a collection makes them wait for ever.

A thread that holds a lock while another one forks does not exist in the child, where the lock would stay held. And the
collector may run anywhere, also in a thread that holds a lock which a finalizer takes.
"""

from __future__ import annotations

import logging  # noqa: F401, what it locks for a fork it must register before this module does
import os
import sys
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING

if sys.version_info >= (3, 12) or TYPE_CHECKING:
    from functools import cached_property
else:

    class cached_property:  # noqa: N801, it stands for the one of functools
        """`functools.cached_property` as it is since Python 3.12: without the lock that all instances shared.

        A thread may compute a value for seconds, or read files for it. Two threads may compute one twice instead.
        """

        def __init__(self, function):
            self._function = function
            self.__doc__ = function.__doc__

        def __set_name__(self, owner, name):
            self._name = name

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            values = instance.__dict__
            if self._name not in values:
                values[self._name] = self._function(instance)
            return values[self._name]


__all__ = ["ForkSafeLock", "cached_property", "without_forks"]


class ForkSafeLock:
    """A lock that is free in the child of a fork, and that the thread which holds it may take once more.

    What it guards must be usable half-changed in both cases.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Forget who holds it."""
        self._lock = threading.RLock()


_locks: weakref.WeakSet[ForkSafeLock] = weakref.WeakSet()


def _renew_all() -> None:
    for lock in _locks:
        lock.renew()


# While a thread holds this, no other one forks: for what Python itself locks, such as a module that is being imported.
without_forks = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
    os.register_at_fork(
        before=without_forks.acquire, after_in_parent=without_forks.release, after_in_child=without_forks.release
    )
