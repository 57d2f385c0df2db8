"""`StoreLoader`: ready batches on a device, from a thread instead of worker processes."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Self

import torch

from shardstore.background import in_background
from shardstore.errors import StateError
from shardstore.order import Cursor, Remainder
from shardstore.planning import WINDOW_BYTES, Shuffle
from shardstore.store import open_rows
from shardstore.stream import Batch, BatchStream, Reading, Transform, column_names, cut_block
from shardstore.torch.batches import batch_tensors, map_leaves, transformed_tensors
from shardstore.torch.ragged import RaggedTensor
from shardstore.torch.replicas import ReplicaFinder, check_not_sharded_again

# Groups of batches, of about 2 MiB each, that may wait for the consumer.
_GROUPS_AHEAD = 2
# What goes to a device; strings and whatever else a transform returns stay.
_MOVED = (torch.Tensor, RaggedTensor)


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
        # The groups that the thread of the current pass makes. They are the iterator's: the thread ends with it.
        self._groups_ahead: weakref.ref[Generator[list[Any], None, None]] | None = None

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
        self._stop_thread()
        groups = in_background(lambda: self._groups(reading, cursor), _GROUPS_AHEAD)
        self._groups_ahead = weakref.ref(groups)
        move = None if self._device is None else _to(self._device)
        for group in groups:
            for item in group:
                yield item if move is None else map_leaves(item, move)

    def _groups(self, reading: Reading, cursor: Cursor) -> Iterator[list[Any]]:
        """Yield several ready batches at a time: handing each one over would cost more than making it."""
        for block, bounds in reading.blocks(cursor):
            group: list[Any] = []
            try:
                for batch in cut_block(block, bounds):
                    group.append(self._ready(batch))  # noqa: PERF401, a StopIteration must not end the loop
            except Exception:
                yield group  # what was ready before comes before the error
                raise
            yield group

    def _ready(self, batch: Batch) -> Any:
        if self._transform is None:
            item = batch_tensors(batch, self._as_tuple)
        else:
            item = transformed_tensors(self._transform(batch), self._as_tuple)
        return map_leaves(item, _pinned) if self._pin_memory else item

    def close(self) -> None:
        """Let go of the store, and of the thread that reads it; later reads raise `ValueError`."""
        super().close()
        self._stop_thread()

    def _stop_thread(self) -> None:
        groups = None if self._groups_ahead is None else self._groups_ahead()
        if groups is not None:
            groups.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_groups_ahead": None}

    # What Lightning looks for in a loader that has a sampler.
    batch_sampler = None

    @property
    def sampler(self) -> Self:
        """What Lightning calls `set_epoch` on."""
        return self


def _to(device: torch.device) -> Callable[[Any], Any]:
    return lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, _MOVED) else leaf


def _pinned(leaf: Any) -> Any:
    return leaf.pin_memory() if isinstance(leaf, _MOVED) else leaf
