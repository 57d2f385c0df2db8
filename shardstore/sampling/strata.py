"""The rows of each value of a column, and numbers split in proportion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.sampling.hashing import hash_rows
from shardstore.selection import Rows


@dataclass(frozen=True, eq=False)
class Strata:
    """Row numbers sorted by the value of a column, those of one value in a keyed random order.

    Attributes:
        values: `(values,)`, the column's different values, ascending; all NaN are one value.
        counts: int64 `(values,)`, how many rows have each.
        order: int64 `(rows,)`, the rows of the first value, then those of the second, and so on.
    """

    values: NDArray[Any]
    counts: Rows
    order: Rows

    @classmethod
    def of(cls, column: NDArray[Any], key: bytes) -> Strata:
        """Sort the rows of a column, given as one value a row, in O(rows) memory."""
        values, numbers, counts = np.unique(column, return_inverse=True, return_counts=True)
        # No two hashes are equal, so this is one order on every machine.
        by_hash = np.argsort(hash_rows(np.arange(len(column)), key))
        # NumPy sorts numbers of at most 16 bits in linear time.
        narrow = numbers.astype(np.min_scalar_type(len(values)))
        order = by_hash[np.argsort(narrow[by_hash], kind="stable")]
        return cls(values, counts.astype(np.int64, copy=False), order.astype(np.int64, copy=False))

    @property
    def starts(self) -> Rows:
        """int64 `(values,)`, where in `order` the rows of each value begin."""
        return np.cumsum(self.counts) - self.counts


def apportion(total: int, shares: NDArray[Any]) -> Rows:
    """Split a number in proportion to shares, by largest remainder; of equal remainders the first wins.

    Computed in integers, so that no rounding decides.

    Args:
        total: what to split.
        shares: non-negative integers, as int64 or as Python ints, with a positive sum.

    Returns:
        int64, of the shape of `shares`; the sum is `total`, and each is its exact quota rounded down or up.
    """
    whole = int(shares.sum())
    if total * int(shares.max()) >= 1 << 63:
        shares = shares.astype(object)
    products = shares * total
    quotas = (products // whole).astype(np.int64)
    remainders = products % whole
    quotas[np.argsort(-remainders, kind="stable")[: total - int(quotas.sum())]] += 1
    return quotas
