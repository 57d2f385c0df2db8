"""What a dataset or loader delivers: batches and rows of columns, or what a transform made of them, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch

from shardstore.ragged import Blobs, Ragged, Strings, Values
from shardstore.reading import Batch
from shardstore.torch.ragged import RaggedRow, RaggedTensor
from shardstore.torch.tensors import to_tensor


def batch_tensors(columns: Batch, as_tuple: bool) -> Any:
    """Return a batch of columns as tensors, in a dict or a tuple.

    A ragged column becomes a `RaggedTensor`; strings and bytes, of which torch has no tensors, become lists.

    Raises:
        SchemaError: if torch has no dtype for a column.
    """
    tensors = {name: _column_tensor(name, values) for name, values in columns.items()}
    return tuple(tensors.values()) if as_tuple else tensors


def row_tensors(name: str, values: Values) -> Sequence[Any]:
    """Return the rows of a column: tensors that share its memory, `str` or `bytes`.

    Raises:
        SchemaError: if torch has no dtype for it.
    """
    if isinstance(values, Strings | Blobs):
        return values.to_list()
    if isinstance(values, Ragged):
        rows = to_tensor(name, values.values).split_with_sizes(values.lengths.tolist())
        return [row.as_subclass(RaggedRow) for row in rows]
    return to_tensor(name, values).unbind(0)


def transformed_tensors(item: Any, as_tuple: bool, ragged: Collection[str] = ()) -> Any:
    """Turn the arrays in what a transform returned into tensors; leave everything else.

    Args:
        item: what it returned.
        as_tuple: whether a dict becomes a tuple of its values.
        ragged: where a row was transformed, the ragged columns: arrays under their names are still rows of these.
    """
    item = map_leaves(item, as_tensor)
    if not isinstance(item, dict):
        return item
    if as_tuple:
        return tuple(item.values())
    for name in ragged:
        row = item.get(name)
        if isinstance(row, torch.Tensor) and row.ndim:
            item[name] = row.as_subclass(RaggedRow)
    return item


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return a copy of nested dicts, tuples and lists with a function applied to all that is none of them."""
    if isinstance(value, dict):
        return {key: map_leaves(item, function) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_leaves(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return function(value)


def as_tensor(value: Any) -> Any:
    """Return a NumPy array or a `Ragged` as a batch of tensors has it, with a copy where needed; leave all else."""
    if isinstance(value, Strings | Blobs):
        return value.to_list()
    if isinstance(value, Ragged):
        return RaggedTensor.from_ragged(_TRANSFORMED, Ragged.checked(_owned(value.values), _owned(value.offsets)))
    if isinstance(value, np.ndarray | np.generic):
        return to_tensor(_TRANSFORMED, _owned(np.asarray(value)))
    return value


_TRANSFORMED = "(transformed)"


def _column_tensor(name: str, values: Values) -> Any:
    if isinstance(values, Strings | Blobs):
        return values.to_list()
    return RaggedTensor.from_ragged(name, values) if isinstance(values, Ragged) else to_tensor(name, values)


def _owned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array that torch can take, which may be the same."""
    if array.flags.writeable and min(array.strides, default=0) >= 0 and array.dtype.isnative:
        return array
    return np.array(array, array.dtype.newbyteorder("="), order="C")
