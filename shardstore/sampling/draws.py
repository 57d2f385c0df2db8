"""Random draws of rows: with and without replacement, by weight, and in proportion to a column's values.

`SAMPLE_VERSION` names the algorithms. Draws are promises like orders: the same arguments give the same rows for ever,
on every machine. Golden values in the tests hold this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstore.order import permute
from shardstore.sampling.hashing import hash_rows, key_of, scale, unit_interval
from shardstore.sampling.strata import Strata, apportion
from shardstore.selection import Rows

SAMPLE_VERSION = 1

Floats = NDArray[np.float64]

# How many rows at least are looked at together when they are drawn by weight.
_BLOCK_ROWS = 65_536
_LOG_2 = 0.6931471805599453
# Of the series of log((1 + z) / (1 - z)) / z in z², as far as it counts below |z| = 0.172.
_LOG_SERIES = [2 / (2 * k + 1) for k in range(12)]


def draw(
    count: int,
    n: int,
    *,
    replace: bool = False,
    weights: ArrayLike | None = None,
    strata: NDArray[Any] | None = None,
    seed: int = 0,
) -> Rows:
    """Draw `n` of `count` rows.

    Args:
        count: how many rows there are.
        n: how many to draw.
        replace: whether a row may be drawn again.
        weights: `(count,)`, how likely each row is; all the same by default.
        strata: `(count,)`, a value for each row; each value gets its exact share of the draws.
        seed: any integer; with the other arguments it determines the draws.

    Returns:
        int64 `(n,)`, in the order of the draws, which is random.

    Raises:
        ValueError, TypeError: if an argument makes no sense, or there are too few rows.
    """
    n, seed = _checked_number(count, n, replace), check_seed(seed)
    if weights is not None and strata is not None:
        raise ValueError(
            "weights and stratify do not go together: how many rows of a value are drawn is one or the other"
        )
    key = key_of(f"shardstore sample {SAMPLE_VERSION} seed {seed}")
    if weights is not None:
        checked = checked_weights(weights, count, n, replace)
        if not n:
            return np.empty(0, np.int64)
        return AliasTable.of(checked).draw(n, key) if replace else draw_weighted(checked, n, key)
    if not n:
        return np.empty(0, np.int64)
    if strata is not None:
        return draw_stratified(strata, n, replace, key)
    positions = np.arange(n, dtype=np.int64)
    return scale(hash_rows(positions, key), count) if replace else permute(count, key, positions)


def check_seed(seed: int) -> int:
    """Return a seed as an int; raise `TypeError` if it is none."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed is a {type(seed).__name__}; expected an int")
    return int(seed)


def _checked_number(count: int, n: int, replace: bool) -> int:
    if isinstance(n, bool) or not isinstance(n, int | np.integer):
        raise TypeError(f"n is a {type(n).__name__}; expected an int")
    if n < 0:
        raise ValueError(f"n is {n:,}; expected the number of rows to draw, at least 0")
    if n and not count:
        raise ValueError(f"cannot draw {n:,} rows of an empty table")
    if n > count and not replace:
        raise ValueError(f"cannot draw {n:,} of {count:,} rows without replacement; draw fewer, or set replace=True")
    return int(n)


def checked_weights(weights: ArrayLike, count: int, n: int, replace: bool) -> Floats:
    """Return the weights of `count` rows as float64, if `n` rows can be drawn by them; else raise `ValueError`."""
    array = np.asarray(weights)
    if array.shape != (count,) or array.dtype.kind not in "biuf":
        raise ValueError(
            f"weights are {array.dtype} of shape {array.shape}; expected one number for each of the {count:,} rows"
        )
    with np.errstate(over="ignore"):  # what is too large for float64 is infinite, and refused as such
        numbers = array.astype(np.float64, copy=False)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0)))
    if len(wrong):
        raise ValueError(
            f"the weight of row {wrong[0]:,} is {array[wrong[0]]}; expected finite numbers that are at least 0"
        )
    positive = int(np.count_nonzero(numbers))
    if n and not positive:
        raise ValueError(f"the weights of all rows, 0 to {count - 1:,}, are zero; nothing can be drawn by them")
    if n > positive and not replace:
        raise ValueError(
            f"cannot draw {n:,} rows without replacement: only {positive:,} of {count:,} weights are not zero; "
            "draw fewer, or set replace=True"
        )
    return numbers


def draw_stratified(column: NDArray[Any], n: int, replace: bool, key: bytes) -> Rows:
    """Draw `n` rows, of each value of a column its exact share, in random order. Takes O(rows + n) memory."""
    # Three draws that must have nothing in common: other bytes of the key for each.
    strata = Strata.of(column, key[48:])
    quotas = apportion(n, strata.counts)
    of_draw = np.repeat(np.arange(len(quotas)), quotas)
    positions = np.arange(n, dtype=np.int64)
    if replace:
        ranks = scale(hash_rows(positions, key[32:48]), strata.counts[of_draw])
    else:
        ranks = positions - (np.cumsum(quotas) - quotas)[of_draw]
    # By value so far; the order of the draws must say nothing about it.
    shuffled = permute(n, key, positions)
    rows: Rows = strata.order[(strata.starts[of_draw] + ranks)[shuffled]]
    return rows


