"""Splits of a table into parts: disjoint, complete, of exact sizes, and the same for ever.

`SPLIT_VERSION` names the algorithms; golden values in the tests hold it. A plain split stores no row numbers: a `Part`
computes each of its rows. Several parts are split by halves, the halves again, so that the rows of one of p parts are
computed in about log2(p) steps. Splits by the values of a column have to remember their rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.order import permute
from shardstore.sampling.hashing import hash_rows, key_of
from shardstore.sampling.strata import Strata, apportion
from shardstore.selection import Rows, Selection

SPLIT_VERSION = 1
MAX_ROWS = 1 << 43

# Half the bits of a place in a block: blocks have 256 rows, or 4,096 where their numbers would pass 31 bits, so that
# products of these fit into int64.
_SMALL_HALF, _LARGE_HALF = 4, 6
_ROUNDS = 6
# Two primes of xxHash.
_MULTIPLIERS = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)
# More than rounding can do to a block's number, as a float below 2**31, and less than the least distance of a whole
# number from a fraction that is to be rounded up to it.
_SLACK = 2.0**-16


def block_rows(count: int) -> int:
    """Return within how many rows a split shuffles.

    Few, so that who reads a part in order reads the files nearly in order, and a chunk is needed by few positions of
    a part, which are neighbours: also where the part is shuffled window by window.
    """
    return 1 << 2 * _half_bits(count)


def _half_bits(count: int) -> int:
    return _SMALL_HALF if count < 1 << (31 + 2 * _SMALL_HALF) else _LARGE_HALF


def part_sizes(count: int, shares: Mapping[str, float | int]) -> dict[str, int]:
    """Return how many of `count` rows each part gets.

    Args:
        count: how many rows there are.
        shares: by the part's name its fraction of the rows (which sum to 1) or its number of rows (which sum to all).

    Raises:
        ValueError, TypeError: if the shares are anything else.
    """
    if not shares:
        raise ValueError("expected at least one part, such as train=0.9, val=0.1")
    for name, share in shares.items():
        if isinstance(share, bool | np.bool_) or not isinstance(share, int | float | np.integer | np.floating):
            raise TypeError(f"part {name!r} is a {type(share).__name__}; expected a fraction or a number of rows")
    whole = [isinstance(share, int | np.integer) for share in shares.values()]
    given = ", ".join(f"{name}={share}" for name, share in shares.items())
    if all(whole):
        for name, share in shares.items():
            if share < 0:
                raise ValueError(f"part {name!r} is to have {share:,} rows; expected at least 0")
        total = sum(int(share) for share in shares.values())
        if total != count:
            raise ValueError(f"the parts {given} sum to {total:,} rows, but there are {count:,}")
        return {name: int(share) for name, share in shares.items()}
    if any(whole):
        raise ValueError(f"the parts {given} mix fractions and numbers of rows; expected only one of them")
    for name, share in shares.items():
        if not 0 < share <= 1:  # nor is NaN
            raise ValueError(f"part {name!r} is {share}; expected a fraction above 0 and at most 1")
    # What was written is meant: 0.7 is seven tenths, not the binary number beside it.
    fractions = [Fraction(repr(float(share))) for share in shares.values()]
    whole_share = sum(fractions, Fraction(0))
    if abs(whole_share - 1) > Fraction(1, 10**9):
        raise ValueError(f"the fractions {given} sum to {float(whole_share):.12g}; expected 1")
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    sizes = apportion(count, np.array([int(fraction * denominator) for fraction in fractions], object))
    return dict(zip(shares, sizes.tolist(), strict=True))


@dataclass(frozen=True)
class Part:
    """One of the two parts of a random split of `[0, count)`: which row is at which position, in O(1).

    The rows lie in blocks. All but a short last one give the left part as even a number of rows as can be: the first b
    blocks ⌊b · rows / blocks⌋. A block is shuffled by a keyed permutation of its own; the left part takes the first
    places, the right part the others.

    Attributes:
        count: how many rows are split, at most `MAX_ROWS`.
        left: how many rows the left part has.
        is_left: whether this is the left part.
        key: 64 bytes. Both parts have the same.
    """

    count: int
    left: int
    is_left: bool
    key: bytes

    def __post_init__(self) -> None:
        if self.count > MAX_ROWS:
            raise ValueError(f"{self.count:,} rows are too many to split; expected at most {MAX_ROWS:,}")

    def __len__(self) -> int:
        return self.left if self.is_left else self.count - self.left

    @property
    def text(self) -> str:
        """All that determines the rows."""
        return f"part {SPLIT_VERSION} {self.count} {self.left} {self.is_left} {self.key.hex()}"

    @property
    def _block_rows(self) -> int:
        return block_rows(self.count)

    @property
    def _blocks(self) -> int:
        """How many full blocks there are."""
        return self.count // self._block_rows

    @property
    def _left_in_tail(self) -> int:
        """How many rows of the short last block are the left part's: its share, rounded.

        Never more than the left part has, nor less than the full blocks leave: either would take a share that is
        further from a whole number than a half.
        """
        return (2 * self.left * (self.count % self._block_rows) + self.count) // (2 * self.count)

    def resolve(self, positions: Rows) -> Rows:
        """Return the rows, int64 in `[0, count)`, at int64 positions of this part that are known to be in range."""
        if not len(positions):
            return np.empty(0, np.int64)
        tail, left_in_tail = self.count % self._block_rows, self._left_in_tail
        inside = len(self) - (left_in_tail if self.is_left else tail - left_in_tail)
        behind = np.flatnonzero(positions >= inside)
        if not len(behind):
            return self._in_full_blocks(positions, inside)
        places = positions[behind] - inside + (0 if self.is_left else left_in_tail)
        last = permute(tail, self.key, places) + self._blocks * self._block_rows
        if len(behind) == len(positions):
            return last
        rows = self._in_full_blocks(np.minimum(positions, inside - 1), inside)
        rows[behind] = last
        return rows

    def _in_full_blocks(self, positions: Rows, inside: int) -> Rows:
        # The last block with no more than `position` rows of this part before it. Floats cannot say exactly where one
        # begins: what they give is the block or the one before it, and one comparison of integers tells which.
        scaled = (positions + 1 if self.is_left else positions) * (self._blocks / inside)
        blocks = (scaled - _SLACK).astype(np.int64)
        blocks += self._before(blocks + 1) <= positions
        places = positions - self._before(blocks)
        if not self.is_left:
            places += self._left_before(blocks + 1) - self._left_before(blocks)
        rows = _shuffled(blocks, places, self.key, _half_bits(self.count))
        rows += blocks * self._block_rows
        return rows

    def _before(self, blocks: Rows) -> Rows:
        """Return how many rows of this part lie before full blocks."""
        before = self._left_before(blocks)
        return before if self.is_left else blocks * self._block_rows - before

    def _left_before(self, blocks: Rows) -> Rows:
        # ⌊b · rows / blocks⌋, of which the product alone would be too large.
        quotient, remainder = divmod(self.left - self._left_in_tail, self._blocks)
        return blocks * quotient + blocks * remainder // self._blocks


def _shuffled(blocks: Rows, places: Rows, key: bytes, half_bits: int) -> Rows:
    """Return where the permutation of each block takes a place in it: a Feistel network over two halves."""
    seeds = (hash_rows(blocks, key) >> np.uint64(32)).astype(np.uint32)
    left = (places >> half_bits).astype(np.uint32)
    right = places.astype(np.uint32) & np.uint32((1 << half_bits) - 1)
    for round_key in np.frombuffer(key, "<u4")[4 : 4 + _ROUNDS]:
        hashed = right + seeds
        hashed += round_key
        hashed *= _MULTIPLIERS[0]
        hashed ^= hashed >> np.uint32(15)
        hashed *= _MULTIPLIERS[1]
        hashed >>= np.uint32(32 - half_bits)
        left ^= hashed
        left, right = right, left
    left <<= np.uint32(half_bits)
    left |= right
    return left.astype(np.int64)


def split_evenly(table: Selection, sizes: Sequence[int], seed: int) -> list[Selection]:
    """Split rows at random, in O(1) memory. The rows of a part keep their order but for some thousand rows.

    Args:
        table: the rows.
        sizes: how many each part gets; they sum to all rows.
        seed: any integer.
    """

    def split(rows: Selection, first: int, stop: int) -> list[Selection]:
        if stop - first == 1:
            return [rows]
        middle = (first + stop) // 2
        key = key_of(f"shardstore split {SPLIT_VERSION} seed {seed} parts {first} {middle} {stop}")
        left = Part(len(rows), sum(sizes[first:middle]), True, key)
        right = Part(len(rows), left.left, False, key)
        return split(rows.through(left), first, middle) + split(rows.through(right), middle, stop)

    return split(table, 0, len(sizes))


def split_by_value(column: NDArray[Any], sizes: Sequence[int], seed: int) -> list[Rows]:
    """Split rows at random, those of each value of a column in proportion to the sizes.

    The sizes are kept exactly; where that leaves a choice, a value's rows in a half of the parts are its exact quota
    rounded down or up. Takes O(rows) memory.

    Args:
        column: `(rows,)`, a value for each row.
        sizes: how many rows each part gets; they sum to all rows.
        seed: any integer.

    Returns:
        int64, the rows of each part, ascending.
    """
    strata = Strata.of(column, key_of(f"shardstore split {SPLIT_VERSION} seed {seed} by value"))

    def quotas(counts: Rows, sizes: Sequence[int]) -> list[Rows]:
        if len(sizes) == 1 or not counts.any():
            return [counts] + [np.zeros_like(counts)] * (len(sizes) - 1)
        middle = len(sizes) // 2
        left = apportion(sum(sizes[:middle]), counts)
        return quotas(left, sizes[:middle]) + quotas(counts - left, sizes[middle:])

    values = np.repeat(np.arange(len(strata.counts)), strata.counts)
    ranks = np.arange(len(column)) - strata.starts[values]
    in_order = np.zeros(len(column), np.int64)
    stops = np.zeros_like(strata.counts)
    for quota in quotas(strata.counts, sizes)[:-1]:
        stops += quota
        in_order += ranks >= stops[values]
    part_of_row = np.empty_like(in_order)
    part_of_row[strata.order] = in_order
    return [np.flatnonzero(part_of_row == part) for part in range(len(sizes))]


def split_by_group(column: NDArray[Any], sizes: Mapping[str, int], seed: int) -> list[Rows]:
    """Split rows at random such that all rows of a value of a column are in one part.

    The largest group comes first, groups of one size in random order; each goes to the part with most room left, of
    several to the first. Takes O(rows) memory.

    Args:
        column: `(rows,)`, a value for each row; at least one row.
        sizes: by the part's name how many rows it is to have, which its groups meet as far as they can.
        seed: any integer.

    Returns:
        int64, the rows of each part, ascending.

    Raises:
        ValueError: if a group is larger than every part, or a part that is to have rows gets none.
    """
    values, group_of_row, counts = np.unique(column, return_inverse=True, return_counts=True)
    largest_part, largest = max(sizes, key=lambda name: sizes[name]), int(counts.argmax())
    if counts[largest] > sizes[largest_part]:
        raise ValueError(
            f"groups larger than a split: {values[largest]} has {counts[largest]:,} rows, but the largest part, "
            f"{largest_part!r}, is to have {sizes[largest_part]:,}; make it larger, or group by a finer column"
        )
    key = key_of(f"shardstore split {SPLIT_VERSION} seed {seed} by group")
    shuffled = permute(len(counts), key, np.arange(len(counts)))
    in_turn = shuffled[np.argsort(-counts[shuffled], kind="stable")]
    room = list(sizes.values())
    part_of_group = np.empty(len(counts), np.int64)
    for group, rows in zip(in_turn.tolist(), counts[in_turn].tolist(), strict=True):
        part = room.index(max(room))
        room[part] -= rows
        part_of_group[group] = part
    part_of_row = part_of_group[group_of_row]
    parts = [np.flatnonzero(part_of_row == part) for part in range(len(sizes))]
    for name, rows in zip(sizes, parts, strict=True):
        if sizes[name] and not len(rows):
            raise ValueError(
                f"part {name!r} is to have {sizes[name]:,} rows but gets none of the {len(values):,} groups; "
                "make it larger, or group by a finer column"
            )
    return parts
