"""`MixtureOrder`: rows of several sources in given proportions.

A mixture is an endless sequence of blocks of positions. Every block has the same number of positions for each source,
its quota, dealt in an order of its own; and each source is an endless sequence too, round after round of its rows.
The k-th position of source i in block b is position b · quota_i + k of its sequence. So whatever is asked for is
computed from the position, within one block, and each source is read in its own order.

The pattern of a block depends on the quotas and the block's number alone: so all epochs have the same number of rows,
whatever the seed. Which rows of a source come depends on both: no epoch of a source's own order is used twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardstore.locks import cached_property
from shardstore.order.orders import Order, Window, WindowShuffle, groups
from shardstore.order.permutation import epoch_key, permute
from shardstore.selection import Rows

# A block's positions fit 16 bits, and are as many as a permutation takes to be cheap.
BLOCK_ROWS = 65_536
MAX_ROWS = 1 << 62
Ends = Literal["first"] | int
# A run of positions touches a block or two more than it fills, in ascending order; two mixtures may take turns.
_CACHED_BLOCKS = 8


def source_seed(seed: int, number: int) -> int:
    """Return the seed of one source's own order: equal sources do not go side by side."""
    return int.from_bytes(epoch_key(seed, 0, f"mixture source {number}")[:8], "little")


@dataclass(frozen=True)
class Repeated:
    """An order gone through again and again: an epoch is some rounds, each of them an epoch of the order's own.

    Attributes:
        order: the order, of at least one row.
        rounds: how many of its epochs make one of these; none is used twice.
    """

    order: Order
    rounds: int

    @property
    def count(self) -> int:
        """Positions of an epoch."""
        return self.order.count * self.rounds

    @property
    def lanes(self) -> int:
        """One."""
        return 1

    def rows(self, epoch: int, positions: Rows) -> Rows:
        """Return the rows at some positions."""
        if self.order.count == 1:
            return np.zeros(len(positions), np.int64)  # every position would be a round
        rows = np.empty(len(positions), np.int64)
        for own_epoch, where, inside in self._by_round(epoch, positions):
            rows[where] = self.order.rows(own_epoch, inside)
        return rows

    def describe(self) -> dict[str, int | str]:
        """Return what decides about the order that is repeated, and the number of rounds."""
        return {**self.order.describe(), "rounds": self.rounds}

    def _by_round(self, epoch: int, positions: Rows) -> Iterator[tuple[int, slice | Rows, Rows]]:
        """Yield for each round the order's own epoch, which of `positions` it has, and the positions in that epoch."""
        numbers = positions // self.order.count
        inside = positions - numbers * self.order.count
        for where in groups(numbers):
            yield epoch * self.rounds + int(numbers[where][0]), where, inside[where]


@dataclass(frozen=True)
class RepeatedWindows(Repeated):
    """A windowed order gone through again and again."""

    order: WindowShuffle

    def windows(self, epoch: int, positions: Rows) -> list[tuple[Window, slice | Rows, Rows]]:
        """Sort positions into windows, round by round; see `WindowShuffle.windows`."""
        return [
            (window, _picked(where, part), places)
            for own_epoch, where, inside in self._by_round(epoch, positions)
            for window, part, places in self.order.windows(own_epoch, inside)
        ]

    @property
    def max_window_rows(self) -> int:
        """Rows of the windows of all lanes together, at most."""
        return self.order.max_window_rows

    def following(self, window: Window) -> Window | None:
        """Return the window that comes behind another one in its lane; None behind the last one of a round."""
        return self.order.following(window)


