"""Ragged columns as tensors: `RaggedTensor` for several rows, `RaggedRow` for one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import get_worker_info

from shardstore.ragged import Ragged, Side, check_padding
from shardstore.selection import normalize
from shardstore.torch.tensors import InlineTensor, integers_of, to_tensor


class RaggedTensor:
    """Rows of different lengths: their items end to end, and where each row begins.

    What a ragged column is in a batch of tensors. Row *i* is `values[offsets[i] : offsets[i + 1]]`.

    Args:
        values: `(items, *item_shape)`, the items of all rows.
        offsets: int64 `(rows + 1,)`, from 0 to the number of items, never decreasing, on the same device.

    Raises:
        ValueError: if shapes or dtype are others. What the offsets say is not looked at, which could wait for a device.

    Attributes:
        values: as given.
        offsets: as given.
    """

    def __init__(self, values: torch.Tensor, offsets: torch.Tensor) -> None:
        if offsets.ndim != 1 or not len(offsets) or offsets.dtype != torch.int64:
            raise ValueError(
                f"offsets must be int64 of one axis, with one entry more than there are rows; found {offsets.dtype} "
                f"of shape {tuple(offsets.shape)}"
            )
        if values.ndim == 0:
            raise ValueError("values is a single value; expected a tensor of items")
        self.values = values
        self.offsets = offsets

    @classmethod
    def from_ragged(cls, name: str, rows: Ragged) -> Self:
        """Make one that shares the memory of a column's rows; raise `SchemaError` if torch lacks their dtype."""
        return cls(to_tensor(name, rows.values), to_tensor(name, rows.offsets))

    @classmethod
    def from_rows(cls, rows: Sequence[torch.Tensor]) -> Self:
        """Join tensors, one a row and at least one, of one dtype and one shape behind their first axis."""
        lengths = torch.tensor([0, *map(len, rows)])
        return cls(torch.cat(list(rows)), lengths.cumsum(0).to(rows[0].device))

    @property
    def lengths(self) -> torch.Tensor:
        """int64 `(rows,)`, the number of items of each row."""
        return self.offsets.diff()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the items."""
        return self.values.dtype

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of an item."""
        return tuple(self.values.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where values and offsets are."""
        return self.values.device

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        """Return one row (an int) or consecutive rows (a slice) as views, or fresh ones by integers or a mask.

        Raises:
            IndexError: if a row is out of range.
        """
        index = normalize(index.cpu() if isinstance(index, torch.Tensor) else index, len(self))
        if isinstance(index, int):
            start, stop = self.offsets[index : index + 2].tolist()
            return self.values[start:stop]
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step == 1:
                offsets = self.offsets[first : max(first, last) + 1]
                start, stop = int(offsets[0]), int(offsets[-1])
                return type(self)(self.values[start:stop], offsets - start)
            index = np.arange(first, last, step)
        rows = torch.from_numpy(index).to(self.device)
        return self._runs(self.offsets[:-1][rows], self.lengths[rows])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.values.split_with_sizes(self.lengths.tolist()))

    def to_list(self) -> list[Any]:
        """Return the rows as nested lists of Python numbers."""
        return [row.tolist() for row in self]

    def to_padded(
        self, fill: Any = 0, length: int | None = None, side: Side = "right"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows as one tensor, all of one length, and how many items of each are its own.

        Args:
            fill: the value behind (or before) a row's own items.
            length: items of every row, at least 0; by default those of the longest row. Longer rows are cut.
            side: where rows are filled and cut: `"right"`, behind their items, or `"left"`, before them.

        Returns:
            A fresh tensor `(rows, length, *item_shape)` and int64 `(rows,)`, each row's number of own items in it.
        """
        check_padding(length, side)
        lengths = self.lengths
        if length is None:
            length = int(lengths.max()) if len(self) else 0
        kept = lengths.clamp(max=length)
        values = self.values
        if (kept < lengths).any():
            values = self._runs(self.offsets[:-1] if side == "right" else self.offsets[1:] - kept, kept).values
        shape = (len(self), length, *self.item_shape)
        padded = torch.full(shape, fill, dtype=self.dtype, device=self.device)
        places = torch.arange(length, device=self.device)
        own = places < kept[:, None] if side == "right" else places >= (length - kept)[:, None]
        integers_of(padded)[own] = integers_of(values)
        return padded, kept

    def to_nested(self) -> torch.Tensor:
        """Return the rows as a nested tensor in the jagged layout, `(rows, j, *item_shape)`, in the same memory."""
        return torch.nested.nested_tensor_from_jagged(self.values, self.offsets)

    def to(self, device: str | torch.device, non_blocking: bool = False) -> Self:
        """Return it on a device."""
        values = self.values.to(device, non_blocking=non_blocking)
        return type(self)(values, self.offsets.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return it in page-locked memory, as `DataLoader(pin_memory=True)` asks for."""
        return type(self)(self.values.pin_memory(), self.offsets.pin_memory())

    def _runs(self, starts: torch.Tensor, lengths: torch.Tensor) -> Self:
        """Return runs of consecutive items as rows, in fresh tensors."""
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        total = int(offsets[-1])
        shifts = torch.repeat_interleave(starts - offsets[:-1], lengths, output_size=total)
        values = integers_of(self.values)[torch.arange(total, device=self.device) + shifts]
        return type(self)(values.view(self.dtype), offsets)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.item_shape))
        items = str(self.dtype).removeprefix("torch.") + (f"[{shape}]" if shape else "")
        return f"RaggedTensor({len(self):,} rows of {items}, {len(self.values):,} items, device={str(self.device)!r})"


class RaggedRow(InlineTensor):
    """One row of a ragged column: a tensor that tells `PadCollate` to pad it, also where all rows are of one length.

    It comes out of every operation as a plain tensor.
    """

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        if get_worker_info() is None:
            plain: Any = self.as_subclass(torch.Tensor)  # saved as what torch.load knows
            return plain.__reduce_ex__(protocol)  # type: ignore[no-any-return]
        make, arguments = super().__reduce_ex__(protocol)
        return _received_row, (make, arguments)


def _received_row(make: Any, arguments: tuple[Any, ...]) -> RaggedRow:
    return make(*arguments).as_subclass(RaggedRow)  # type: ignore[no-any-return]
