"""`Reading`: the rows of an epoch in blocks, each gathered at once, in the order of a plan.

While a block is gathered, the next ones are named to the feed, so that their pages are there when they are needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstore.background import Task
from shardstore.buffers import Allocate, BufferPool
from shardstore.feeds import Arrays, Feed, Located
from shardstore.order import Cursor, Plan, Replica, Steps, Turns
from shardstore.rowwise import Rowwise

_Result = TypeVar("_Result")
Batch = dict[str, Any]

# Permuting a few hundred numbers costs as much as permuting thousands, so many rows are located at once.
LOCATED_ROWS = 65_536
# Small enough for a cache close to the core, large enough to hide what a call costs.
GATHER_NBYTES = 1 << 20
MAX_GATHER_BATCHES = 64
MAX_GATHER_ROWS = 4096
# The same for rows that are copied one after the other.
RUN_NBYTES = 1 << 20
VIEW_NBYTES = 32 << 20
MAX_RUN_BATCHES = 64
# Or this part of what the memory budget has for buffers, where that is less.
GATHERED_SHARE = 8
# So many gathers ahead, pages that are not in the page cache are asked for.
PIECES_AHEAD = 2
ALL_STEPS = Turns()
ONE_RANK = Replica()


def new_pool() -> Allocate:
    """Return what makes the arrays of a pass."""
    return BufferPool().empty


class StreamSource(Protocol):
    """The rows that a stream is of."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what a batch has."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what tells which rows a batch has."""

    @property
    def count(self) -> int:
        """How many rows there are."""

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row of all columns."""

    def feed(self, empty: Allocate = np.empty, copy: bool = True) -> Feed:
        """Return a new feed of the rows in the plan's order.

        Args:
            empty: makes the arrays that rows are gathered into.
            copy: whether all are gathered; else some may be views of files.
        """

    def versions(self) -> tuple[Any, ...]:
        """Return what tells the columns from others of their names in the same store."""

    def check_budget(self, batch_size: int) -> None:
        """Raise `ValueError` if a batch, or what the order needs, does not fit a memory budget that was set."""

    def buffer_nbytes(self) -> int:
        """Return how many bytes the memory budget has for buffers."""

    @property
    def is_populated(self) -> bool:
        """Whether `populate` has been through, in this process."""

    def populate(self, stopped: Callable[[], bool]) -> None:
        """Bring the rows into the page cache and page tables, as far as the memory budget keeps them there."""

    def fingerprint(self) -> str:
        """Return what tells these rows from others, the same in every process."""


