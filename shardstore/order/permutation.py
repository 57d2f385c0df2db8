"""A keyed permutation of any number of rows, computed for any positions, in constant memory.

`ORDER_VERSION` names the algorithm. Orders are promises (a run can be repeated and resumed years later), so the
code below must give the same values for ever; another algorithm is another version. Golden values in the tests
hold this.

For up to `SORTED_ROWS` rows, the permutation sorts 64-bit hashes of the row numbers: exactly uniform, and small
enough to be made again at will. Above that it is a Feistel network of alternating rounds over a mixed radix: row
numbers are written as `left · b + right` with `a · b` at least the number of rows and as close as can be, and each
round adds a keyed hash of one half to the other, modulo `a` or `b`. Numbers beyond the last row walk on along their
cycle until they fall inside (J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). `a`
and `b` are chosen so that their product exceeds the rows by a handful, if at all, so that next to none walk; in a
network over a power of two up to half of them would.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.selection import Rows

ORDER_VERSION = 1
SORTED_ROWS = 4096
_ROUNDS = 6
_RADIX_CANDIDATES = 1024


def epoch_key(seed: int, epoch: int, purpose: str = "") -> bytes:
    """Return 64 bytes that depend on all of (order version, seed, epoch, purpose).

    Hashed, never added: epoch 1 of seed 41 has nothing to do with epoch 0 of seed 42. What needs several keys in an
    epoch, such as one for each window, names each one's purpose.
    """
    text = f"shardstore order {ORDER_VERSION} seed {seed} epoch {epoch}"
    return hashlib.blake2b(f"{text} {purpose}".rstrip().encode()).digest()


def permute(count: int, key: bytes, positions: Rows) -> Rows:
    """Return where a keyed permutation of `[0, count)` takes `positions`.

    Args:
        count: size of the permuted range, at most 2**62.
        key: 64 bytes.
        positions: int64, each in `[0, count)`.

    Returns:
        int64, of the shape of `positions`.
    """
    if not len(positions):
        return np.empty(0, np.int64)
    if count <= SORTED_ROWS:
        return _sorted_permutation(count, key)[positions]
    # 32-bit arithmetic is twice as fast, and halves below 2**16 keep every product within it.
    network = _Network.of(count, key, _NARROW if count <= 1 << 32 else _WIDE)
    result = network.apply(positions.astype(network.words.dtype))
    if network.left * network.right > count:
        outside = np.flatnonzero(result > count - 1)
        while len(outside):
            result[outside] = network.apply(result[outside])
            outside = outside[result[outside] > count - 1]
    return result.astype(np.int64)


def _sorted_permutation(count: int, key: bytes) -> Rows:
    # The finaliser of splitmix64 (G. Steele and others, OOPSLA 2014) is a bijection: no two hashes are equal.
    k0, k1 = np.frombuffer(key, "<u8", 2)
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) ^ k0
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB) + k1
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(31)
    return np.argsort(z, kind="stable")


@dataclass(frozen=True)
class _Words:
    """The arithmetic of a network: the dtype of its words, half a word's bits, and the constants of its hash."""

    dtype: type[np.uint32] | type[np.uint64]
    half: int
    mix: int
    multipliers: tuple[int, int]


@lru_cache(64)
def _radices(count: int) -> tuple[int, int]:
    """Return two numbers of like size whose product is `count`, or as little more as can be found near its root."""
    root = math.isqrt(count - 1) + 1
    lefts = range(root, max(root // 2, root - _RADIX_CANDIDATES), -1)
    # Neither may have more bits than half a word, or products would wrap.
    largest = 1 << (_NARROW.half if count <= 1 << 32 else _WIDE.half)
    fitting = [left for left in lefts if -(-count // left) <= largest]
    left = min(fitting, key=lambda left: -count % left)
    return left, -(-count // left)


# Odd multipliers: the 32-bit ones are primes of xxHash, the 64-bit ones those of splitmix64.
_NARROW = _Words(np.uint32, 16, 15, (0x9E3779B1, 0x85EBCA77))
_WIDE = _Words(np.uint64, 32, 32, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class _Network:
    """A keyed permutation of `[0, left · right)`."""

    words: _Words
    left: int
    right: int
    keys: NDArray[Any]

    @classmethod
    def of(cls, count: int, key: bytes, words: _Words) -> _Network:
        keys = np.frombuffer(key, np.dtype(words.dtype).newbyteorder("<"), _ROUNDS)
        return cls(words, *_radices(count), keys)

    def apply(self, numbers: NDArray[Any]) -> NDArray[Any]:
        word = self.words.dtype
        left = numbers // word(self.right)
        right = numbers - left * word(self.right)
        hashed, scratch = np.empty_like(numbers), np.empty_like(numbers)
        halves = [(left, right, word(self.left)), (right, left, word(self.right))]
        for number in range(_ROUNDS):
            changed, other, modulus = halves[number % 2]
            self._hash(other, self.keys[number : number + 1], modulus, hashed, scratch)
            np.add(changed, hashed, out=changed)
            # One subtraction reduces a sum of two remainders; where it wraps below zero, the minimum keeps the sum.
            np.subtract(changed, modulus, out=scratch)
            np.minimum(changed, scratch, out=changed)
        np.multiply(left, word(self.right), out=left)
        left += right
        return left

    def _hash(
        self, half: NDArray[Any], key: NDArray[Any], modulus: Any, out: NDArray[Any], scratch: NDArray[Any]
    ) -> None:
        """Hash one half into `[0, modulus)`. Not linear, or parities would survive."""
        words, word = self.words, self.words.dtype
        np.add(half, key, out=out)
        np.multiply(out, word(words.multipliers[0]), out=out)
        np.right_shift(out, word(words.mix), out=scratch)
        np.bitwise_xor(out, scratch, out=out)
        np.multiply(out, word(words.multipliers[1]), out=out)
        # The high half scales to the modulus: a remainder would cost a division.
        np.right_shift(out, word(words.half), out=out)
        np.multiply(out, modulus, out=out)
        np.right_shift(out, word(words.half), out=out)
