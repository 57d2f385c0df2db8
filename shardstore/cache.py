"""A cache within a memory budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from shardstore.locks import ForkSafeLock

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class BoundedCache(Generic[_Key, _Value]):
    """Keeps the values used last, up to a total size. Safe to use from threads, finalizers and forks."""

    def __init__(self, max_size: int, size_of: Callable[[_Value], int]) -> None:
        self._max_size = max_size
        self._size_of = size_of
        self._size = 0
        self._values: OrderedDict[_Key, _Value] = OrderedDict()
        self._lock = ForkSafeLock()

    def get(self, key: _Key, load: Callable[[_Key], _Value]) -> _Value:
        """Return the value of `key`, which `load` makes if it is not here."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = load(key)  # outside the lock: threads load different values at the same time
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._add(self._size_of(value))
            while self._size > self._max_size and len(self._values) > 1:
                _, dropped = self._values.popitem(last=False)
                self._add(-self._size_of(dropped))
        return value

    @property
    def size(self) -> int:
        """The total size of what is kept."""
        return self._size

    def discard(self, condition: Callable[[_Key], bool]) -> None:
        """Forget the values of all keys for which a condition holds."""
        with self._lock:
            for key in [key for key in list(self._values) if condition(key)]:
                if key in self._values:
                    self._add(-self._size_of(self._values.pop(key)))

    def _add(self, size: int) -> None:
        # `size` is known before: a finalizer that runs while it is computed may drop values, too.
        self._size += size

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()
            self._size = 0