@dataclass(frozen=True, eq=False)
class AliasTable:
    """Rows by weight, each draw in O(1) (A. J. Walker, ACM TOMS 3, 1977): a random row, or else its alias.

    Attributes:
        keep: float64 `(rows,)`, how likely the row itself is once it was picked.
        alias: int64 `(rows,)`, which row is drawn otherwise.
    """

    keep: Floats
    alias: Rows

    @classmethod
    def of(cls, weights: Floats) -> AliasTable:
        """Build the table in O(rows), without a loop over them.

        The sweep of L. Hübschle-Schneider and P. Sanders ("Parallel Weighted Random Sampling", ESA 2019): light rows
        lack a deficit of the mean weight, heavy ones have a surplus, and both are laid out side by side. A light row is
        filled up by the heavy one whose surplus lies where its deficit begins. The deficit in which a heavy row's
        surplus ends takes more than was left of it; what it lacks then comes from the next heavy row.

        Args:
            weights: finite and not negative, at least one of them positive.
        """
        count = len(weights)
        scaled = weights / weights.max()  # the sum of large numbers might be infinite
        scaled *= count / _sum(scaled)  # at least 1, so that the largest weight is never light
        light = scaled < 1
        lights, heavies = np.flatnonzero(light), np.flatnonzero(~light)
        # Where deficits begin and, behind the first, where they end.
        deficits = np.concatenate([[0.0], np.cumsum(1 - scaled[lights])])
        surpluses = np.cumsum(scaled[heavies] - 1)
        keep = np.minimum(scaled, 1)
        alias = np.arange(count, dtype=np.int64)
        # The two sums differ in their last digits: what lies behind all surpluses falls to the last heavy row, which
        # keeps all of its own.
        last = len(heavies) - 1
        alias[lights] = heavies[np.minimum(np.searchsorted(surpluses, deficits[:-1], "right"), last)]
        ends = np.searchsorted(deficits, surpluses[:last], "left")
        exhausted = np.flatnonzero(ends < len(deficits))
        lacking = deficits[ends[exhausted]] - surpluses[exhausted]
        keep[heavies[exhausted]] = np.clip(1 - lacking, 0, 1)
        alias[heavies[exhausted]] = heavies[exhausted + 1]
        return cls(keep, alias)

    def draw(self, n: int, key: bytes) -> Rows:
        """Draw `n` rows with replacement."""
        positions = np.arange(n, dtype=np.int64)
        rows = scale(hash_rows(positions, key), len(self.keep))
        kept = unit_interval(hash_rows(positions, key[16:])) < self.keep[rows]
        return np.where(kept, rows, self.alias[rows])


def draw_weighted(weights: Floats, n: int, key: bytes) -> Rows:
    """Draw `n` different rows one after the other, each by its share of the weights that are left.

    The rows of the largest log(u) / weight, for uniform numbers u (P. Efraimidis and P. Spirakis, "Weighted random
    sampling with a reservoir", IPL 97, 2006). Compared by their logarithm, so that no weight is too large or too small.
    Takes O(n) memory beside the weights.

    Args:
        weights: finite and not negative, at least `n` of them positive.
        n: how many rows to draw, at least 1.
        key: 64 bytes.
    """
    best, rows = np.empty(0), np.empty(0, np.int64)
    # As many rows as are kept, at least: then all the sorting takes O(rows log n).
    block_rows = max(_BLOCK_ROWS, n)
    for start in range(0, len(weights), block_rows):
        block = weights[start : start + block_rows]
        found = np.flatnonzero(block)
        uniform = unit_interval(hash_rows(found + start, key))
        keys = log(-log(uniform)) - log(block[found])
        if len(rows) == n:
            better = keys < best[-1]
            found, keys = found[better], keys[better]
        best, rows = np.concatenate([best, keys]), np.concatenate([rows, found + start])
        order = np.argsort(best, kind="stable")[:n]
        best, rows = best[order], rows[order]
    return rows


def log(numbers: Floats) -> Floats:
    """Return natural logarithms of positive numbers, to a few units in the last place.

    NumPy's own differ in the last bit from processor to processor, and draws must not. Sums, products and quotients
    are the same everywhere.
    """
    fractions, exponents = np.frexp(numbers)
    small = fractions < 0.5**0.5
    fractions[small] *= 2
    exponents -= small
    z = (fractions - 1) / (fractions + 1)
    square = z * z
    series: Floats = np.full_like(z, _LOG_SERIES[-1])
    for coefficient in reversed(_LOG_SERIES[:-1]):
        series *= square
        series += coefficient
    series *= z
    series += exponents * _LOG_2
    return series


def _sum(numbers: Floats) -> float:
    """Sum numbers in an order of our own, in pairs; NumPy's depends on the processor."""
    while len(numbers) > 1:
        half = len(numbers) // 2
        pairs = numbers[:half] + numbers[half : 2 * half]
        numbers = np.concatenate([pairs, numbers[2 * half :]]) if len(numbers) % 2 else pairs
    return float(numbers[0])
