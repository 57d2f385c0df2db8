"""Bins of a known range, and how many values of a block lie in each: exact for the edges as they are."""

from __future__ import annotations

from dataclasses import dataclass
from math import ulp
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 4096
# Bins in which the place of a value is known no better are searched, not computed.
_MOST_ERROR = 0.1
_LARGE = 2.0**1000


@dataclass(frozen=True)
class FloatBins:
    """Bins between float64 edges; the last one holds its upper edge, too.

    Attributes:
        edges: float64 `(bins + 1,)`, strictly increasing.
    """

    edges: NDArray[np.float64]

    def count(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return how many of float64 values `(n,)` lie in each bin; all must lie between the edges."""
        bins, low, high = len(self.edges) - 1, self.edges[0], self.edges[-1]
        step = ulp(max(-low, high))
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            per_value = bins / (high - low)
            # How far edges and places are from where they should be, in bins.
            error = 8 * step * per_value + bins * 1e-15
        if not np.isfinite(per_value) or per_value <= 0 or not error < _MOST_ERROR:
            return self._counted(self._search(values))
        places = values - low
        places *= per_value
        found = places.astype(np.intp)
        places -= np.rint(places)
        near_edge = np.abs(places, out=places) <= error
        if near_edge.any():
            found[near_edge] = self._search(values[near_edge])
        return self._counted(found)

    def _search(self, values: NDArray[np.float64]) -> NDArray[np.intp]:
        return np.minimum(np.searchsorted(self.edges, values, side="right") - 1, len(self.edges) - 2)

    def _counted(self, found: NDArray[np.intp]) -> NDArray[np.int64]:
        return np.bincount(found, minlength=len(self.edges) - 1).astype(np.int64, copy=False)


@dataclass(frozen=True)
class IntegerBins:
    """Bins of whole numbers: bin *k* holds `start + k·width <= value < start + (k + 1)·width`.

    Attributes:
        start: the least value of the first bin.
        width: integers in a bin.
        bins: how many.
    """

    start: int
    width: int
    bins: int

    @property
    def edges(self) -> NDArray[np.float64]:
        """The edges, float64 `(bins + 1,)`: each is one exactly."""
        return np.array([self.start + k * self.width for k in range(self.bins + 1)], np.float64)

    def count(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return how many of whole float64 values `(n,)` below 2^33 lie in each bin."""
        # From the middle between two integers no rounding reaches an edge.
        return self._counted((values - (self.start - 0.5)) * (1 / self.width))

    def count_wide(self, values: NDArray[np.uint64], offset: int) -> NDArray[np.int64]:
        """Return how many values lie in each bin, given as uint64 `(n,)` of each value plus `offset`."""
        if self.bins == 1:
            return np.array([len(values)], np.int64)
        return self._counted((values - np.uint64(self.start + offset)) // np.uint64(self.width))

    def _counted(self, found: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(found.astype(np.intp), minlength=self.bins).astype(np.int64, copy=False)


def float_bins(low: float, high: float, bins: int) -> FloatBins:
    """Return at most `bins` bins of equal width from `low` to `high`, both finite: fewer where few floats lie between.

    Equal ends give one bin, of width 1 about them where floats are that dense.
    """
    if low == high:
        half = max(0.5, ulp(low))
        limit = float(np.finfo(np.float64).max)
        return FloatBins(np.array([max(-limit, low - half), min(limit, high + half)]))
    # In halves where the distance of the ends may be more than a float holds.
    part = 2.0 if high / 2 - low / 2 > _LARGE else 1.0
    with np.errstate(over="ignore"):
        edges = np.linspace(low / part, high / part, bins + 1) * part
    edges[0], edges[-1] = low, high
    return FloatBins(np.unique(np.clip(edges, low, high)))


def integer_bins(low: int, high: int, bins: int) -> IntegerBins:
    """Return at most `bins` bins of whole numbers from `low` to `high`: a bin a number where these suffice."""
    # Beyond 2^53 not every integer is a float64; edges are multiples of a unit that makes them so.
    unit = 1 << max(0, max(abs(low), abs(high)).bit_length() - 51)
    start = low // unit * unit
    units = -(-(high + 1 - start) // unit)
    width = -(-units // bins) * unit
    return IntegerBins(start, width, -(-(high + 1 - start) // width))