@dataclass(frozen=True)
class Reading:
    """What is read of a source, and by whom.

    Attributes:
        source: the rows.
        plan: which of them each step has.
        replica: the rank that reads.
        with_rows: whether to tell which rows they are.
        copy: whether batches are fresh and writable; else they may be read-only views of mapped files.
        rowwise: what is made of the rows that are read at once, if anything.
        make_empty: begins a pass: returns what makes the arrays that its rows are gathered into.
    """

    source: StreamSource
    plan: Plan
    replica: Replica = ONE_RANK
    with_rows: bool = False
    copy: bool = True
    rowwise: Rowwise | None = None
    make_empty: Callable[[], Allocate] = new_pool

    def __post_init__(self) -> None:
        self.source.check_budget(self.plan.batch_size)
        for name in self.source.names if self.with_rows else ():
            if name in self.source.columns:
                raise ValueError(
                    f"with_rows=True adds {name!r} to a batch, but there is a column of this name: "
                    "leave it out (columns=…), or rename it when the store is written"
                )

    def prefetch_within(self, prefetch: int) -> int:
        """Return how many blocks a thread may make ahead: fewer where the memory budget has no room for them."""
        block = max(GATHER_NBYTES, self.source.row_nbytes * self.plan.batch_size)
        # One is being made and one consumed besides those that wait.
        return min(prefetch, max(1, self.source.buffer_nbytes() // block - 2))

    def steps(self, cursor: Cursor) -> int:
        """Return how many steps the rest of an epoch has."""
        return self.plan.steps(self.replica.world_size, cursor.delivered)

    def batches(self, cursor: Cursor, turns: Turns = ALL_STEPS, skip: int = 0) -> Iterator[Batch]:
        """Yield the steps of the rest of an epoch as dicts of arrays.

        Several are gathered at once: a batch is a view into an array that its neighbours share.

        Args:
            cursor: where the rest begins.
            turns: which of its steps to read.
            skip: how many of these to leave out, without reading them.
        """
        for block, bounds in self.blocks(cursor, turns, skip):
            yield from cut_block(block, bounds)

    def blocks(self, cursor: Cursor, turns: Turns = ALL_STEPS, skip: int = 0) -> Iterator[tuple[Arrays, list[int]]]:
        """Yield the rows of several steps together, and where each begins and the last ends (plus a constant)."""
        feed = self.source.feed(self.make_empty(), self.copy)
        population: Task[None] | None = None
        waiting: deque[_Piece] = deque()
        ahead = 0  # the first batch is not kept waiting for pages of others
        try:
            for piece in self._pieces(feed, cursor, turns, skip):
                piece.located.expect(piece.start, piece.stop)
                waiting.append(piece)
                if len(waiting) <= ahead:
                    continue
                yield self._gathered(waiting.popleft())
                if not ahead:
                    ahead = PIECES_AHEAD
                    if not self.source.is_populated:
                        # A damaged file that it meets is the consumer's error when that comes to it.
                        population = Task(self.source.populate, "populate")
            while waiting:
                yield self._gathered(waiting.popleft())
        finally:
            feed.close()
            if population is not None:
                population.stop()

    def _pieces(self, feed: Feed, cursor: Cursor, turns: Turns, skip: int) -> Iterator[_Piece]:
        """Cut the steps of the rest of an epoch into pieces that are gathered at once."""
        size = self.plan.batch_size
        own = turns.count(self.steps(cursor))
        per_gather = self._batches_at_once(GATHER_NBYTES, max(MAX_GATHER_BATCHES, MAX_GATHER_ROWS // size))
        if self.replica == ONE_RANK and turns.workers == 1 and self.plan.remainder != "pad" and feed.run(0, 0):
            yield from self._runs(feed, cursor.delivered, skip, own)
            return
        per_span = max(1, LOCATED_ROWS // (size * per_gather)) * per_gather
        gathered = 1  # the first batch is not kept waiting for the rows of many others

        def locate(number: int) -> tuple[Steps, Located]:
            start = skip + number * per_span
            steps = turns.steps(start, min(start + per_span, own))
            span = self.plan.positions(steps, self.replica, cursor.delivered)
            return span, feed.locate(cursor.epoch, span.positions)

        for span, located in _one_ahead(locate, -(-max(0, own - skip) // per_span)):
            first, count = 0, len(span.bounds) - 1
            while first < count:
                last = min(first + gathered, count)
                yield _Piece(located, span.bounds[first : last + 1], span.mask)
                first, gathered = last, min(2 * gathered, per_gather)

    def _runs(self, feed: Feed, delivered: int, skip: int, own: int) -> Iterator[_Piece]:
        """Cut steps whose rows follow one another into pieces, without a list of all positions."""
        size, count = self.plan.batch_size, self.plan.order.count
        # Copies go through the cache of a core; views cost nothing but the call.
        per_run = self._batches_at_once(RUN_NBYTES if self.copy else VIEW_NBYTES, MAX_RUN_BATCHES)
        number, gathered = skip, 1
        while number < own:
            last = min(number + gathered, own)
            start, stop = delivered + number * size, min(delivered + last * size, count)
            located = feed.run(start, stop)
            assert located is not None
            yield _Piece(located, [*range(0, stop - start, size), stop - start], None)
            number, gathered = last, min(2 * gathered, per_run)

    def _batches_at_once(self, nbytes: int, most: int) -> int:
        room = min(nbytes, self.source.buffer_nbytes() // GATHERED_SHARE)
        return max(1, min(most, room // max(1, self.source.row_nbytes * self.plan.batch_size)))

    def _gathered(self, piece: _Piece) -> tuple[Arrays, list[int]]:
        start, stop = piece.start, piece.stop
        if self.rowwise is None:
            block = piece.located.gather(start, stop)
        else:
            table = self.source.fingerprint(), self.source.columns, self.source.versions()
            read = partial(piece.located.gather, start, stop)
            rows = piece.located.rows(start, stop)
            block = self.rowwise.of_rows(table, self.source.count, rows, read)
            for name in (
                *(self.source.names if self.with_rows else ()),
                *(("mask",) if piece.mask is not None else ()),
            ):
                if name in block:
                    raise ValueError(f"a Rowwise function returned a column {name!r}, which the stream adds itself")
        if self.with_rows:
            block.update(piece.located.names(start, stop))
        if piece.mask is not None:
            block["mask"] = piece.mask[start:stop]
        return block, piece.bounds


def _one_ahead(make: Callable[[int], _Result], count: int) -> Iterator[_Result]:
    """Yield what a function makes of 0, 1, 2 and so on; from the third on, a thread makes it one ahead."""
    coming: Task[_Result] | None = None
    try:
        for number in range(count):
            made = make(number) if coming is None or coming.lost else coming.result()
            coming = None
            if 0 < number < count - 1:
                coming = Task(partial(_made_by, make, number + 1), "locate")
            yield made
    finally:
        if coming is not None:
            coming.stop()


def _made_by(make: Callable[[int], _Result], number: int, stopped: Callable[[], bool]) -> _Result:
    return make(number)


@dataclass(frozen=True)
class _Piece:
    """Steps that are gathered at once.

    Attributes:
        located: a longer stretch of positions.
        bounds: where each of the steps begins there, and where the last ends.
        mask: False where a position of the stretch is a copy; None where none is.
    """

    located: Located
    bounds: list[int]
    mask: NDArray[np.bool_] | None

    @property
    def start(self) -> int:
        """Where the first step begins."""
        return self.bounds[0]

    @property
    def stop(self) -> int:
        """Where the last one ends."""
        return self.bounds[-1]


def cut_block(block: Mapping[str, Any], bounds: list[int]) -> Iterator[Batch]:
    """Yield the batches of a block as views: it begins with the first bound, and each ends at one of the others."""
    items = list(block.items())
    first = start = bounds[0]
    for stop in bounds[1:]:
        yield {name: array[start - first : stop - first] for name, array in items}
        start = stop
