"""Datasets for PyTorch. Importing this module is what imports torch.

`StoreIterableDataset` streams in the store's own order (shuffled or not) and is right under any number of DataLoader
workers; `StoreMapDataset` is for torch's own samplers.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from shardstore.errors import SchemaError
from shardstore.store import open_store
from shardstore.stream import (
    GATHER_NBYTES,
    Batch,
    Batching,
    Remainder,
    Shuffle,
    Transform,
    check_epochs,
    read_batches,
)
from shardstore.table import Table, TableRows, column_names

# Rows of the internal batches that are dealt to workers where the dataset yields single rows.
_DEALT_ROWS = 256


class StoreIterableDataset(IterableDataset[Any]):
    """Batches, or single rows, of a store, epoch after epoch.

    With a `batch_size` it goes into `DataLoader(dataset, batch_size=None, num_workers=k)`: for every k the same batches
    come in the same order. With `batch_size=None` it yields rows, for `DataLoader(dataset, batch_size=64)`: every row
    comes once, and with shuffling, which rows meet in a batch depends on k. Each pass is the next epoch, with workers
    (also persistent ones) too.

    Args:
        store: a path, an opened store or a view.
        batch_size: rows of a batch; None for single rows.
        columns: the columns to read, in order; all by default.
        shuffle: see `Table.batches`.
        seed: see `Table.batches`.
        epochs: how many epochs one pass gives; None streams for ever.
        remainder: see `Table.batches`; single rows have none to drop.
        transform: called with each batch, or each row, as a dict of NumPy arrays; what it returns is yielded, with its
            arrays as tensors.
        as_tuple: yield a tuple of the columns, such as `(x, y)`, instead of a dict.

    Tensors are writable and keep the columns' dtypes. Raises `SchemaError` for dtypes that torch does not have.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Table,
        batch_size: int | None = None,
        *,
        columns: str | Sequence[str] | None = None,
        shuffle: Shuffle = False,
        seed: int = 0,
        epochs: int | None = 1,
        remainder: Remainder = "keep",
        transform: Transform | None = None,
        as_tuple: bool = False,
    ) -> None:
        self._table = _table(store, columns)
        self._rows = TableRows(self._table)
        self._yields_rows = batch_size is None
        if self._yields_rows and remainder != "keep":
            raise ValueError(f"remainder={remainder!r} is about batches, but batch_size=None yields rows")
        if batch_size is None:
            size = max(1, min(_DEALT_ROWS, GATHER_NBYTES // max(1, self._rows.row_nbytes)))
        else:
            size = batch_size
        self._batching = Batching.of(len(self._table), size, shuffle, seed, remainder)
        self._epochs = check_epochs(epochs, self._batching)
        self._transform = transform
        self._as_tuple = as_tuple
        self._passes = PassCounter()

    def __len__(self) -> int:
        """Return the number of batches, or of rows, of one pass; raise `TypeError` if it never ends."""
        if self._epochs is None:
            raise TypeError("an endless dataset has no length")
        return self._epochs * (len(self._table) if self._yields_rows else len(self._batching))

    def __iter__(self) -> Iterator[Any]:
        # Counted here and not at the first item: a DataLoader makes its workers' iterators when a pass begins.
        return self._items(self._passes.begin(self._epochs or 1))

    def _items(self, epoch: int) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        last = None if self._epochs is None else epoch + self._epochs
        step = worker
        while last is None or epoch < last:
            # Steps are dealt in turn over the whole pass, because a DataLoader asks its workers in turn.
            steps = range(step, len(self._batching), workers)
            for batch in read_batches(self._rows, self._batching, epoch, steps):
                if self._yields_rows:
                    yield from self._single_rows(batch)
                else:
                    yield self._item(batch)
            step += len(steps) * workers - len(self._batching)
            epoch += 1

    def _item(self, arrays: Batch) -> Any:
        if self._transform is not None:
            return self._transformed(arrays)
        tensors = {name: to_tensor(name, array) for name, array in arrays.items()}
        return tuple(tensors.values()) if self._as_tuple else tensors

    def _transformed(self, arrays: Batch) -> Any:
        assert self._transform is not None
        item = _to_tensors(self._transform(arrays))
        return tuple(item.values()) if self._as_tuple and isinstance(item, dict) else item

    def _single_rows(self, batch: Batch) -> Iterator[Any]:
        count = len(next(iter(batch.values())))
        if self._transform is not None:
            for i in range(count):
                yield self._transformed({name: array[i, ...] for name, array in batch.items()})
            return
        columns = [to_tensor(name, array).unbind(0) for name, array in batch.items()]
        if self._as_tuple:
            yield from zip(*columns, strict=True)
            return
        for values in zip(*columns, strict=True):
            yield dict(zip(batch, values, strict=True))


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
        self._table = _table(store, columns)
        self._as_tuple = as_tuple

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: Any) -> Any:
        """Return one row (an int) or a batch of rows, as writable tensors."""
        if isinstance(index, slice):
            index = range(*index.indices(len(self)))
        single = np.ndim(index) == 0
        arrays = self._table.take([int(index)] if single else index)
        tensors = {name: to_tensor(name, array) for name, array in arrays.items()}
        if single:
            tensors = {name: tensor[0] for name, tensor in tensors.items()}
        return tuple(tensors.values()) if self._as_tuple else tensors

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return a list of rows, gathered together."""
        arrays = self._table.take(indices)
        columns = [to_tensor(name, array).unbind(0) for name, array in arrays.items()]
        rows = zip(*columns, strict=True)
        return list(rows) if self._as_tuple else [dict(zip(arrays, row, strict=True)) for row in rows]


class PassCounter:
    """Tells which epoch a pass begins with, the same for all the worker processes that take part in it.

    A DataLoader never tells the dataset that a pass begins: it makes new workers from copies of the dataset, or lets
    living ones iterate again. What the workers of one pass share is the seed that the loader drew for them, and how
    often each has begun. The first of them to come with a new pair of these takes the next epochs, in memory that all
    of them share; the others find them there. A worker that comes again with the pair of a pass that it has joined
    (the loader drew the same seed, since somebody seeds torch before every pass) begins a new one.
    """

    # Passes that can be under way at the same time, and workers of one of them.
    _REMEMBERED = 16
    _MAX_WORKERS = 1024

    def __init__(self) -> None:
        # Row 0 holds the next epoch and the number of passes; the others (seed, begun, epoch) of the latest passes.
        self._shared = torch.full((1 + self._REMEMBERED, 3), -1, dtype=torch.int64)
        self._shared[0] = 0
        self._joined = torch.zeros(1 + self._REMEMBERED, self._MAX_WORKERS, dtype=torch.bool)
        for tensor in (self._shared, self._joined):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        self._begun = 0
        self._make_lock("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")

    def _make_lock(self, method: str) -> None:
        # From a context of its own: the default one would settle the start method for the whole program.
        self._lock = multiprocessing.get_context(method).Lock()
        self._lock_method = method

    def begin(self, epochs: int) -> int:
        """Return the first epoch of the pass that this process begins, which takes `epochs` of them."""
        info = get_worker_info()
        if info is None:
            with self._lock:
                return self._advance(epochs)
        if info.id >= self._MAX_WORKERS:
            raise ValueError(f"at most {self._MAX_WORKERS:,} workers can share a dataset, this is number {info.id:,}")
        key = [info.seed - info.id, self._begun]
        self._begun += 1
        with self._lock:
            passes = int(self._shared[0, 1])
            for number in range(passes - 1, max(-1, passes - 1 - self._REMEMBERED), -1):  # the latest first
                place = 1 + number % self._REMEMBERED
                if self._shared[place, :2].tolist() == key and not self._joined[place, info.id]:
                    break
            else:
                place = 1 + passes % self._REMEMBERED
                self._shared[place] = torch.tensor([*key, self._advance(epochs)])
                self._joined[place] = False
            self._joined[place, info.id] = True
            return int(self._shared[place, 2])

    def _advance(self, epochs: int) -> int:
        epoch = int(self._shared[0, 0])
        self._shared[0, 0] += epochs
        self._shared[0, 1] += 1
        return epoch

    def __getstate__(self) -> dict[str, Any]:
        if multiprocessing.context.get_spawning_popen() is None:
            # Pickled for somewhere else than a child process: nothing can be shared with it.
            return {"_shared": self._shared.clone()}
        if self._lock_method != "spawn":
            self._make_lock("spawn")
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]
        if "_lock" in state:
            self.__dict__.update(state)
        else:
            self._shared.copy_(state["_shared"])


def to_tensor(name: str, array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of `array`; raise `SchemaError` if torch has no such dtype."""
    try:
        return torch.from_numpy(array)
    except TypeError:
        raise SchemaError(
            f"column {name!r} has dtype {array.dtype}, which torch does not have: leave it out with columns=…, "
            "or turn it into numbers with a transform"
        ) from None


def _to_tensors(value: Any) -> Any:
    """Turn the arrays in what a transform returned into tensors; leave everything else."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if not array.flags.writeable or min(array.strides, default=0) < 0 or not array.dtype.isnative:
            array = np.array(array, array.dtype.newbyteorder("="), order="C")
        return to_tensor("(transformed)", array)
    if isinstance(value, dict):
        return {key: _to_tensors(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [_to_tensors(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _table(store: str | os.PathLike[str] | Table, columns: str | Sequence[str] | None) -> Table:
    table = store if isinstance(store, Table) else open_store(store)
    return table if columns is None else table.select(*column_names(columns))
