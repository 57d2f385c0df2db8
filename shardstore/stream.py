"""`BatchStream`: an epoch's rows in order, cut into batches.

A stream walks a plan. All that it knows is a cursor: the epoch, and how many of its positions were delivered.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from shardstore.background import Ahead, Task
from shardstore.buffers import Allocate, BufferPool
from shardstore.feeds import Arrays, Feed, Located
from shardstore.order import (
    Cursor,
    Order,
    Plan,
    Remainder,
    Replica,
    State,
    Steps,
    Turns,
    check_epoch,
    check_int,
    restore_state,
    save_state,
)
from shardstore.planning import WINDOW_BYTES, Shuffle
from shardstore.rowwise import Rowwise

_Result = TypeVar("_Result")
Batch = dict[str, Any]
Transform = Callable[[Batch], Any]

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


def check_epochs(epochs: int | None, plan: Plan, world_size: int = 1) -> int | None:
    """Return how many epochs a pass has; raise `ValueError` or `TypeError` if that makes no sense."""
    if epochs is None:
        if not plan.steps(world_size):
            raise ValueError(
                f"an endless stream needs batches, but {plan.order.count:,} rows give none of {plan.batch_size:,} rows"
            )
        return None
    if check_int("epochs", epochs) < 1:
        raise ValueError(f"epochs is {epochs}; expected at least 1, or None for an endless stream")
    return int(epochs)


def check_prefetch(prefetch: int) -> int:
    """Return how many blocks a thread reads ahead; raise `ValueError` or `TypeError` if that makes no sense."""
    if check_int("prefetch", prefetch) < 0:
        raise ValueError(f"prefetch is {prefetch}; expected how many blocks a thread reads ahead, 0 for no thread")
    return int(prefetch)


def split_transform(transform: Transform | None) -> tuple[Rowwise | None, Transform | None]:
    """Return what is made of the rows that are read at once, and what is made of each batch."""
    return (transform, None) if isinstance(transform, Rowwise) else (None, transform)


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


class BatchStream:
    """Batches of rows, epoch after epoch. Made by the `batches` method of stores, views and mixtures.

    Iterable and re-iterable: each pass gives the next `epochs` epochs, each in an order of its own. A pass that
    was left early is continued by the next one; the iterator that was left raises `RuntimeError` then.
    """

    def __init__(
        self,
        reading: Reading,
        *,
        epochs: int | None = 1,
        transform: Transform | None = None,
        prefetch: int = 0,
    ) -> None:
        reading.plan.check(reading.replica.world_size)
        self._epochs = check_epochs(epochs, reading.plan, reading.replica.world_size)
        self._plan = reading.plan
        self._world_size = reading.replica.world_size
        self._reading: Reading | None = reading
        self._transform = transform
        self._rowwise = reading.rowwise
        self._prefetch = reading.prefetch_within(check_prefetch(prefetch))
        # What the thread of the current pass makes. It is the iterator's: the thread ends with it.
        self._groups_ahead: weakref.ref[Ahead[Any]] | None = None
        # Where the stream last began to deliver, and how many steps it has delivered since.
        self._begin = Cursor()
        self._steps = 0
        # The epoch with which the current pass began, and the iterator that is making it.
        self._pass_start = 0
        self._pass = object()
        # Whether the stream stands where a state said, and nothing was delivered since.
        self._restored = False

    @property
    def plan(self) -> Plan:
        """Which rows each step has."""
        return self._plan

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to."""
        return self._begin.epoch

    def __len__(self) -> int:
        """Return the exact number of batches of one epoch on this rank; every rank has as many."""
        return self._plan.steps(self._world_size)

    def __iter__(self) -> Iterator[Any]:
        self._pass = current = object()
        if self._steps and not self._plan.steps(self._world_size, self._cursor().delivered):
            self._go_to(Cursor(self.epoch + 1))  # its last batch was delivered, and nobody asked for one more
        pass_end = None if self._epochs is None else self._pass_start + self._epochs
        if pass_end is not None and self.epoch >= pass_end:
            self._pass_start, pass_end = self.epoch, self.epoch + (self._epochs or 1)
        while pass_end is None or self.epoch < pass_end:
            yield from self._rest_of_epoch(current)
            self._go_to(Cursor(self.epoch + 1))

    def _rest_of_epoch(self, current: object) -> Iterator[Any]:
        self._begin, self._steps = self._cursor(), 0
        for group in self._groups(self._open(), self._begin):
            for item in group:
                self._steps += 1
                yield item
                if self._pass is not current or self._reading is None:
                    self._check_pass(current)
        self._check_pass(current)  # its thread may have been stopped while this waited for it

    def _check_pass(self, current: object) -> None:
        self._open()
        if self._pass is not current:
            raise RuntimeError("another pass over this stream has begun; only the latest one goes on")

    def _cursor(self) -> Cursor:
        """Return where the stream stands."""
        return self._plan.advance(self._begin, self._steps, self._world_size)

    def _go_to(self, cursor: Cursor) -> None:
        self._begin, self._steps, self._restored = cursor, 0, False

    def _groups(self, reading: Reading, cursor: Cursor) -> Iterator[Iterable[Any]]:
        """Yield the rest of an epoch as it is delivered, several items at a time."""
        self._stop_thread()
        if not self._prefetch:
            yield from self._made_here(reading, cursor)
            return
        groups = Ahead(lambda: self._made_ahead(reading, cursor), self._prefetch)
        self._groups_ahead = weakref.ref(groups)
        for group in groups:
            yield self._received(group)

    def _made_here(self, reading: Reading, cursor: Cursor) -> Iterator[Iterable[Any]]:
        """Yield groups whose items are made as they are asked for."""
        for block, bounds in reading.blocks(cursor):
            batches = cut_block(block, bounds)
            yield batches if self._is_plain else self._received(self._ready(batch) for batch in batches)

    def _made_ahead(self, reading: Reading, cursor: Cursor) -> Iterator[Any]:
        """Yield several ready items at a time, in the thread: handing each one over would cost more than making it."""
        for block, bounds in reading.blocks(cursor):
            group: list[Any] = []
            try:
                for batch in cut_block(block, bounds):
                    group.append(self._ready(batch))  # noqa: PERF401, a StopIteration must not end the loop
            except Exception:
                yield group  # what was ready before comes before the error
                raise
            yield group

    @property
    def _is_plain(self) -> bool:
        """Whether batches are delivered as they are read."""
        return self._transform is None

    def _ready(self, batch: Batch) -> Any:
        """Return what is delivered as a batch; called in the thread, if there is one."""
        return batch if self._transform is None else self._transform(batch)

    def _received(self, group: Any) -> Iterable[Any]:
        """Take over what was made ready: called where it is consumed."""
        items: Iterable[Any] = group
        return items

    def _stop_thread(self) -> None:
        groups = None if self._groups_ahead is None else self._groups_ahead()
        if groups is not None:
            groups.close()

    def _open(self) -> Reading:
        if self._reading is None:
            raise ValueError("this stream is closed")
        return self._reading

    def state_dict(self) -> State:
        """Return where the stream stands, counted on delivery: plain ints and strings, under 1 KB as JSON.

        The state is the same on every rank after the same number of steps. It can be restored on a stream of another
        batch size, remainder or world size, over the same rows in the same order.
        """
        return save_state(self._open().source.fingerprint(), self._plan.order, self._cursor(), self._pass_start)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the next pass gives exactly the rows of its epoch that were not delivered.

        Raises:
            StateError: if the state is incomplete, or of another store, selection of rows, seed, shuffle or version.
        """
        cursor, self._pass_start = restore_state(state, self._open().source.fingerprint(), self._plan.order)
        self._go_to(cursor)
        self._restored = True
        self._pass = object()

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; but a position in this epoch that was just restored is kept.

        So a training loop may call it at the top of every epoch, also of the one that it resumes.
        """
        if check_epoch(epoch) == self.epoch and self._restored and not self._steps:
            return
        self._go_to(Cursor(int(epoch)))
        self._pass_start = int(epoch)
        self._pass = object()

    def close(self) -> None:
        """Let go of the store, and of the thread that reads it; later reads raise `ValueError`."""
        self._reading = None
        self._stop_thread()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups_ahead": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        order = ", ".join(f"{name}={value}" for name, value in self._plan.order.describe().items())
        batches = f"{len(self):,} batches of {self._plan.batch_size:,} rows an epoch"
        return f"BatchStream({batches}, {order}, epoch={self.epoch})"


