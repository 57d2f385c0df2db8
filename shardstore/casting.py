"""Casts that must keep every value, also those that NumPy makes of lists without being asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cast:
    """A target dtype, and whether floats may be rounded to it."""

    dtype: np.dtype[Any]
    rounds: bool = False

    def apply(self, block: NDArray[Any]) -> tuple[NDArray[Any], int | None]:
        """Return the cast block and the flat index of the first value that it would change, or None."""
        with np.errstate(all="ignore"):
            result = block.astype(self.dtype)
            kept = self._kept(block.real, result.real)  # of real numbers, too, this is all of them
            if block.dtype.kind == "c":
                kept &= self._kept(block.imag, result.imag)
        kept = kept.reshape(-1)
        return result, None if kept.all() else int(kept.argmin())

    def _kept(self, before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
        source, target = before.dtype, after.dtype
        if self.rounds and target.kind == "f":
            return np.asarray(np.isfinite(after) | ~np.isfinite(before))
        # Coming back to the same value is not enough where a conversion wraps or saturates: look at the range too.
        kept = np.asarray(after.astype(source) == before)
        if target.kind == "f" and source.kind == "f":
            kept |= np.isnan(before) & np.isnan(after)
        elif target.kind in "iu" and source.kind in "iu":
            kept &= (before < 0) == (after < 0)
        elif target.kind in "iu" and source.kind == "f":
            # Both bounds are powers of two (or 0), hence exact in every float dtype wide enough to hold them; in
            # float16 they may be infinite.
            bounds = np.iinfo(target)
            kept &= (before >= float(bounds.min)) & (before < float(bounds.max // 2 + 1) * 2.0) & np.isfinite(before)
        elif target.kind == "f" and source.kind in "iu":
            kept &= (after < float(np.iinfo(source).max // 2 + 1) * 2.0) & np.isfinite(after)
        return kept


def exact_array(values: Any) -> NDArray[Any]:
    """Return a list as the array that NumPy makes of it, with every integer as it was.

    NumPy takes integers beyond 2**63 beside smaller ones, and integers beside floats, for float64.

    Raises:
        ValueError: if an integer would change, and no dtype has all of them.
    """
    array = np.asarray(values)
    if array.dtype.kind != "f" or not isinstance(values, list | tuple):
        return array
    leaves = list(_leaves(values))
    integers = [leaf for leaf in leaves if not isinstance(leaf, float) and np.asarray(leaf).dtype.kind in "iu"]
    if not integers:
        return array
    if len(integers) == len(leaves) and all(np.min(leaf) >= 0 for leaf in leaves if np.size(leaf)):
        try:
            return np.array(values, np.uint64)
        except OverflowError:
            pass  # beyond 2**64 no dtype has them
    for leaf in integers:
        for value in np.asarray(leaf).reshape(-1).tolist():
            if int(float(value)) != value:
                raise ValueError(f"the integer {value} would change in {array.dtype}, which its neighbours need")
    return array


def _leaves(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def rounded(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers in a dtype of 8 or 16 bits: nobody asks for one to keep all of a number, but it must have one.

    Raises:
        ValueError: if a number is too large for it.
        TypeError: if they are complex, or no numbers.
    """
    if array.dtype.kind not in "biufV":
        raise TypeError(f"{array.dtype} cannot be cast to {dtype}")
    with np.errstate(all="ignore"):
        result = array.astype(dtype)
        lost = np.isfinite(array.astype(np.float64)) & ~np.isfinite(result.astype(np.float64))
    if lost.any():
        raise ValueError(f"the value {array[lost][0]} is too large for {dtype}")
    return result
