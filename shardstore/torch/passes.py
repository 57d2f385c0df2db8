"""Which epoch a pass over a dataset begins with, agreed on by the worker processes that take part in it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import get_worker_info

from shardstore.errors import StateError
from shardstore.order import Cursor


@dataclass(frozen=True)
class Pass:
    """Where a pass begins.

    Attributes:
        cursor: its first position.
        start: the epoch that it is counted from: behind `cursor` only where an earlier pass is continued.
    """

    cursor: Cursor
    start: int

    def end(self, epochs: int | None) -> int | None:
        """Return the first epoch that is no longer part of a pass of so many epochs; None if it never ends."""
        if epochs is None:
            return None
        return max(self.start + epochs, self.cursor.epoch + 1)


class PassCounter:
    """Tells where a pass begins, the same for all the worker processes that take part in it.

    A DataLoader never tells the dataset that a pass begins: it makes new workers from copies of the dataset, or lets
    living ones iterate again. What the workers of one pass share is the seed that the loader drew for them, and how
    often each has begun. The first of them to come with a new pair of these takes the next epochs, in memory that all
    of them share; the others find them there. Loaders may draw the same seed twice, since somebody seeds torch before
    every pass: a worker that comes again with the pair of a pass that it has joined begins a new one, a pass of which a
    worker has ended or gone on is over, and once somebody has said where the next pass begins, none before is joined.
    Two loaders that make such passes side by side cannot be told apart, which is an error.
    """

    # Passes that can be under way at the same time, and workers of one of them.
    _REMEMBERED = 16
    _MAX_WORKERS = 1024

    def __init__(self) -> None:
        # Epoch, delivered positions and start of the next pass; the number of passes, that of the first one that may
        # still be joined, and whether the latest was begun by workers.
        self._next = torch.zeros(6, dtype=torch.int64)
        # Of the latest passes: seed, times begun; epoch, delivered positions and start.
        self._latest = torch.full((self._REMEMBERED, 5), -1, dtype=torch.int64)
        # The process that is each worker of these passes; 0 for those that have not come.
        self._joined = torch.zeros(self._REMEMBERED, self._MAX_WORKERS, dtype=torch.int64)
        for tensor in (self._next, self._latest, self._joined):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        self._begun = 0
        self._make_lock("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")

    def _make_lock(self, method: str) -> None:
        # From a context of its own: the default one would settle the start method for the whole program.
        self._lock = multiprocessing.get_context(method).Lock()
        self._lock_method = method

    def next(self) -> Pass:
        """Return where the next pass will begin."""
        epoch, delivered, start = self._next[:3].tolist()
        return Pass(Cursor(epoch, delivered), start)

    def set_next(self, begin: Pass) -> None:
        """Let the next pass begin somewhere."""
        with self._lock:
            self._write_next(begin)
            self._next[4] = self._next[3]
            self._next[5] = 0

    def latest_in_workers(self) -> Pass | None:
        """Return where the latest pass began, if workers began it and nobody has said since where to go on."""
        with self._lock:
            if not self._next[5]:
                return None
            _, _, epoch, delivered, start = self._latest[(int(self._next[3]) - 1) % self._REMEMBERED].tolist()
            return Pass(Cursor(epoch, delivered), start)

    def begin(self, epochs: int | None) -> Pass:
        """Return where the pass that this process begins, which has so many epochs, starts."""
        info = get_worker_info()
        if info is None:
            with self._lock:
                return self._take(epochs, (-1, -1))
        if info.id >= self._MAX_WORKERS:
            raise ValueError(f"at most {self._MAX_WORKERS:,} workers can share a dataset, this is number {info.id:,}")
        key = (info.seed - info.id, self._begun)
        self._begun += 1
        with self._lock:
            places = self._joinable(key, info.id)
            if len(places) > 1:
                raise StateError(
                    "two loaders that drew the same seed iterate over one dataset at the same time, and their workers "
                    "cannot tell which epoch they belong to: give each loader a dataset or a generator of its own"
                )
            if places:
                epoch, delivered, start = self._latest[places[0], 2:].tolist()
                begin = Pass(Cursor(epoch, delivered), start)
            else:
                places = [int(self._next[3]) % self._REMEMBERED]
                begin = self._take(epochs, key)
            self._joined[places[0], info.id] = os.getpid()
            return begin

    def _joinable(self, key: tuple[int, int], worker: int) -> list[int]:
        """Return where the passes are noted that a worker with this key may take part in."""
        passes, first = self._next[3:5].tolist()
        gone_on: set[int] = set()
        places = []
        for number in range(passes - 1, max(first, passes - self._REMEMBERED) - 1, -1):  # the latest first
            place = number % self._REMEMBERED
            processes = set(self._joined[place].tolist()) - {0}
            if (
                tuple(self._latest[place, :2].tolist()) == key
                and not self._joined[place, worker]
                and not processes & gone_on
                and all(map(_is_alive, processes))
            ):
                places.append(place)
            gone_on |= processes
        return places

    def resume(self, begin: Pass, epochs: int | None) -> None:
        """Count a pass that a worker continues from a state of its own."""
        with self._lock:
            self._begun += 1
            self._write_next(self._after(begin, epochs))

    def _take(self, epochs: int | None, key: tuple[int, int]) -> Pass:
        begin = self.next()
        place = int(self._next[3]) % self._REMEMBERED
        self._latest[place] = torch.tensor([*key, begin.cursor.epoch, begin.cursor.delivered, begin.start])
        self._joined[place] = 0
        self._write_next(self._after(begin, epochs))
        self._next[3] += 1
        self._next[5] = key != (-1, -1)
        return begin

    @staticmethod
    def _after(begin: Pass, epochs: int | None) -> Pass:
        end = begin.end(epochs)
        epoch = begin.cursor.epoch + 1 if end is None else end
        return Pass(Cursor(epoch), epoch)

    def _write_next(self, begin: Pass) -> None:
        self._next[:3] = torch.tensor([begin.cursor.epoch, begin.cursor.delivered, begin.start])

    def __getstate__(self) -> dict[str, Any]:
        if multiprocessing.context.get_spawning_popen() is None:
            # Pickled for somewhere else than a child process: nothing can be shared with it.
            return {"next": self._next[:3].tolist()}
        if self._lock_method != "spawn":
            self._make_lock("spawn")
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        if "next" in state:
            self._next[:3] = torch.tensor(state["next"])
        else:
            self.__dict__.update(state)


def _is_alive(process: int) -> bool:
    if not hasattr(os, "kill") or os.name == "nt":
        return True  # there, the question would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