class Streamable(ABC):
    """Rows that can be streamed: those of a store, a view or a mixture."""

    @abstractmethod
    def select(self, *columns: str) -> Streamable:
        """Return the same rows with some of the columns only."""

    @abstractmethod
    def plan(
        self,
        batch_size: int,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        remainder: Remainder = "keep",
        window_bytes: int | str = WINDOW_BYTES,
        lanes: int = 1,
    ) -> Plan:
        """Return which rows each step of each epoch has, a small frozen value; see `batches` for the arguments."""

    @abstractmethod
    def source(self, order: Order) -> StreamSource:
        """Return the rows in the order of a plan that was made here, for a `Reading`."""

    def batches(
        self,
        batch_size: int,
        *,
        columns: str | Sequence[str] | None = None,
        shuffle: Shuffle = False,
        seed: int = 0,
        epochs: int | None = 1,
        remainder: Remainder = "keep",
        rank: int = 0,
        world_size: int = 1,
        transform: Transform | None = None,
        with_rows: bool = False,
        copy: bool = True,
        prefetch: int = 0,
        window_bytes: int | str = WINDOW_BYTES,
        lanes: int = 1,
    ) -> BatchStream:
        """Stream the rows in batches: dicts of fresh writable arrays.

        Args:
            batch_size: rows of a batch on each rank.
            columns: the columns to read; all by default.
            shuffle: False for the rows' own order; `"full"` for an exact permutation of all rows, another one in
                every epoch, in constant memory; `"window"` for one that decodes every compressed chunk once an epoch:
                chunks in permuted order, and within a window of them all rows in permuted order. True is `"window"`
                if any column of the store is compressed, else `"full"`.
            seed: with the epoch's number it determines the order.
            epochs: how many epochs one pass gives; None streams for ever.
            remainder: what to do with the rows after the last whole step: `"keep"` them as a short batch (for a world
                size of 1), `"drop"` them, or `"pad"` the step with copies of other rows; then a batch also has a
                boolean `"mask"` that is False for copies.
            rank: which of the processes that share every epoch this is.
            world_size: how many these are. Each gets `len(stream)` batches.
            transform: called with each batch; what it returns is delivered instead. A `Rowwise` is called with all
                rows that are read at once.
            with_rows: also give `"rows"`, the int64 numbers of the rows in the store.
            copy: False for batches that are read-only views of the mapped files wherever rows are read in the order in
                which a raw column has them; other batches are fresh as ever.
            prefetch: how many blocks of about 1 MiB a thread reads (and transforms) ahead of the consumer; 0 for no
                thread, which is as fast for rows in the page cache unless the consumer computes without Python's lock.
            window_bytes: for `"window"`, decoded bytes of the windows that are open at a time, in all lanes together;
                while one is delivered, the next is decoded into as many. Part of the order.
            lanes: for `"window"`, deal the chunks to so many lanes; ranks whose number divides them take whole lanes,
                so that a chunk is decoded by one rank only. Part of the order.

        Raises:
            ValueError, TypeError: if an argument makes no sense, or a batch or window is larger than the memory budget
                that the store was opened with.
        """
        plan = self.plan(
            batch_size, shuffle=shuffle, seed=seed, remainder=remainder, window_bytes=window_bytes, lanes=lanes
        )
        rows = self if columns is None else self.select(*column_names(columns))
        rowwise, transform = split_transform(transform)
        reading = Reading(rows.source(plan.order), plan, Replica(rank, world_size), with_rows, copy, rowwise)
        return BatchStream(reading, epochs=epochs, transform=transform, prefetch=prefetch)


def column_names(columns: str | Sequence[str]) -> Sequence[str]:
    """Return what may be one column's name as a sequence of names."""
    return (columns,) if isinstance(columns, str) else columns


def known_columns(names: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """Return names that are known and different; raise `KeyError` or `ValueError` if they are not."""
    for name in names:
        if name not in columns:
            raise KeyError(f"no column {name!r}; the columns are {', '.join(columns)}")
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"expected different column names, found {', '.join(names) or 'none'}")
    return tuple(names)
