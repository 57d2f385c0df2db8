"""Casts that must keep every value."""

from __future__ import annotations

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