@dataclass(frozen=True)
class MixtureOrder:
    """Rows of several sources in given proportions, exact in every block.

    Its rows are those of the sources put one after the other, the first source's first.

    Attributes:
        orders: each source's own order, of at least one row.
        quotas: how many positions of a block each source has, at least 1; together at most `BLOCK_ROWS`.
        stop: an epoch ends with the last row of the source that is through `"first"`, or for a number n with the row
            that completes the n-th round of the last source.
        seed: what the sources' own seeds were derived from, for a state to name.
    """

    orders: tuple[Order, ...]
    quotas: tuple[int, ...]
    stop: Ends
    seed: int

    @property
    def block_rows(self) -> int:
        """Positions of a block."""
        return sum(self.quotas)

    @property
    def lanes(self) -> int:
        """One."""
        return 1

    @cached_property
    def count(self) -> int:
        """Positions of an epoch, found within the one block in which it ends."""
        rounds, decide = (1, min) if self.stop == "first" else (self.stop, max)
        lasts = [divmod(order.count * rounds - 1, quota) for order, quota in zip(self.orders, self.quotas, strict=True)]
        block = decide(block for block, _ in lasts)
        firsts = _first_slots(self.quotas)
        slots = [first + k for first, (own_block, k) in zip(firsts, lasts, strict=True) if own_block == block]
        ends = np.flatnonzero(np.isin(_pattern(self.quotas, block), slots))
        count = block * self.block_rows + int(decide(ends)) + 1
        if count > MAX_ROWS:
            raise ValueError(f"an epoch of the mixture would have {count:,} rows; at most {MAX_ROWS:,} can be counted")
        return count

    @cached_property
    def sources(self) -> tuple[Repeated, ...]:
        """Each source's endless sequence: its own order in the rounds that it begins in an epoch."""
        block, rest = divmod(self.count, self.block_rows)
        begun = np.bincount(_owners(self.quotas)[_pattern(self.quotas, block)[:rest]], minlength=len(self.quotas))
        return tuple(
            _repeated(order, -(-(block * quota + more) // order.count))
            for order, quota, more in zip(self.orders, self.quotas, begun.tolist(), strict=True)
        )

    def deal(self, positions: Rows) -> list[tuple[int, Rows, Rows]]:
        """Sort positions by source.

        Returns:
            for each source that has any of them: its number, which of `positions` these are (ascending), and their
            positions in the source's own sequence.
        """
        blocks = positions // self.block_rows
        offsets = positions - blocks * self.block_rows
        slots = np.empty(len(positions), np.uint16)
        for where in groups(blocks):
            slots[where] = _pattern(self.quotas, int(blocks[where][0]))[offsets[where]]
        owners = _owners(self.quotas)[slots]
        by_source = np.argsort(owners, kind="stable")  # a counting sort, for numbers as small as these
        inner = np.searchsorted(owners[by_source], np.arange(1, len(self.quotas), dtype=owners.dtype))
        bounds = [0, *inner.tolist(), len(owners)]
        firsts = _first_slots(self.quotas)
        dealt = []
        for source, quota in enumerate(self.quotas):
            where = by_source[bounds[source] : bounds[source + 1]]
            if len(where):
                dealt.append((source, where, slots[where] + (blocks[where] * quota - firsts[source])))
        return dealt

    def rows(self, epoch: int, positions: Rows) -> Rows:
        """Return the rows at some positions."""
        rows = np.empty(len(positions), np.int64)
        for source, where, own in self.deal(positions):
            rows[where] = self.sources[source].rows(epoch, own) + self.first_rows[source]
        return rows

    @cached_property
    def first_rows(self) -> list[int]:
        """The number that the first row of each source has among the rows of all."""
        firsts: list[int] = np.cumsum([0, *(order.count for order in self.orders)])[:-1].tolist()
        return firsts

    def describe(self) -> dict[str, int | str]:
        """Return how the mixture is made: quotas and the sources' own orders as hashes, for there may be many."""
        return {
            "shuffle": "mixture",
            "sources": len(self.orders),
            "seed": self.seed,
            "stop": self.stop,
            "weights": _hashed(self.quotas),
            "orders": _hashed([order.describe() for order in self.orders]),
            "block_rows": self.block_rows,
            "rows": self.count,
        }


def _repeated(order: Order, rounds: int) -> Repeated:
    return RepeatedWindows(order, rounds) if isinstance(order, WindowShuffle) else Repeated(order, rounds)


@lru_cache(_CACHED_BLOCKS)
def _pattern(quotas: tuple[int, ...], block: int) -> NDArray[np.uint16]:
    """Return the slot of each position of a block: those of source 0 are numbered first, each in ascending order."""
    size = sum(quotas)
    key = epoch_key(0, 0, f"mixture block {block}")
    owners = _owners(quotas)[permute(size, key, np.arange(size, dtype=np.int64))]
    slots = np.empty(size, np.uint16)
    slots[np.argsort(owners, kind="stable")] = np.arange(size)
    slots.flags.writeable = False
    return slots


@lru_cache(_CACHED_BLOCKS)
def _owners(quotas: tuple[int, ...]) -> NDArray[Any]:
    """Return the source of each slot, in the smallest dtype."""
    dtype = np.uint8 if len(quotas) <= 256 else np.uint16
    owners = np.repeat(np.arange(len(quotas), dtype=dtype), quotas)
    owners.flags.writeable = False
    return owners


def _first_slots(quotas: tuple[int, ...]) -> list[int]:
    return [0, *np.cumsum(quotas)[:-1].tolist()]


def _picked(where: slice | Rows, part: slice | Rows) -> slice | Rows:
    """Return which positions are some of those at `where`."""
    if isinstance(where, slice):
        first: int = where.start
        return slice(first + part.start, first + part.stop) if isinstance(part, slice) else part + first
    return where[part]


def _hashed(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
