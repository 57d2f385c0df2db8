"""`BatchStream`: an epoch's rows in order, cut into batches.

What to read (which positions, in which order) is computed for a window at a time, what to gather for a few batches
at a time; the batches are views that are cut from what was gathered. All of it is a function of the position, so a
stream holds no more than two numbers: the epoch and how many batches of it were delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from shardstore.order import Order
from shardstore.selection import Rows

Batch = dict[str, Any]
Transform = Callable[[Batch], Any]
Shuffle = bool | Literal["full"]
Remainder = Literal["keep", "drop"]
SHUFFLES: tuple[Shuffle, ...] = (False, True, "full")
REMAINDERS: tuple[Remainder, ...] = ("keep", "drop")

# Permuting a few hundred numbers costs as much as permuting thousands, so orders are computed in windows.
WINDOW_ROWS = 65_536
# Small enough for a cache close to the core, large enough to hide what a call costs.
GATHER_NBYTES = 2 << 20
MAX_GATHER_BATCHES = 64


@dataclass(frozen=True)
class Batching:
    """How an epoch's positions are cut into batches; a small value that is the same everywhere.

    Attributes:
        order: the order of rows.
        batch_size: rows of a batch.
        remainder: `"keep"` (the last batch may be short) or `"drop"`.
    """

    order: Order
    batch_size: int
    remainder: Remainder

    @classmethod
    def of(cls, count: int, batch_size: int, shuffle: Shuffle, seed: int, remainder: Remainder) -> Batching:
        """Check what a user asked for; raise `ValueError` or `TypeError` if it makes no sense."""
        for name, value in (("batch_size", batch_size), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} is a {type(value).__name__}; expected an int")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        if shuffle not in SHUFFLES:
            raise ValueError(f"shuffle is {shuffle!r}; expected one of {', '.join(map(repr, SHUFFLES))}")
        if remainder not in REMAINDERS:
            raise ValueError(f"remainder is {remainder!r}; expected one of {', '.join(map(repr, REMAINDERS))}")
        return cls(Order(count, bool(shuffle), int(seed)), int(batch_size), remainder)

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        whole, rest = divmod(self.order.count, self.batch_size)
        return whole + (1 if rest and self.remainder == "keep" else 0)

    def positions(self, steps: range) -> tuple[Rows, list[int]]:
        """Return the positions of some batches, one after the other, and where each begins and the last ends."""
        starts = [step * self.batch_size for step in steps]
        stops = [min(start + self.batch_size, self.order.count) for start in starts]
        bounds = [0]
        for start, stop in zip(starts, stops, strict=True):
            bounds.append(bounds[-1] + stop - start)
        if steps.step == 1:
            return np.arange(starts[0], stops[-1], dtype=np.int64), bounds
        pieces = [np.arange(start, stop, dtype=np.int64) for start, stop in zip(starts, stops, strict=True)]
        return np.concatenate(pieces), bounds


def check_epochs(epochs: int | None, batching: Batching) -> int | None:
    """Return how many epochs a pass has; raise `ValueError` or `TypeError` if that makes no sense."""
    if epochs is None:
        if not len(batching):
            raise ValueError(
                f"an endless stream needs batches, but {batching.order.count:,} rows give none "
                f"of {batching.batch_size:,} rows"
            )
        return None
    if isinstance(epochs, bool) or not isinstance(epochs, int | np.integer):
        raise TypeError(f"epochs is a {type(epochs).__name__}; expected an int, or None for an endless stream")
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; expected at least 1, or None for an endless stream")
    return int(epochs)


class RowSource(Protocol):
    """What a stream reads: rows by position, all of which are in range."""

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row of all columns."""

    def gather(self, positions: Rows) -> dict[str, NDArray[Any]]:
        """Return fresh arrays of the rows at positions that are known to be in range."""

    def store_rows(self, positions: Rows) -> Rows:
        """Return the store's numbers of those rows."""


def read_batches(
    source: RowSource, batching: Batching, epoch: int, steps: range, with_rows: bool = False
) -> Iterator[Batch]:
    """Yield the batches of some steps of an epoch, as dicts of fresh writable arrays.

    Several batches are gathered at once: a batch is a view into an array that its neighbours share.
    """
    per_gather = max(1, GATHER_NBYTES // max(1, source.row_nbytes * batching.batch_size))
    per_gather = min(per_gather, MAX_GATHER_BATCHES)
    per_window = max(1, WINDOW_ROWS // (batching.batch_size * per_gather)) * per_gather
    gathered = 1  # the first batch is not kept waiting for the rows of many others
    for window in _cut(steps, per_window):
        positions, bounds = batching.positions(window)
        rows = batching.order.rows(epoch, positions)
        first = 0
        while first < len(window):
            last = min(first + gathered, len(window))
            begin = bounds[first]
            picked = rows[begin : bounds[last]]
            block = source.gather(picked)
            if with_rows:
                # A copy, so that a batch's row numbers are as much its own as its columns.
                block["rows"] = source.store_rows(picked).copy()
            items = list(block.items())
            for k in range(first, last):
                start, stop = bounds[k] - begin, bounds[k + 1] - begin
                yield {name: array[start:stop] for name, array in items}
            first, gathered = last, min(2 * gathered, per_gather)


def _cut(steps: range, size: int) -> Iterator[range]:
    for first in range(0, len(steps), size):
        yield steps[first : first + size]


class BatchStream:
    """Batches of rows, epoch after epoch. Made by `Store.batches` and `View.batches`.

    Iterable and re-iterable: each pass gives the next `epochs` epochs, each in an order of its own. A pass that
    was left early is continued by the next one; the iterator that was left raises `RuntimeError` then.
    """

    def __init__(
        self,
        source: RowSource,
        batching: Batching,
        *,
        epochs: int | None = 1,
        transform: Transform | None = None,
        with_rows: bool = False,
    ) -> None:
        self._epochs = check_epochs(epochs, batching)
        self._source: RowSource | None = source
        self._batching = batching
        self._transform = transform
        self._with_rows = with_rows
        self._epoch = 0
        self._delivered = 0
        # The epoch at which the current pass ends, and the iterator that is making it.
        self._pass_end: int | None = None
        self._pass = object()

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to."""
        return self._epoch

    def __len__(self) -> int:
        """Return the exact number of batches of one epoch."""
        return len(self._batching)

    def __iter__(self) -> Iterator[Any]:
        self._pass = object()
        if self._epochs is not None and (self._pass_end is None or self._epoch >= self._pass_end):
            self._pass_end = self._epoch + self._epochs
        while self._pass_end is None or self._epoch < self._pass_end:
            yield from self._rest_of_epoch()
            self._epoch += 1
            self._delivered = 0

    def _rest_of_epoch(self) -> Iterator[Any]:
        if self._source is None:
            raise ValueError("this stream is closed")
        current = self._pass
        steps = range(self._delivered, len(self._batching))
        for batch in read_batches(self._source, self._batching, self._epoch, steps, self._with_rows):
            if self._source is None:
                raise ValueError("this stream is closed")
            item = batch if self._transform is None else self._transform(batch)
            self._delivered += 1
            yield item
            if self._pass is not current:
                raise RuntimeError("another pass over this stream has begun; only the latest one goes on")

    def close(self) -> None:
        """Let go of the store; later reads raise `ValueError`."""
        self._source = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        batching = self._batching
        return (
            f"BatchStream({len(self):,} batches of {batching.batch_size:,} rows an epoch, "
            f"shuffle={batching.order.shuffle}, seed={batching.order.seed}, epoch={self._epoch})"
        )
