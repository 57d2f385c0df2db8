"""`StoreLoader`: ready batches on a device, from a thread instead of worker processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from shardstore.buffers import Allocate, BufferPool
from shardstore.errors import StateError
from shardstore.order import Cursor, Remainder
from shardstore.planning import WINDOW_BYTES, Shuffle
from shardstore.reading import Batch, Reading, cut_block, new_pool
from shardstore.store import open_rows
from shardstore.stream import BatchStream, Transform, column_names, split_transform
from shardstore.torch.batches import batch_tensors, map_leaves, transformed_tensors
from shardstore.torch.device import DeviceCopies, hand_over, pinned_bytes
from shardstore.torch.ragged import RaggedTensor
from shardstore.torch.replicas import ReplicaFinder, check_not_sharded_again

# Blocks of batches, of about 2 MiB each, that may wait for the consumer.
PREFETCH = 2
# What goes to a device; strings and whatever else a transform returns stay.
_MOVED = (torch.Tensor, RaggedTensor)


@dataclass(frozen=True)
class _Group:
    """Batches that are on their way to a device.

    Attributes:
        items: what is delivered.
        tensors: all tensors in it, or those that they are views of.
        event: what comes once they have arrived.
    """

    items: list[Any]
    tensors: list[Any]
    event: torch.cuda.Event


class StoreLoader(BatchStream):
    """Batches of a store as tensors, read in a thread while the model works. There are no worker processes.

    Iterates, counts and resumes like a `BatchStream`: each pass gives the rest of its epoch, the next one the next
    epoch. The thread begins with a pass and ends with it.

    Args:
        store: a path, an opened store, a view or a mixture.
        batch_size: rows of a batch on each rank.
        columns: the columns to read, in order; all by default.
        shuffle: see `Store.batches`, as for the following ones.
        seed: with the epoch's number it determines the order.
        epochs: how many epochs one pass gives; None streams for ever.
        remainder: what to do with the rows after the last whole step.
        transform: called in the thread with each batch as a dict of NumPy arrays; what it returns is delivered, with
            its arrays as tensors. A `shardstore.Rowwise` is called with all rows that are read at once.
        as_tuple: deliver a tuple of the columns, such as `(x, y)`, instead of a dict.
        rank: by default that of torch.distributed, or 0.
        world_size: by default that of torch.distributed, or 1.
        with_rows: also give the int64 numbers of the rows in the store.
        prefetch: how many blocks of about 2 MiB (or one batch) the thread makes ready ahead; 0 for no thread.
        window_bytes: part of the order for `shuffle="window"`.
        lanes: part of the order for `shuffle="window"`.
        device: where the tensors are to be; by default they stay in the memory of the CPU. To a CUDA device they are
            copied from page-locked buffers on a stream of the loader's own, while the device computes.
        pin_memory: whether tensors that stay are in page-locked memory, for copies by the consumer; or, for a CUDA
            device, False for copies without it, in the consumer's stream.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Any,
        batch_size: int,
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
        prefetch: int = PREFETCH,
        window_bytes: int | str = WINDOW_BYTES,
        lanes: int = 1,
        device: str | torch.device | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        rows = open_rows(store)
        plan = rows.plan(
            batch_size, shuffle=shuffle, seed=seed, remainder=remainder, window_bytes=window_bytes, lanes=lanes
        )
        streamed = rows if columns is None else rows.select(*column_names(columns))
        self._replicas = ReplicaFinder(rank, world_size)
        rowwise, transform = split_transform(transform)
        self._device = None if device is None else torch.device(device)
        on_cuda = self._device is not None and self._device.type == "cuda"
        self._pin_memory = on_cuda if pin_memory is None else pin_memory
        # Blocks are read into page-locked memory, and copied from there.
        self._copies_ahead = on_cuda and self._pin_memory
        pinned = _pinned_pool if self._copies_ahead and transform is None else None
        reading = Reading(
            streamed.source(plan.order),
            plan,
            self._replicas.settle(),
            with_rows,
            rowwise=rowwise,
            make_empty=pinned or new_pool,
        )
        super().__init__(reading, epochs=epochs, transform=transform, prefetch=prefetch)
        self._as_tuple = as_tuple
        self._replica = reading.replica

    def __iter__(self) -> Iterator[Any]:
        found = self._replicas.find()
        if found != self._replica:
            raise StateError(
                f"this loader was made as rank {self._replica.rank} of {self._replica.world_size}, but "
                f"torch.distributed says {found.rank} of {found.world_size} now: make it once the process group "
                "stands, or give rank and world_size"
            )
        check_not_sharded_again(self, found)
        return super().__iter__()

    _is_plain = False

    def _ready(self, batch: Batch) -> Any:
        if self._transform is not None:
            item = transformed_tensors(self._transform(batch), self._as_tuple)
        elif self._rowwise is not None:
            item = transformed_tensors(batch, self._as_tuple)
        else:
            item = batch_tensors(batch, self._as_tuple)
        return map_leaves(item, _pinned) if self._pin_memory and not self._copies_ahead else item

    def _made_here(self, reading: Reading, cursor: Cursor) -> Iterator[Iterable[Any]]:
        if not self._copies_ahead:
            yield from super()._made_here(reading, cursor)
            return
        for group in self._made_ahead(reading, cursor):
            yield self._received(group)

    def _made_ahead(self, reading: Reading, cursor: Cursor) -> Iterator[Any]:
        if not self._copies_ahead:
            yield from super()._made_ahead(reading, cursor)
            return
        assert self._device is not None
        copies = DeviceCopies(self._device)
        try:
            if self._transform is None:
                yield from self._copied_blocks(reading, cursor, copies)
            else:
                for items in super()._made_ahead(reading, cursor):
                    yield _copied(items, copies)
        finally:
            copies.close()

    def _copied_blocks(self, reading: Reading, cursor: Cursor, copies: DeviceCopies) -> Iterator[_Group]:
        """Yield groups whose batches are views of blocks on the device, each of which was copied as a whole."""
        for block, bounds in reading.blocks(cursor):
            if not all(isinstance(values, np.ndarray) for values in block.values()):
                yield _copied([self._ready(batch) for batch in cut_block(block, bounds)], copies)
                continue
            tensors = {name: copies.copy(_pinned(tensor)) for name, tensor in batch_tensors(block, False).items()}
            batches = list(cut_block(tensors, bounds))
            items = [tuple(batch.values()) for batch in batches] if self._as_tuple else batches
            yield _Group(items, list(tensors.values()), copies.flush())

    def _received(self, group: Any) -> Iterable[Any]:
        if self._device is None:
            return super()._received(group)
        if isinstance(group, _Group):
            hand_over(group.event, group.tensors, self._device)
            return group.items
        return (map_leaves(item, _to(self._device)) for item in group)

    # What Lightning looks for in a loader that has a sampler.
    batch_sampler = None

    @property
    def sampler(self) -> Self:
        """What Lightning calls `set_epoch` on."""
        return self


def _pinned_pool() -> Allocate:
    return BufferPool(pinned_bytes).empty


def _copied(items: list[Any], copies: DeviceCopies) -> _Group:
    """Begin to copy all tensors in some items."""
    tensors: list[Any] = []

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, RaggedTensor):
            return RaggedTensor(copy(leaf.values), copy(leaf.offsets))
        if not isinstance(leaf, torch.Tensor):
            return leaf
        tensors.append(copies.copy(_pinned(leaf)))
        return tensors[-1]

    moved = [map_leaves(item, copy) for item in items]
    return _Group(moved, tensors, copies.flush())


def _to(device: torch.device) -> Callable[[Any], Any]:
    return lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, _MOVED) else leaf


def _pinned(leaf: Any) -> Any:
    if not isinstance(leaf, _MOVED) or (isinstance(leaf, torch.Tensor) and leaf.is_pinned()):
        return leaf
    return leaf.pin_memory()
