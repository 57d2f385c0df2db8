"""CRC32C (Castagnoli), the one checksum of the format."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

CHECKSUM_NBYTES = 4


def crc32c(data: bytes | NDArray[Any], value: int = 0) -> int:
    """Return the CRC32C of C-contiguous `data`, continued from the checksum `value` of what came before."""
    # A dtype without the buffer protocol (datetime64) and a row count of 0 both need the plain byte view.
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    return int(google_crc32c.extend(value, data))
