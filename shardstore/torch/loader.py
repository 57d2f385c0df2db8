"""`StoreLoader`: ready batches on a device, from a thread instead of worker processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch

from shardstore.background import in_background
from shardstore.errors import StateError
from shardstore.order import Cursor, Remainder
from shardstore.planning import WINDOW_BYTES, Shuffle
from shardstore.stream import Batch, BatchStream, Reading, Transform, column_names, cut_block
from shardstore.torch.datasets import open_rows
from shardstore.torch.replicas import ReplicaFinder, check_not_sharded_again
from shardstore.torch.tensors import batch_tensors, transformed_tensors

# Groups of batches, of about 2 MiB each, that may wait for the consumer.
_GROUPS_AHEAD = 2


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
            its arrays as tensors.
        as_tuple: deliver a tuple of the columns, such as `(x, y)`, instead of a dict.
        rank: by default that of torch.distributed, or 0.
        world_size: by default that of torch.distributed, or 1.
        with_rows: also give the int64 numbers of the rows in the store.
        window_bytes: part of the order for `shuffle="window"`.
        lanes: part of the order for `shuffle="window"`.
        device: where the tensors are to be; by default they stay in the memory of the CPU.
        pin_memory: whether to go there through page-locked memory; by default for CUDA devices.
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
        reading = Reading(streamed.source(plan.order), plan, self._replicas.settle(), with_rows)
        super().__init__(reading, epochs=epochs, transform=transform)
        self._as_tuple = as_tuple
        self._device = None if device is None else torch.device(device)
        on_cuda = self._device is not None and self._device.type == "cuda"
        self._pin_memory = on_cuda if pin_memory is None else pin_memory
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

    def _items(self, reading: Reading, cursor: Cursor) -> Iterator[Any]:
        groups = in_background(lambda: self._groups(reading, cursor), _GROUPS_AHEAD)
        for group in groups:
            for item in group:
                yield item if self._device is None else _move(item, self._device)

    def _groups(self, reading: Reading, cursor: Cursor) -> Iterator[list[Any]]:
        """Yield several ready batches at a time: handing each one over would cost more than making it."""
        for block, bounds in reading.blocks(cursor):
            group: list[Any] = []
            try:
                group.extend(map(self._ready, cut_block(block, bounds)))
            except Exception:
                yield group  # what was ready before comes before the error
                raise
            yield group

    def _ready(self, batch: Batch) -> Any:
        if self._transform is None:
            item = batch_tensors(batch, self._as_tuple)
        else:
            item = transformed_tensors(self._transform(batch), self._as_tuple)
        return _pin(item) if self._pin_memory else item

    @property
    def sampler(self) -> Self:
        """What Lightning calls `set_epoch` on."""
        return self


def _move(item: Any, device: torch.device) -> Any:
    return _apply(item, lambda tensor: tensor.to(device, non_blocking=True))


def _pin(item: Any) -> Any:
    return _apply(item, torch.Tensor.pin_memory)


def _apply(item: Any, function: Any) -> Any:
    if isinstance(item, torch.Tensor):
        return function(item)
    if isinstance(item, dict):
        return {key: _apply(value, function) for key, value in item.items()}
    if isinstance(item, tuple | list):
        items = [_apply(value, function) for value in item]
        return type(item)(*items) if hasattr(item, "_fields") else type(item)(items)
    return item
