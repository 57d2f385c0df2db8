"""`BatchStream`: an epoch's rows in order, cut into batches.

A stream walks a plan. All that it knows is a cursor: the epoch, and how many of its positions were delivered.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from shardstore.background import Ahead
from shardstore.order import (
    Cursor,
    Order,
    Plan,
    Remainder,
    Replica,
    State,
    check_epoch,
    check_int,
    restore_state,
    save_state,
)
from shardstore.planning import WINDOW_BYTES, Shuffle
from shardstore.reading import Batch, Reading, StreamSource, cut_block
from shardstore.rowwise import Rowwise

Transform = Callable[[Batch], Any]


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
