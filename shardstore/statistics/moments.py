"""Range, mean and spread of a column's finite values, from blocks of rows in two passes.

The first pass (`Extent`) finds counts, extremes and about where the mean is. The second (`Moments`) sums distances from
there, and their squares: nothing cancels, however far the values are from zero, and how the rows were cut into blocks
does not matter. 64-bit integers are measured from their least value, in integers, so that none is rounded before it
is near zero. Both passes cut blocks into pieces that stay in the cache: beside a block they take a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import fsum, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.statistics.histograms import FloatBins, IntegerBins, float_bins, integer_bins

MAX_FEATURES = 4096
PIECE_ITEMS = 1 << 16
# So many features, and items of the same feature are put side by side before they are summed.
_FEW_FEATURES = 64
# Values beyond 2^±400 are scaled, so that their squares neither overflow nor vanish.
_PLAIN_EXPONENT = 400
_SIGN = np.uint64(1 << 63)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """Some rows of a column, ready for sums.

    Attributes:
        values: float64 or uint64 `(features, items)`, the caller's to change.
        valid: bool, of the same shape: which are finite; None for all of them.
        nans: how many are NaN or NaT.
        infinities: how many are infinite.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_] | None
    nans: int
    infinities: int

    def finite(self) -> NDArray[Any]:
        """Return the finite values, `(n,)`, in any order."""
        return self.values.reshape(-1, order="A") if self.valid is None else self.values[self.valid]


