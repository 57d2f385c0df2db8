"""One run, in a process of its own: a peer is opened and read, the clock is looked at, and every row is checked."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, row_numbers
from benchmarks.suite.peer import Batch, Dataset, Peer, Unsupported

CONTENT_EVERY = 16
"""Of so many batches one is looked into, whether its rows are those that their numbers say."""
BLOCK = 65_536
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Pass:
    """An epoch, or as much of it as the time limit allowed; or some batches of any rows.

    Attributes:
        first_seconds: from its beginning to the first batch.
        later_seconds: from there to the end, or to the time limit.
        first_rows: rows of the first batch.
        rows: rows of all batches.
        ended: whether the epoch came to its end.
    """

    first_seconds: float
    later_seconds: float
    first_rows: int
    rows: int
    ended: bool

    @property
    def rate(self) -> float:
        """Rows a second: of the whole epoch; where it was left, those after the first batch."""
        if self.ended or self.rows == self.first_rows:
            return self.rows / (self.first_seconds + self.later_seconds)
        return (self.rows - self.first_rows) / self.later_seconds


@dataclass(frozen=True)
class Reading:
    """What one run read.

    Attributes:
        open_seconds: until the peer was opened.
        first: what was read first.
        again: the same once more, of another seed, with all that the process had kept; None if there was none.
        problem: what was wrong with the rows, or nothing.
        check_nbytes: memory that checking them took all the while.
    """

    open_seconds: float
    first: Pass
    again: Pass | None
    problem: str
    check_nbytes: int

    @property
    def rate(self) -> float:
        """Rows a second, once there is nothing more to warm up."""
        return (self.again or self.first).rate


@dataclass(frozen=True)
class Refusal:
    """Why nothing was read.

    Attributes:
        kind: `"unsupported"` or `"failed"`.
        reason: the peer's reason, or the error.
    """

    kind: str
    reason: str


def ingest(peer: type[Peer], data: Dumps, target: Path) -> float | Refusal:
    """Ingest the dumps; return the seconds until they are on the disk."""

    def work() -> float:
        os.sync()
        start = time.perf_counter()
        peer().ingest(data, target)
        os.sync()
        return time.perf_counter() - start

    return _answered(work)


def read(
    peer: type[Peer], data: Dumps, target: Path, mode: str, seed: int, limit: float, again: bool
) -> Reading | Refusal:
    """Open a peer and read it in one mode.

    Args:
        peer: the peer.
        data: the dumps of the job.
        target: where the peer has ingested them.
        mode: one of `peer.MODES`.
        seed: of the shuffle, or of the rows that are taken.
        limit: seconds after the first batch, when an epoch is left; two passes of taking rows share them.
        again: whether an epoch that came to its end is followed by another one, and taking rows by more of it.
    """

    def work() -> Reading:
        check: _Epoch | _Taken = _Taken(data) if mode == "takes" else _Epoch(data, ordered=mode == "sequential")
        begin = time.perf_counter()
        dataset = peer().open(target, data)
        opened = time.perf_counter()
        try:
            share = limit / 2 if again and mode == "takes" else limit
            first = _timed(_batches(dataset, mode, seed, check), check, share)
            follows = again and (first.ended or mode == "takes")
            second = _timed(_batches(dataset, mode, seed + 1, check), check, share) if follows else None
            return Reading(opened - begin, first, second, check.found, check.nbytes)
        finally:
            # What was measured counts, also if the peer cannot be closed; its process ends in any case.
            with suppress(Exception):
                dataset.close()

    return _answered(work)


def _answered(work: Callable[[], Answer]) -> Answer | Refusal:
    try:
        return work()
    except Unsupported as reason:
        return Refusal("unsupported", str(reason))
    except Exception as error:  # whatever a peer raises is its result
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return Refusal("failed", text[:200])


def _batches(dataset: Dataset, mode: str, seed: int, check: _Check) -> Iterator[Batch]:
    if mode == "takes":
        return _takes(dataset, seed, check)
    return iter(dataset.shuffled(seed) if mode == "shuffled" else dataset.sequential())


def _takes(dataset: Dataset, seed: int, check: _Check) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    while True:
        check.asked = rng.integers(0, check.job.rows, BATCH)
        yield dataset.take(check.asked)


def _timed(batches: Iterator[Batch], check: _Check, limit: float) -> Pass:
    begin = time.perf_counter()
    first = end = 0.0
    rows = first_rows = 0
    ended = True
    for batch in batches:
        end = time.perf_counter()
        first = first or end
        rows += check.add(batch)
        first_rows = first_rows or rows
        if end - first > limit:
            ended = False
            break
    if not rows:
        raise ValueError("no batch came")
    if ended:
        end = time.perf_counter()
    check.finish(ended)
    return Pass(first - begin, end - first, first_rows, rows, ended)


class _Check:
    """The rows that came.

    The cost of looking at them is part of what is measured: a copy of 256 numbers a batch, the same for all peers.

    Attributes:
        asked: the rows that were asked for, where they were.
        found: the first thing that was wrong.
        nbytes: memory that it holds from the beginning.
    """

    asked: NDArray[np.int64]
    nbytes = 0

    def __init__(self, data: Dumps) -> None:
        self.job = data.job
        self.batches = 0
        self.found = ""

    def add(self, batch: Batch) -> int:
        """Note a batch; return its rows."""
        numbers = batch["y"].numpy() if "y" in batch else self._contents(batch)
        if self.batches % CONTENT_EVERY == 0:
            self._look_into(batch, numbers)
        self.batches += 1
        self.note(numbers)
        return len(numbers)

    def note(self, numbers: NDArray[np.int64]) -> None:
        """Note the numbers of a batch's rows."""
        raise NotImplementedError

    def finish(self, ended: bool) -> None:
        """Look at a pass as a whole, which came to its end or was left."""

    def blame(self, problem: str) -> None:
        """Keep what is wrong, if it is the first such thing."""
        self.found = self.found or problem

    def _contents(self, batch: Batch) -> NDArray[np.int64]:
        if self.job.layout != "ragged":
            return row_numbers(self.job, batch["x"].numpy())
        if "x" in batch:
            return row_numbers(self.job, [row[:4].numpy() for row in batch["x"]])
        values, starts = batch["values"].numpy(), batch["offsets"][:-1].tolist()
        return row_numbers(self.job, [values[start : start + 4] for start in starts])

    def _look_into(self, batch: Batch, numbers: NDArray[np.int64]) -> None:
        for name, tensor in batch.items():
            kind = str(getattr(tensor[0] if name == "x" else tensor, "dtype", type(tensor)))
            due = {"y": "int64", "offsets": "int64"}.get(name, self.job.dtype)
            if kind != f"torch.{due}":
                self.blame(f"{name} is {kind}")
        if not np.array_equal(self._contents(batch), numbers):
            self.blame("rows do not belong to their numbers")


