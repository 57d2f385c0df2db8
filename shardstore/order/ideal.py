"""What an ideal shuffle gives: expected values and standard deviations of what `measuring` measures.

Ideal means that every permutation is equally likely. All are for sampling without replacement, so they hold for a
sample of an epoch as for a whole one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.selection import Rows

Floats = NDArray[np.float64]
SIGMAS = 5.0
BINS = 32
# Beside five standard deviations of a rare event's count, which is Poisson distributed: at every mean, this many more
# are as unlikely as five standard deviations of a normal distribution.
RARE = 3.0
# Pieces of fewer rows, and cells of fewer on average, are too coarse for moments alone to bound them.
_LEAST_PIECE = 8
_LEAST_CELL = 5


def chi_square_slack(ratio: float, freedom: float) -> float:
    """Return how far from 1, on the side of `ratio`, chi-square over its mean may be at five standard deviations.

    The cube root is nearly normal, with mean `1 − 2/9f` and variance `2/9f` (E. B. Wilson and M. M. Hilferty, PNAS 17,
    1931): good to the tails even at few degrees of freedom, where the distribution is far from symmetric.
    """
    variance = 2 / (9 * freedom)
    sign = 1 if ratio > 1 else -1
    bound = 1 - variance + sign * SIGMAS * math.sqrt(variance)
    return abs(max(bound, 0.0) ** 3 - 1)


def spread(codes: Rows, batches: Rows, groups: Rows) -> tuple[float, float] | None:
    """Return chi-square of the classes' counts per batch, over its mean, and its effective degrees of freedom.

    Rows of a group are dealt to the group's part of each batch; given all counts of its classes and the parts' sizes,
    it is a contingency table with fixed margins, whose exact mean and variance are known (J. B. S. Haldane, Biometrika
    31, 1940, in the form of R. B. Dawson, Biometrika 41, 1954). Classes that are rare in a group are counted with its
    most frequent one.

    Args:
        codes: int64 `(n,)`, each row's class, from 0 on.
        batches: int64 `(n,)`, the batch of each.
        groups: int64 `(n,)`, the group of each, such as the window.

    Returns:
        None where no group has two batches and two classes.
    """
    classes, step = int(codes.max()) + 1, int(batches.max()) + 1
    pieces, piece = np.unique(groups * step + batches, return_inverse=True)
    counts = np.bincount(piece * classes + codes, minlength=len(pieces) * classes).reshape(-1, classes)
    large = counts.sum(1) >= _LEAST_PIECE
    counts, (_, group, in_group) = counts[large], np.unique(pieces[large] // step, False, True, True)
    totals = _sum_by(group, counts, len(in_group))
    rare = totals < _LEAST_CELL * in_group[:, None]
    moved = (counts * rare[group]).sum(1)
    counts = np.where(rare[group], 0, counts)
    counts[np.arange(len(counts)), totals.argmax(1)[group]] += moved
    totals = _sum_by(group, counts, len(in_group)).astype(np.float64)

    size, used = totals.sum(1), (totals > 0).sum(1)
    told = (in_group > 1) & (used > 1)
    if not told.any():
        return None
    rows = counts.sum(1)
    per_class = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    squares = np.bincount(group, (counts**2 * per_class[group]).sum(1) / rows, len(in_group))
    inverse_rows = np.bincount(group, 1 / rows, len(in_group))[told]
    inverse_columns = per_class.sum(1)[told]
    n, r, c = size[told], in_group[told], used[told]
    chi_square = np.maximum(n * squares[told] - n, 0)
    mean = n * (r - 1) * (c - 1) / (n - 1)
    sigma, tau = (n * inverse_rows - r**2) / (n - 2), (n * inverse_columns - c**2) / (n - 2)
    v, w = (n - r) * (r - 1) / (n - 1), (n - c) * (c - 1) / (n - 1)
    variance = 2 * n / (n - 3) * (v - sigma) * (w - tau) + n**2 / (n - 1) * sigma * tau
    return float(chi_square.sum() / mean.sum()), float(2 * mean.sum() ** 2 / variance.sum())


def _sum_by(group: Rows, counts: NDArray[Any], groups: int) -> Rows:
    sums = np.zeros((groups, counts.shape[1]), np.int64)
    np.add.at(sums, group, counts)
    return sums


def neighbour_sigma(variance: float, shared: float, pairs: int, fraction: float) -> float:
    """Return the standard deviation of a mean over neighbouring pairs of a random sequence.

    Args:
        variance: that of one pair's value.
        shared: covariance of two pairs that share a member, which is the variance of a pair's expectation given one.
        pairs: how many there are.
        fraction: how much of the population was sampled. What depends on single members averages out over all.
    """
    return math.sqrt((variance - 2 * shared + 4 * shared * (1 - fraction)) / pairs)


def triangle(sizes: Rows) -> Floats:
    """Return the probability that `|a − b| / size` of two different numbers below `size` lies in each of 32 bins.

    Args:
        sizes: int64 `(n,)`, at least 64 each; the mean over them is returned.
    """
    total = np.zeros(BINS)
    for size, weight in zip(*np.unique(sizes, return_counts=True), strict=True):
        n = int(size)  # products exceed 64 bits
        below = [-(-k * n // BINS) - 1 for k in range(1, BINS + 1)]
        cumulative = np.array([0.0, *((2 * n * d - d * (d + 1)) / (n * (n - 1)) for d in below)])
        total += weight * np.diff(cumulative)
    return total / len(sizes)


def entropy_moments(probabilities: Floats, pairs: int, fraction: float) -> tuple[float, float]:
    """Return mean and standard deviation of the entropy, in bits, of a histogram of neighbours' distances.

    To the first order it is the mean of `−log2 p(bin)`; to the second it is biased by `(bins − 1) / 2n` nats (G. A.
    Miller, 1955).
    """
    bits = -np.log2(probabilities)
    entropy = float(probabilities @ bits)
    # One neighbour at x: how likely is each distance to the other, and what is the mean given x?
    x, edges = (np.arange(1024)[:, None] + 0.5) / 1024, np.arange(BINS + 1) / BINS
    given = np.diff(np.minimum(x, edges) + np.minimum(1 - x, edges), axis=1) @ bits
    variance = float(probabilities @ bits**2) - entropy**2
    bias = (BINS - 1) / (2 * pairs * math.log(2))
    return entropy - bias, neighbour_sigma(variance, float(given.var()), pairs, fraction)


def touched_moments(count: int, drawn: int, stretches: int) -> tuple[float, float]:
    """Return mean and standard deviation of how many equal stretches of `count` rows some drawn rows lie in."""
    left = count - np.arange(drawn)
    size = count / stretches
    # Logarithms of the chances that no drawn row lies in one given stretch, or in either of two.
    one, two = (float(np.log1p(-np.minimum(k * size / left, 1 - 1e-12)).sum()) for k in (1, 2))
    missed = math.exp(one)
    # Where it is next to certain that none is missed, the difference of the logarithms has no exponential.
    apart = two - 2 * one
    covariance = missed**2 * math.expm1(apart) if apart < 1 else math.exp(two) - missed**2
    variance = stretches * missed * (1 - missed) + stretches * (stretches - 1) * covariance
    return stretches * (1 - missed), math.sqrt(max(variance, 0.0))


def flip_rates(sizes: Rows) -> Floats:
    """Return how often each bit differs between two different random numbers below a size: `(sizes, bits)`.

    It is `2q(1 − q)` with q the share of numbers that have the bit, times `size / (size − 1)`.
    """
    bits = np.arange(int(sizes.max()).bit_length())
    size = sizes[:, None]
    ones = (size >> (bits + 1) << bits) + np.maximum((size & ((2 << bits) - 1)) - (1 << bits), 0)
    q = ones / size
    rates: Floats = 2 * q * (1 - q) * size / (size - 1)
    return rates


def shift_probabilities(sizes: Rows, bins: int) -> Floats:
    """Return the probability that a number below a size, over that size, lies in each bin; the mean over sizes."""
    total = np.zeros(bins)
    for size, weight in zip(*np.unique(sizes, return_counts=True), strict=True):
        edges = np.array([-(-k * int(size) // bins) for k in range(bins + 1)])
        total += weight * np.diff(edges) / size
    return total / len(sizes)
