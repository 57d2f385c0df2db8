"""Copies to a CUDA device, on a stream of their own.

Host memory must stay as it is until the device has read it, and device memory until the stream that uses it is done:
events and `record_stream` see to both. What is copied lies in page-locked memory, else the copy would wait.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def pinned_bytes(nbytes: int) -> NDArray[np.uint8]:
    """Return a uint8 array in page-locked memory, which it keeps for as long as anything shows it."""
    array: NDArray[np.uint8] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True).numpy()
    return array


class DeviceCopies:
    """Copies tensors from one thread to a device, while others compute there.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # What may still be read by the device, oldest first: the event behind the copies, and what they read.
        self._pending: deque[tuple[torch.cuda.Event, list[torch.Tensor]]] = deque()
        self._sources: list[torch.Tensor] = []

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy a tensor in page-locked memory; `flush` says when it is there."""
        self._sources.append(tensor)
        with torch.cuda.stream(self._stream):
            return tensor.to(self._device, non_blocking=True)

    def flush(self) -> torch.cuda.Event:
        """Return the event behind all copies that were begun since the last call."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        self._pending.append((event, self._sources))
        self._sources = []
        while self._pending and self._pending[0][0].query():  # type: ignore[no-untyped-call]
            self._pending.popleft()
        return event

    def close(self) -> None:
        """Wait for the copies that were begun: what they read may go then."""
        self._stream.synchronize()
        self._pending.clear()
        self._sources = []


def hand_over(event: torch.cuda.Event, tensors: list[Any], device: torch.device) -> None:
    """Let the current stream of a device use tensors that another one has made, once an event has come."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(event)
    for tensor in tensors:
        # Else its memory might be given to the next copy as soon as the consumer has dropped it, still in use.
        tensor.record_stream(stream)
