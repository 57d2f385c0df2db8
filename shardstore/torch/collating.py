"""`PadCollate`: rows of different lengths put together to batches by a DataLoader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_collate

from shardstore.padding import Padding
from shardstore.torch.batches import as_tensor, map_leaves
from shardstore.torch.ragged import RaggedRow, RaggedTensor
from shardstore.torch.tensors import to_send


@dataclass(frozen=True)
class PadCollate(Padding):
    """A `collate_fn` for rows as dicts: `DataLoader(StoreMapDataset("s"), batch_size=64, collate_fn=PadCollate())`.

    Ragged columns are padded to a tensor `(rows, length, *item_shape)`; all else goes through torch's
    `default_collate`: tensors are stacked, strings are lists. Without `columns` these are the ragged columns of
    `StoreMapDataset` and `StoreIterableDataset`, and of other rows those columns whose tensors differ in length in
    this batch: name the columns there, so that every batch has the same keys.

    See `Padding` for the arguments.

    Raises:
        KeyError: for rows without a named column.
        TypeError: for rows that are not dicts.
        ValueError: for an argument that makes no sense, rows that are no items of one shape, or rows that have a
            `NAME_length` already.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the rows as a batch of tensors."""
        if not isinstance(rows[0], Mapping):
            raise TypeError(f"PadCollate takes rows as dicts, found a {type(rows[0]).__name__}: leave as_tuple out")
        self.check_columns(rows[0])
        batch: dict[str, Any] = {}
        lengths: dict[str, Any] = {}
        for name in rows[0]:
            values = [map_leaves(row[name], as_tensor) for row in rows]
            if not self._is_padded(name, values):
                batch[name] = default_collate(values)
                continue
            padded = _joined(name, values).to_padded(self.fill, self.length, self.side)
            batch[name], lengths[name] = map(to_send, padded)
        return self.with_lengths(batch, lengths)

    def _is_padded(self, name: str, values: Sequence[Any]) -> bool:
        if self.columns is not None:
            return name in self.columns
        if not all(isinstance(value, torch.Tensor) and value.ndim for value in values):
            return False
        return isinstance(values[0], RaggedRow) or len({len(value) for value in values}) > 1


def _joined(name: str, values: Sequence[Any]) -> RaggedTensor:
    for value in values:
        if not isinstance(value, torch.Tensor) or not value.ndim:
            raise ValueError(f"column {name!r} cannot be padded: its rows are no arrays of items, found {value!r}")
        if value.shape[1:] != values[0].shape[1:] or value.dtype != values[0].dtype:
            raise ValueError(
                f"column {name!r} cannot be padded: its rows have items of shape {tuple(values[0].shape[1:])} and "
                f"{tuple(value.shape[1:])}, {values[0].dtype} and {value.dtype}; expected one shape and dtype"
            )
    return RaggedTensor.from_rows(values)
