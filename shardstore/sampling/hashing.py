"""Keyed hashes of row numbers: what every draw and every split is a function of.

No random number generator is used, whose streams may change between releases of its library: a draw is a hash of its
position, so that any of them can be computed alone, on every machine, for ever.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from shardstore.selection import Rows

Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def key_of(text: str) -> bytes:
    """Return 64 bytes that depend on all of a text. Hashed, never added: seeds 41 and 42 have nothing in common."""
    return hashlib.blake2b(text.encode()).digest()


def hash_rows(numbers: Rows, key: bytes) -> Words:
    """Hash int64 numbers to uint64 words, different ones to different words, by the first 16 bytes of `key`.

    The finaliser of splitmix64 (G. Steele and others, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014),
    once for each half of the key.
    """
    first, second = np.frombuffer(key, "<u8", 2)
    words = numbers.astype(np.uint64)
    words *= _GOLDEN
    words += first
    _finalise(words)
    words ^= second
    _finalise(words)
    return words


def _finalise(words: Words) -> None:
    words ^= words >> np.uint64(30)
    words *= _MULTIPLIERS[0]
    words ^= words >> np.uint64(27)
    words *= _MULTIPLIERS[1]
    words ^= words >> np.uint64(31)


def scale(words: Words, counts: int | Rows) -> Rows:
    """Scale uniform uint64 words to int64 numbers in `[0, counts)`: the high half of the product of 128 bits.

    No number is likelier than another by more than `counts / 2**64`.
    """
    factor = np.asarray(counts).astype(np.uint64)
    high, low = words >> _HALF, words & _LOW_HALF
    factor_high, factor_low = factor >> _HALF, factor & _LOW_HALF
    upper = high * factor_low
    middle = low * factor_low
    middle >>= _HALF
    middle += upper & _LOW_HALF
    middle += low * factor_high  # at most 2**64 - 1 in all
    scaled: Rows = (high * factor_high + (upper >> _HALF) + (middle >> _HALF)).astype(np.int64)
    return scaled


def unit_interval(words: Words) -> NDArray[np.float64]:
    """Return float64 numbers of the open interval (0, 1), the midpoints of 2**52 equal pieces of it.

    52 bits, since half a step more would round the last midpoint of 2**53 pieces up to 1.
    """
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
