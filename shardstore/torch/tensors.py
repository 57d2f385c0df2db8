"""Arrays as tensors, and how tensors get from a worker process to the one that trains."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from shardstore.errors import SchemaError
from shardstore.schema import EXTENDED_DTYPES

# Above this, moving the bytes through a pipe costs more than a file descriptor for shared memory.
MAX_INLINE_NBYTES = 1 << 20
# Torch's dtypes of which NumPy or torch's own indexing knows nothing but the bits, and the integers of these bits.
_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64} | {
    getattr(torch, name): {"uint16": torch.int16, "uint8": torch.uint8}[carrier]
    for name, carrier in EXTENDED_DTYPES.items()
    if hasattr(torch, name)
}


def to_tensor(name: str, array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor that shares the memory of `array`.

    bfloat16 and the float8 types are torch's own. Dates and times are the int64 numbers that they are stored as, and
    fixed-width bytes S<n> are uint8 with a last axis of n.

    Args:
        name: the column, for the message.
        array: writable, in native byte order.

    Raises:
        SchemaError: if torch has no dtype for it.
    """
    try:
        tensor = torch.from_numpy(array)
    except TypeError:
        tensor = _tensor_of_bits(name, array)
    return to_send(tensor)


def to_send(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a form in which it leaves a worker process fast; elsewhere, as it is."""
    if get_worker_info() is None or tensor.nbytes > MAX_INLINE_NBYTES:
        return tensor
    return tensor.as_subclass(InlineTensor)


def integers_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor in a dtype that can be indexed and goes to NumPy: its own, or that of its bits."""
    return tensor.view(_BITS.get(tensor.dtype, tensor.dtype))


def _tensor_of_bits(name: str, array: NDArray[Any]) -> torch.Tensor:
    dtype = array.dtype
    if dtype.kind in "mM":
        return torch.from_numpy(array.view(np.int64))
    if dtype.kind == "S":
        return torch.from_numpy(array[..., np.newaxis].view(np.uint8))
    if dtype.name in EXTENDED_DTYPES and hasattr(torch, dtype.name):
        return torch.from_numpy(array.view(EXTENDED_DTYPES[dtype.name])).view(getattr(torch, dtype.name))
    raise SchemaError(
        f"column {name!r} has dtype {dtype}, which torch {torch.__version__} does not have: leave it out with "
        "columns=…, or turn it into numbers with a transform"
    ) from None


class InlineTensor(torch.Tensor):
    """A worker's tensor that is sent by its bytes. It arrives, and comes out of every operation, as a plain tensor.

    torch sends each tensor as a descriptor of shared memory, which the receiver fetches over a socket of its own: about
    a millisecond for a tensor of any size.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _received, (integers_of(self).numpy(), self.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        plain: torch.Tensor = deepcopy(self.as_subclass(torch.Tensor), memo)  # torch refuses subclasses
        return plain


def _received(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(array).view(dtype)