@dataclass(frozen=True)
class Items:
    """How a column's items are made numbers: float64, or uint64 of the value plus `offset` where int64 may be needed.

    Attributes:
        dtype: bool, an integer, float or complex dtype (whose magnitudes are taken), or a time.
        row_shape: the shape of one row.
    """

    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]

    @property
    def is_wide(self) -> bool:
        """Whether items are 64-bit integers, which float64 would round."""
        return self.dtype.kind in "mM" or (self.dtype.kind in "iu" and self.dtype.itemsize == 8)

    @property
    def are_integers(self) -> bool:
        """Whether minimum and maximum are integers."""
        return self.dtype.kind in "biumM"

    @property
    def offset(self) -> int:
        """What is added to wide items so that uint64 holds them in their order."""
        return 1 << 63 if self.is_wide and self.dtype.kind != "u" else 0

    @property
    def features(self) -> int:
        """Elements of a row that are measured each on its own; 1 if they are all measured together."""
        size = prod(self.row_shape)
        return size if 0 < size <= MAX_FEATURES else 1

    def pieces(self, block: NDArray[Any]) -> Iterator[Piece]:
        """Cut rows into pieces of about `PIECE_ITEMS` items; raise `ValueError` if they are not the column's."""
        if block.dtype != self.dtype or block.shape[1:] != self.row_shape:
            raise ValueError(
                f"expected rows of {self.dtype} and shape {self.row_shape}, found {block.dtype} and {block.shape[1:]}"
            )
        size, features = prod(self.row_shape), self.features
        if not size:
            return
        step = max(1, PIECE_ITEMS // size)
        for start in range(0, len(block), step):
            part = block[start : start + step].reshape(-1, features)
            items = max(1, PIECE_ITEMS // features)
            for first in range(0, len(part), items):
                yield self._piece(part[first : first + items].T)

    def _piece(self, part: NDArray[Any]) -> Piece:
        order: Any = "C" if self.features < _FEW_FEATURES else "F"
        if self.is_wide:
            values = part.astype(part.dtype if self.dtype.kind in "mM" else self.dtype, order=order).view(np.uint64)
            if self.offset:
                values ^= _SIGN
            # NaT is the least int64.
            valid = values != 0 if self.dtype.kind in "mM" else None
            nans = 0 if valid is None else int(values.size - np.count_nonzero(valid))
            return Piece(values, valid if nans else None, nans, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            if self.dtype.kind == "c":
                values = np.abs(part.astype(np.complex128, order=order))
                # The magnitude of NaN + ∞i is infinite.
                values[np.isnan(part)] = np.nan
            else:
                values = part.astype(np.float64, order=order)
        valid = np.isfinite(values)
        if valid.all():
            return Piece(values, None, 0, 0)
        nans = int(np.count_nonzero(np.isnan(values)))
        return Piece(values, valid, nans, int(values.size - np.count_nonzero(valid)) - nans)


class Extent:
    """The first pass: counts and extremes of each feature, and about where its mean is.

    Attributes:
        items: how the column's items are read.
        rows: rows so far.
        nans: NaNs and NaTs so far.
        infinities: infinite values so far.
        counts: int64 `(features,)`, finite values.
        low: float64 or uint64 `(features,)`, the least; the dtype's greatest value where there is none.
        high: `(features,)`, the greatest.
    """

    def __init__(self, items: Items) -> None:
        self.items = items
        self.rows = self.nans = self.infinities = 0
        self._top: Any = np.uint64(2**64 - 1) if items.is_wide else np.float64(np.inf)
        self._bottom: Any = np.uint64(0) if items.is_wide else np.float64(-np.inf)
        self.counts = np.zeros(items.features, np.int64)
        self.low = np.full(items.features, self._top)
        self.high = np.full(items.features, self._bottom)
        # Wide values are summed as distances above `low`.
        self._total = np.zeros(items.features)

    def add(self, block: NDArray[Any]) -> None:
        """Take a block of rows."""
        self.rows += len(block)
        for piece in self.items.pieces(block):
            self._add(piece)

    def _add(self, piece: Piece) -> None:
        values, where = piece.values, True if piece.valid is None else piece.valid
        self.nans += piece.nans
        self.infinities += piece.infinities
        low = values.min(axis=1, initial=self._top, where=where)
        high = values.max(axis=1, initial=self._bottom, where=where)
        above = (values - low[:, None]).astype(np.float64) if self.items.is_wide else values
        with np.errstate(over="ignore", invalid="ignore"):
            total = above.sum(axis=1, where=where)
        counts = np.int64(values.shape[1]) if piece.valid is None else piece.valid.sum(axis=1)
        self._join(np.broadcast_to(counts, low.shape), low, high, total)

    def merge(self, other: Extent) -> None:
        """Take all that another one was given."""
        self.rows += other.rows
        self.nans += other.nans
        self.infinities += other.infinities
        self._join(other.counts, other.low, other.high, other._total)

    def _join(self, counts: NDArray[np.int64], low: NDArray[Any], high: NDArray[Any], total: Floats) -> None:
        least = np.minimum(self.low, low)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.items.is_wide:
                self._total += self.counts * (self.low - least).astype(np.float64)
                total = total + counts * (low - least).astype(np.float64)
            self._total += total
        self.low, self.high, self.counts = least, np.maximum(self.high, high), self.counts + counts

    @property
    def finite(self) -> int:
        """Finite values of all features."""
        return int(self.counts.sum())

    def range(self) -> tuple[int | float, int | float]:
        """Return the least and the greatest value of all features; there must be one."""
        low, high = self.low.min(), self.high.max()
        if self.items.is_wide:
            return int(low) - self.items.offset, int(high) - self.items.offset
        # Adding 0.0 makes -0.0 0.0: which of them comes first is chance.
        return (int(low), int(high)) if self.items.are_integers else (float(low) + 0.0, float(high) + 0.0)

    def centers(self) -> Floats:
        """Return about the mean of each feature, `(features,)`; of wide items as a distance above `low`."""
        some = self.counts > 0
        low, high = np.where(some, self.low, 0), np.where(some, self.high, 0)
        if self.items.is_wide:
            low, high = np.zeros(len(some)), (high - low).astype(np.float64)
        centers = np.asarray(self._total / np.maximum(self.counts, 1))
        centers = np.where(np.isfinite(centers), centers, low / 2 + high / 2)
        return np.asarray(np.clip(centers, low, high), np.float64)


@dataclass(frozen=True)
class Spread:
    """Means and population standard deviations.

    Attributes:
        mean: of all finite values.
        std: of all finite values.
        feature_mean: float64 `(features,)`; NaN where a feature has no finite value.
        feature_std: float64 `(features,)`.
    """

    mean: float
    std: float
    feature_mean: Floats
    feature_std: Floats


class Moments:
    """The second pass over the same rows: sums of distances from the centers, of their squares, and the histogram.

    Attributes:
        bins: the histogram's.
        counts: int64 `(bins,)`, finite values in each bin so far.
        rows: rows so far.
    """

    def __init__(self, extent: Extent, bins: int) -> None:
        self._extent = extent
        self._items = extent.items
        self._centers = extent.centers()
        some = extent.counts > 0
        largest = np.zeros(len(some)) if self._items.is_wide else np.maximum(np.abs(extent.low), np.abs(extent.high))
        self._exponents = np.where(some, _exponents(np.where(some, largest, 0)), 0)
        self._sums = _Sums(len(some))
        self._squares = _Sums(len(some))
        self.rows = 0
        self.bins: FloatBins | IntegerBins
        low, high = extent.range()
        if self._items.are_integers:
            self.bins = integer_bins(int(low), int(high), bins)
        else:
            self.bins = float_bins(low, high, bins)
        self.counts = np.zeros(len(self.bins.edges) - 1, np.int64)

    def add(self, block: NDArray[Any]) -> None:
        """Take a block of rows."""
        self.rows += len(block)
        for piece in self._items.pieces(block):
            self.counts += self._binned(piece.finite())
            distances = self._distances(piece)
            self._sums.add(distances.sum(axis=1))
            np.multiply(distances, distances, out=distances)
            self._squares.add(distances.sum(axis=1))

    def merge(self, other: Moments) -> None:
        """Take all that another one of the same extent and bins was given."""
        self.rows += other.rows
        self.counts += other.counts
        self._sums.merge(other._sums)
        self._squares.merge(other._squares)

    def _binned(self, values: NDArray[Any]) -> NDArray[np.int64]:
        if self._items.is_wide and isinstance(self.bins, IntegerBins):
            return self.bins.count_wide(values, self._items.offset)
        return self.bins.count(values)

    def _distances(self, piece: Piece) -> Floats:
        """Return scaled distances from the centers, 0 for what is not finite; takes over the piece's array."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self._items.is_wide:
                distances = (piece.values - self._extent.low[:, None]).astype(np.float64)
                distances -= self._centers[:, None]
            else:
                distances = piece.values
                if self._exponents.any():
                    distances = np.ldexp(distances, -self._exponents[:, None])
                distances -= np.ldexp(self._centers, -self._exponents)[:, None]
        if piece.valid is not None:
            distances[~piece.valid] = 0
        return distances

    def spread(self) -> Spread:
        """Return what all blocks together give."""
        counts = np.maximum(self._extent.counts, 1)
        centers, shifts = np.ldexp(self._centers, -self._exponents), self._sums.total / counts
        stds = np.sqrt(np.maximum(self._squares.total / counts - shifts**2, 0))
        some = self._extent.counts > 0
        with np.errstate(over="ignore", invalid="ignore"):
            means = np.ldexp(centers + shifts, self._exponents)
            stds = np.minimum(np.ldexp(stds, self._exponents), np.finfo(np.float64).max)
        if self._items.is_wide:
            means = np.array([self._placed(low, mean) for low, mean in zip(self._extent.low, means, strict=True)])
        else:
            means = np.clip(means, self._extent.low, np.maximum(self._extent.low, self._extent.high))
        # Where all are equal, rounding must leave nothing: who divides by it gets noise.
        stds[self._extent.low >= self._extent.high] = 0
        return Spread(*self._overall(), np.where(some, means, np.nan), np.where(some, stds, np.nan))

    def _placed(self, low: Any, above: Any) -> float:
        """Return `above` a wide value, rounded once where it matters."""
        return float(int(low) - self._items.offset + int(above)) + float(above - int(above))

    def _overall(self) -> tuple[float, float]:
        extent, some = self._extent, self._extent.counts > 0
        counts = extent.counts[some]
        first, last = extent.low[some].min(), extent.high[some].max()
        exponent = int(_exponents(np.maximum(np.abs(first), np.abs(last)))) if not self._items.is_wide else 0
        by = self._exponents[some] - exponent
        places = np.ldexp(self._centers[some], -exponent)
        if self._items.is_wide:
            places = places + (extent.low[some] - first).astype(np.float64)
        center = float((counts * places).sum() / counts.sum())
        away, total = places - center, int(counts.sum())
        sums, squares = np.ldexp(self._sums.total[some], by), np.ldexp(self._squares.total[some], 2 * by)
        shift = fsum(sums + counts * away) / total
        variance = fsum(squares + 2 * away * sums + counts * away**2) / total - shift**2
        # A mean may round to beyond the largest float.
        with np.errstate(over="ignore"):
            mean, std = np.ldexp([center + shift, max(variance, 0.0) ** 0.5], exponent)
        if self._items.is_wide:
            return self._placed(first, mean), float(std) if first < last else 0.0
        limit = float(np.finfo(np.float64).max)
        return float(np.clip(mean, first, last)) + 0.0, min(float(std), limit) if first < last else 0.0


class _Sums:
    """Sums `(n,)` of many terms that keep what is lost when a term is added (Neumaier's)."""

    def __init__(self, size: int) -> None:
        self._sum = np.zeros(size)
        self._lost = np.zeros(size)

    def add(self, terms: Floats) -> None:
        total = self._sum + terms
        large = np.abs(self._sum) >= np.abs(terms)
        self._lost += np.where(large, (self._sum - total) + terms, (terms - total) + self._sum)
        self._sum = total

    def merge(self, other: _Sums) -> None:
        self.add(other._sum)
        self._lost += other._lost

    @property
    def total(self) -> Floats:
        return self._sum + self._lost


def _exponents(largest: Any) -> NDArray[np.intc]:
    """Return exponents of two that bring values near 1, and 0 where their squares are far from the limits anyway."""
    exponents = np.frexp(largest)[1]
    return np.where(np.abs(exponents) > _PLAIN_EXPONENT, exponents, 0).astype(np.intc)