class _Epoch(_Check):
    """Each row has to come once; in an order of its own, or in the order of the rows."""

    def __init__(self, data: Dumps, ordered: bool) -> None:
        super().__init__(data)
        self.ordered = ordered
        # Written to at once, so that this memory does not grow while the peer's is watched.
        self.delivered = np.full(data.job.rows + BATCH, 1, np.uint32)
        self.times = np.full(data.job.rows, 1, np.uint8)
        self.nbytes = self.delivered.nbytes + self.times.nbytes
        self.count = 0

    def note(self, numbers: NDArray[np.int64]) -> None:
        """Note the numbers of a batch's rows."""
        full = min(BATCH, self.job.rows - self.count)
        if len(numbers) != full:
            self.blame(f"a batch of {len(numbers)} rows instead of {full}")
        if self.count + len(numbers) > len(self.delivered):
            raise ValueError(f"more than {self.job.rows:,} rows came")
        self.delivered[self.count : self.count + len(numbers)] = numbers
        self.count += len(numbers)

    def finish(self, ended: bool) -> None:
        """Find rows that were lost, or came more than once. It counts block by block, to take no memory."""
        self.times[:] = 0
        in_order = True
        for first in range(0, self.count, BLOCK):
            numbers = self.delivered[first : min(first + BLOCK, self.count)]
            if numbers.max() >= self.job.rows:
                self.blame("rows that do not exist")
                return
            np.add.at(self.times, numbers, 1)
            in_order = in_order and np.array_equal(numbers, np.arange(first, first + len(numbers)))
        self.count = 0
        lost, twice = int((self.times == 0).sum()), int((self.times > 1).sum())
        wrong = [f"{lost:,} rows lost"] if ended and lost else []
        wrong += [f"{twice:,} rows more than once"] if twice else []
        if self.ordered and not in_order and not wrong:
            wrong = ["not in order"]
        if wrong:
            self.found = ", ".join(wrong)  # says more than a batch that was short


class _Taken(_Check):
    """The rows that were asked for have to come, in the order asked for."""

    def note(self, numbers: NDArray[np.int64]) -> None:
        """Compare the numbers of a batch's rows."""
        if not np.array_equal(numbers, self.asked):
            self.blame("other rows than those asked for")
