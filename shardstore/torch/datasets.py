"""Datasets for PyTorch's DataLoader."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from shardstore.errors import StateError
from shardstore.locks import cached_property
from shardstore.order import Cursor, Plan, Remainder, State, Turns, check_epoch, restore_state, save_state
from shardstore.planning import WINDOW_BYTES, Shuffle
from shardstore.ragged import Ragged, Values
from shardstore.reading import Batch, Reading, StreamSource
from shardstore.store import open_rows, open_store
from shardstore.stream import Streamable, Transform, check_epochs, column_names, split_transform
from shardstore.table import Table
from shardstore.torch.batches import batch_tensors, row_tensors, transformed_tensors
from shardstore.torch.passes import Pass, PassCounter
from shardstore.torch.replicas import ReplicaFinder, check_not_sharded_again
from shardstore.torch.worker_states import Share, is_of_worker, read_loader, read_worker

# Rows in a row that one worker takes where the dataset yields single rows, and their bytes: states depend on it.
_ROWS_OF_A_TURN = 256
_TURN_NBYTES = 2 << 20


@dataclass
class _Progress:
    """Where an epoch of a pass began, and how many items of it were delivered since."""

    begin: Pass
    items: int = 0


class StoreIterableDataset(IterableDataset[Any]):
    """Batches, or single rows, of a store, epoch after epoch.

    With a `batch_size` it goes into `DataLoader(dataset, batch_size=None, num_workers=k)`: for every k the same batches
    come in the same order. With `batch_size=None` it yields rows, for `DataLoader(dataset, batch_size=64)`: every row
    comes once, and with shuffling, which rows meet in a batch depends on k. Each pass is the next epoch, with workers
    (also persistent ones) too.

    Args:
        store: a path, an opened store, a view or a mixture.
        batch_size: rows of a batch on each rank; None for single rows.
        columns: the columns to read, in order; all by default.
        shuffle: see `Store.batches`.
        seed: see `Store.batches`.
        epochs: how many epochs one pass gives; None streams for ever.
        remainder: see `Store.batches`; for single rows, what happens to rows that cannot be dealt to all ranks equally.
        transform: called with each batch, or each row, as a dict of NumPy arrays; what it returns is yielded, with its
            arrays as tensors. A `shardstore.Rowwise` is called with all rows that are read at once.
        as_tuple: yield a tuple of the columns, such as `(x, y)`, instead of a dict; rows' numbers and the mask, where
            asked for, come last.
        rank: which of the processes that share every epoch this is; by default that of torch.distributed, or 0.
        world_size: how many these are; by default that of torch.distributed, or 1.
        with_rows: see `Store.batches`.
        window_bytes: see `Store.batches`.
        lanes: see `Store.batches`.

    Tensors are writable and keep the columns' dtypes; for those that torch does not have see
    `shardstore.torch.tensors.to_tensor`. A ragged column is a `RaggedTensor` in a batch and a tensor in a row; strings
    and bytes are lists in a batch, and `str` and `bytes` in a row.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Streamable,
        batch_size: int | None = None,
        *,
        columns: str | Sequence[str] | None = None,
        shuffle: Shuffle = False,
        seed: int = 0,
        epochs: int | None = 1,
        remainder: Remainder = "keep",
        transform: Transform | None = None,
        as_tuple: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        with_rows: bool = False,
        window_bytes: int | str = WINDOW_BYTES,
        lanes: int = 1,
    ) -> None:
        rows = open_rows(store)
        self._yields_rows = batch_size is None
        # A row at a time, position p is row p // world_size of rank p % world_size.
        self._plan = rows.plan(
            1 if batch_size is None else batch_size,
            shuffle=shuffle,
            seed=seed,
            remainder=remainder,
            window_bytes=window_bytes,
            lanes=lanes,
        )
        self._streamed = rows if columns is None else rows.select(*column_names(columns))
        self._replicas = ReplicaFinder(rank, world_size)
        world = self._replicas.find().world_size
        self._plan.check(world)
        self._epochs = check_epochs(epochs, self._plan, world)
        self._rowwise, self._transform = split_transform(transform)
        self._as_tuple = as_tuple
        self._with_rows = with_rows
        self._passes = PassCounter()
        # Of the latest pass in this process: where it began, and how far it has come (None before the first item and
        # behind the last one).
        self._begun: Pass | None = None
        self._progress: _Progress | None = None
        # In a worker: its pass, and how many items it has given; a state to begin with.
        self._worker_pass: Pass | None = None
        self._taken = 0
        self._resumed: tuple[Pass, int] | None = None

    @property
    def plan(self) -> Plan:
        """Which rows each step has; for single rows a step is a row."""
        return self._plan

    def __len__(self) -> int:
        """Return the number of batches, or of rows, of one pass on this rank; raise `TypeError` if it never ends."""
        if self._epochs is None:
            raise TypeError("an endless dataset has no length")
        return self._epochs * self._plan.steps(self._replicas.find().world_size)

    def __iter__(self) -> Iterator[Any]:
        check_not_sharded_again(self, self._replicas.find())
        if get_worker_info() is None:
            self._forget_pass()
            return self._pass_here()
        # Begun now and not at the first item: a DataLoader makes its workers' iterators when a pass begins.
        if self._resumed is None:
            begin, self._taken = self._passes.begin(self._epochs), 0
        else:
            (begin, self._taken), self._resumed = self._resumed, None
            self._passes.resume(begin, self._epochs)
        self._worker_pass = begin
        return self._pass_of_worker(begin)

    def _pass_here(self) -> Iterator[Any]:
        """Yield all items of a pass; each is counted before it is delivered."""
        begin = self._begun = self._passes.begin(self._epochs)
        end = begin.end(self._epochs)
        cursor = begin.cursor
        while end is None or cursor.epoch < end:
            progress = _Progress(Pass(cursor, begin.start))
            for item in self._items(cursor, Turns(), 0):
                progress.items += 1
                self._progress = progress  # of passes side by side, the one that delivers
                yield item
            cursor = Cursor(cursor.epoch + 1)
            self._progress = _Progress(Pass(cursor, begin.start))
        self._progress = None

    def _pass_of_worker(self, begin: Pass) -> Iterator[Any]:
        """Yield this worker's items of a pass, behind those that it has already given."""
        info = get_worker_info()
        assert info is not None
        end = begin.end(self._epochs)
        cursor, skip, turns_before = begin.cursor, self._taken, 0
        unit = self._rows_of_a_turn if self._yields_rows else 1
        while end is None or cursor.epoch < end:
            # Turns go on over the whole pass, because a DataLoader asks its workers in turn.
            turns = Turns((info.id - turns_before) % info.num_workers, info.num_workers, unit)
            steps = self._plan.steps(self._replicas.settle().world_size, cursor.delivered)
            own = turns.count(steps)
            for item in self._items(cursor, turns, min(skip, own)):
                self._taken += 1
                yield item
            skip -= min(skip, own)
            turns_before += -(-steps // unit)
            cursor = Cursor(cursor.epoch + 1)

    def _items(self, cursor: Cursor, turns: Turns, skip: int) -> Iterator[Any]:
        """Yield the rest of an epoch as a consumer sees it."""
        replica = self._replicas.settle()
        self._plan.check(replica.world_size)
        reading = Reading(self._source, self._plan, replica, self._with_rows, rowwise=self._rowwise)
        if self._yields_rows:
            for block, _ in reading.blocks(cursor, turns, skip):
                yield from self._single_rows(block)
            return
        for batch in reading.batches(cursor, turns, skip):
            if self._transform is not None:
                yield transformed_tensors(self._transform(batch), self._as_tuple)
            elif self._rowwise is not None:
                yield transformed_tensors(batch, self._as_tuple)
            else:
                yield batch_tensors(batch, self._as_tuple)

    def _single_rows(self, block: Batch) -> Iterator[Any]:
        count = len(next(iter(block.values())))
        if self._transform is not None:
            ragged = [name for name, values in block.items() if type(values) is Ragged]
            for i in range(count):
                row = {name: _row(values, i) for name, values in block.items()}
                yield transformed_tensors(self._transform(row), self._as_tuple, ragged)
            return
        columns = [row_tensors(name, values) for name, values in block.items()]
        if self._as_tuple:
            yield from zip(*columns, strict=True)
            return
        for values in zip(*columns, strict=True):
            yield dict(zip(block, values, strict=True))

    @cached_property
    def _source(self) -> StreamSource:
        return self._streamed.source(self._plan.order)

    @property
    def _rows_of_a_turn(self) -> int:
        return max(1, min(_ROWS_OF_A_TURN, _TURN_NBYTES // max(1, self._source.row_nbytes)))

    def state_dict(self, delivered: int | None = None) -> State:
        """Return where the dataset stands: plain ints and strings, under 1 KB as JSON.

        In the process that iterates it counts what was delivered. In the workers of a `StatefulDataLoader`, which asks
        them itself, it counts what each has given.

        Args:
            delivered: how many batches (or rows) of the current pass were received. Needed only where a plain
                `DataLoader` has workers, since that never tells how many of the batches they made were delivered.

        Raises:
            StateError: if it is needed and not given.
        """
        info = get_worker_info()
        if info is not None and self._worker_pass is not None:
            return self._share(info.id, info.num_workers, self._taken).add_to(self._save(self._worker_pass))
        begun = self._passes.latest_in_workers()
        if delivered is not None:
            first = begun or self._begun or self._passes.next()
            world_size = self._replicas.find().world_size
            return self._save(_behind(first, delivered, self._plan, world_size, first.end(self._epochs)))
        if begun is not None:
            raise StateError(
                "a DataLoader's workers made the latest pass, and it does not tell how many of their batches were "
                "delivered: pass that number, state_dict(delivered=…), or use StoreLoader or torchdata's "
                "StatefulDataLoader, which count"
            )
        progress = self._progress
        if progress is None:
            return self._save(self._passes.next())
        cursor = self._plan.advance(progress.begin.cursor, progress.items, self._replicas.find().world_size)
        return self._save(Pass(cursor, progress.begin.start))

    def _save(self, standing: Pass) -> State:
        return save_state(self._source.fingerprint(), self._plan.order, standing.cursor, standing.start)

    def _share(self, worker: int, workers: int, taken: int) -> Share:
        batch = 0 if self._yields_rows else int(self._plan.batch_size)
        return Share(worker, workers, taken, batch, self._replicas.find().world_size, self._plan.remainder)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on from a state, with exactly the rows of its epoch that were not delivered.

        Takes what `state_dict` of a dataset, a stream or a `StoreLoader` over the same rows in the same order
        returned, whatever the batch size, world size and number of workers; and what `StatefulDataLoader.state_dict`
        returned, for another number of workers than that loader itself can go on with.

        Raises:
            StateError: if the state is incomplete, or of another store, selection of rows, seed, shuffle or version.
        """
        if not isinstance(state, Mapping):
            raise StateError(f"a state is a dict as state_dict() returns it, found a {type(state).__name__}")
        info = get_worker_info()
        taken = 0
        if info is not None and is_of_worker(state):
            begin, taken = self._restore_worker(state, info.id, info.num_workers)
        elif "_snapshot" in state:
            begin = self._restore_loader(state)
        else:
            begin = self._restore(state.get("dataset_state", state))
        if info is None:
            self._forget_pass()
            self._passes.set_next(begin)
        else:
            self._resumed = begin, taken
            self._worker_pass, self._taken = begin, taken

    def _restore(self, state: Mapping[str, Any]) -> Pass:
        if is_of_worker(state):
            raise StateError(
                f"this is the state of worker {state.get('worker')} of {state.get('workers')} alone: "
                "load the state of their StatefulDataLoader"
            )
        return Pass(*restore_state(state, self._source.fingerprint(), self._plan.order))

    def _restore_worker(self, state: Mapping[str, Any], worker: int, workers: int) -> tuple[Pass, int]:
        """Return where a worker's pass began and how many items it gave, if it cut and dealt them as this one does."""
        share, begin = read_worker(state, worker, workers)
        if share != self._share(worker, workers, share.taken):
            raise StateError(
                f"the state was saved with batch={share.batch}, ranks={share.ranks} and remainder={share.remainder!r}, "
                "which this dataset does not have: load the whole loader's state into the dataset, which goes on from "
                "it in batches of any size"
            )
        return self._restore(begin), share.taken

    def _restore_loader(self, state: Mapping[str, Any]) -> Pass:
        """Return where a StatefulDataLoader stood."""
        share, begin = read_loader(state)
        plan = Plan(self._plan.order, share.batch or 1, share.remainder)
        try:
            return _behind(self._restore(begin), share.taken, plan, share.ranks)
        except ValueError as error:
            raise StateError(f"the workers gave more than there is: {error}") from None

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass begin with an epoch; but a position in this epoch that was just restored is kept.

        Reaches living `persistent_workers` too.
        """
        check_not_sharded_again(self, self._replicas.find())
        begin = self._passes.next()
        if check_epoch(epoch) != begin.cursor.epoch:
            begin = Pass(Cursor(int(epoch)), int(epoch))
        self._passes.set_next(begin)
        self._forget_pass()

    def _forget_pass(self) -> None:
        self._begun = self._progress = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_source"}


class StoreMapDataset(Dataset[Any]):
    """A store by row number, for torch's samplers: `DataLoader(dataset, batch_size=64, shuffle=True)`.

    `DataLoader` fetches a batch's rows in one gather through `__getitems__`. `dataset[rows]` with several rows gives a
    batch at once, which `DataLoader(dataset, sampler=BatchSampler(...), batch_size=None)` uses.

    Args:
        store: a path, an opened store or a view.
        columns: the columns to read, in order; all by default.
        as_tuple: give a tuple of the columns, such as `(x, y)`, instead of a dict.
    """

    def __init__(
        self, store: str | os.PathLike[str] | Table, columns: str | Sequence[str] | None = None, as_tuple: bool = False
    ) -> None:
        table = store if isinstance(store, Table) else open_store(store)
        self._table = table if columns is None else table.select(*column_names(columns))
        self._as_tuple = as_tuple

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        """Return one row (an int) or a batch of rows, as writable tensors, with ragged columns as in batches."""
        if isinstance(index, slice):
            index = range(*index.indices(len(self)))
        single = np.ndim(index) == 0
        arrays = self._table.take([int(index)] if single else index)
        if not single:
            return batch_tensors(arrays, self._as_tuple)
        tensors = {name: row_tensors(name, values)[0] for name, values in arrays.items()}
        return tuple(tensors.values()) if self._as_tuple else tensors

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return a list of rows, gathered together."""
        arrays = self._table.take(indices)
        columns = [row_tensors(name, values) for name, values in arrays.items()]
        rows = zip(*columns, strict=True)
        return list(rows) if self._as_tuple else [dict(zip(arrays, row, strict=True)) for row in rows]


def _row(values: Values, number: int) -> Any:
    """Return a row of a column as a transform gets it: an array also where it is a single number."""
    return values[number] if isinstance(values, Ragged) else values[number, ...]


def _behind(begin: Pass, items: int, plan: Plan, world_size: int, end: int | None = None) -> Pass:
    """Return where a pass, which may have an end, stands behind some items of all workers together."""
    cursor = begin.cursor
    if items < 0:
        raise ValueError(f"delivered is {items}; expected a number from 0 on")
    while True:
        steps = plan.steps(world_size, cursor.delivered)
        if items <= steps:
            return Pass(plan.advance(cursor, items, world_size), begin.start)
        items, cursor = items - steps, Cursor(cursor.epoch + 1)
        if cursor.epoch == end or not plan.steps(world_size):
            raise ValueError(f"delivered is {items:,} more than the pass has")
