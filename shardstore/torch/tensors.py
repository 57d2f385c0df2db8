"""Arrays as tensors, and how tensors get from a worker process to the one that trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from shardstore.errors import SchemaError
from shardstore.stream import Batch

# Above this, moving the bytes through a pipe costs more than a file descriptor for shared memory.
MAX_INLINE_NBYTES = 1 << 20


def to_tensor(name: str, array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of `array`; raise `SchemaError` if torch has no such dtype."""
    try:
        tensor = torch.from_numpy(array)
    except TypeError:
        raise SchemaError(
            f"column {name!r} has dtype {array.dtype}, which torch does not have: leave it out with columns=…, "
            "or turn it into numbers with a transform"
        ) from None
    if array.nbytes <= MAX_INLINE_NBYTES and get_worker_info() is not None:
        return tensor.as_subclass(_InlineTensor)
    return tensor


def batch_tensors(arrays: Batch, as_tuple: bool) -> Any:
    """Return a batch of arrays as tensors, in a dict or a tuple."""
    tensors = {name: to_tensor(name, array) for name, array in arrays.items()}
    return tuple(tensors.values()) if as_tuple else tensors


def transformed_tensors(item: Any, as_tuple: bool) -> Any:
    """Turn the arrays in what a transform returned into tensors; leave everything else."""
    item = map_leaves(item, _as_tensor)
    return tuple(item.values()) if as_tuple and isinstance(item, dict) else item


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Return a copy of nested dicts, tuples and lists with a function applied to all that is none of them."""
    if isinstance(value, dict):
        return {key: map_leaves(item, function) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_leaves(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return function(value)


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    if not array.flags.writeable or min(array.strides, default=0) < 0 or not array.dtype.isnative:
        array = np.array(array, array.dtype.newbyteorder("="), order="C")
    return to_tensor("(transformed)", array)


class _InlineTensor(torch.Tensor):
    """A worker's tensor that is sent by its bytes. It arrives, and comes out of every operation, as a plain tensor.

    torch sends each tensor as a descriptor of shared memory, which the receiver fetches over a socket of its own: about
    a millisecond for a tensor of any size.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return torch.from_numpy, (self.numpy(),)
