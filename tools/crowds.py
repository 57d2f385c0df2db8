"""Processes that all do something at the same time, until the time is over, and then say what they have done."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Tally:
    """What a process has done.

    Attributes:
        role: what it was there for.
        counts: how often it did what.
        states: what it has seen, each once.
        first: when it was ready; seconds that all processes count alike.
        last: when it had done something for the last time.
        error: what went wrong; empty if nothing did.
    """

    role: str
    counts: Counter[str] = field(default_factory=Counter)
    states: set[Any] = field(default_factory=set)
    first: float = 0
    last: float = 0
    error: str = ""


# Makes ready, given what it chooses by and where it counts; returns what is done over and over.
Role = Callable[[random.Random, Tally], Callable[[], object]]


class Crowd:
    """Children of this process, each of which plays a role for so many seconds, and ends when something goes wrong.

    Used in a `with` statement, which no child outlives.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._gate, self._opener = os.pipe()
        self._told, self._tell = os.pipe()
        self._parent = os.getpid()
        self._roles: dict[int, str] = {}
        self._killed = 0
        self._answers = tempfile.TemporaryDirectory()
        self.end = 0.0

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for child in [*self._roles]:
            self.kill(child)
        if not self.end:
            os.close(self._opener)
        for descriptor in (self._gate, self._told, self._tell):
            os.close(descriptor)
        self._answers.cleanup()

    def start(self, name: str, role: Role, must: Sequence[str] = ()) -> int:
        """Begin a process; return its number. It makes ready, and waits until the time begins.

        It goes on until the time is over, and it has counted each of what it `must` do.
        """
        gc.collect()
        seed = len(self._roles) + self._killed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks where threads are
            child = os.fork()
        if child:
            self._roles[child] = name
            return child
        try:
            tally = Tally(name)
            try:
                self._play(tally, role, random.Random(f"{name} {seed}"), must)
            except BaseException:
                tally.error = traceback.format_exc()
            (Path(self._answers.name) / str(os.getpid())).write_bytes(pickle.dumps(tally))
            os._exit(0)
        finally:
            os._exit(1)

    def _play(self, tally: Tally, role: Role, choose: random.Random, must: Sequence[str]) -> None:
        signal.alarm(int(self._seconds) + 600)  # rather than to hang for ever
        try:
            act = role(choose, tally)
        finally:
            os.write(self._tell, b"!")
        tally.first = tally.last = time.monotonic()
        if not self.end:
            os.close(self._opener)
        os.read(self._gate, 1)
        end = self.end or time.monotonic() + self._seconds
        while time.monotonic() < end or not all(tally.counts[what] for what in must):
            if os.getppid() != self._parent:
                return  # nobody is left who would ask
            act()
            tally.last = time.monotonic()

    def begin(self) -> None:
        """Wait until all are ready, and let the time begin, for all at once and for those that are started later."""
        for _ in self._roles:
            os.read(self._told, 1)
        self.end = time.monotonic() + self._seconds
        os.close(self._opener)

    def kill(self, child: int) -> None:
        """Kill a process, whatever it is doing."""
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        self._killed += 1
        del self._roles[child]

    def finish(self) -> list[Tally]:
        """Wait for all that were not killed; return what they have done."""
        tallies = []
        for child, role in [*self._roles.items()]:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            del self._roles[child]
            answer = Path(self._answers.name) / str(child)
            if code or not answer.exists():
                tallies.append(Tally(role, error=f"process {child} ended with {code} and said nothing"))
            else:
                tallies.append(pickle.loads(answer.read_bytes()))
        return tallies


def at_once(tallies: list[Tally]) -> int:
    """Return how many processes were at it at the same time, at the most."""
    ready = [tally for tally in tallies if tally.first]
    ends = sorted([(tally.first, 1) for tally in ready] + [(tally.last, -1) for tally in ready])
    now = most = 0
    for _, change in ends:
        now += change
        most = max(most, now)
    return most


def total(tallies: list[Tally]) -> Counter[str]:
    """Return how often all of them did what."""
    return sum((tally.counts for tally in tallies), Counter())
