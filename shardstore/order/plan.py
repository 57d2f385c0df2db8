"""`Plan`: an order cut into steps, and each step's rows dealt to the ranks.

Step t of an epoch covers positions `[t·G, (t+1)·G)` of its order, G = batch size × world size. With one lane, or a
world size that does not divide the lanes, rank r takes the contiguous positions `[t·G + r·B, +B)`; otherwise it takes
the positions of its own lanes, those that are r modulo the world size, which are as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shardstore.order.orders import Order
from shardstore.selection import Rows

Remainder = Literal["keep", "drop", "pad"]
REMAINDERS: tuple[Remainder, ...] = ("keep", "drop", "pad")


# No number that a user gives is larger: products of two of them with a few bits more still fit 64 bits.
MAX_INT = 1 << 40


def check_int(name: str, value: int) -> int:
    """Return a number as a plain int; raise `TypeError` or `ValueError` if it is none or beyond all use."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is a {type(value).__name__}; expected an int")
    if abs(int(value)) > MAX_INT:
        raise ValueError(f"{name} is {value}; expected at most {MAX_INT:,}")
    return int(value)


def check_epoch(epoch: int) -> int:
    """Return the number of an epoch; raise `ValueError` or `TypeError` if it is none."""
    if check_int("epoch", epoch) < 0:
        raise ValueError(f"epoch is {epoch}; expected a number from 0 on")
    return int(epoch)


@dataclass(frozen=True)
class Cursor:
    """A place in an endless run of epochs.

    Attributes:
        epoch: the epoch.
        delivered: how many of its positions were delivered, by all ranks together.
    """

    epoch: int = 0
    delivered: int = 0


@dataclass(frozen=True)
class Replica:
    """Which of several processes that share an epoch this is: `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        for name in ("rank", "world_size"):
            object.__setattr__(self, name, check_int(name, getattr(self, name)))
        if self.world_size < 1:
            raise ValueError(f"world_size is {self.world_size}; expected at least 1")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank is {self.rank}; with a world size of {self.world_size} it is 0 to {self.world_size - 1}"
            )


@dataclass(frozen=True)
class Turns:
    """Which steps of a rank one of its workers takes: some in a row, in turn with the others.

    Attributes:
        worker: number of the worker.
        workers: how many there are.
        unit: how many steps make a turn.
    """

    worker: int = 0
    workers: int = 1
    unit: int = 1

    def count(self, steps: int) -> int:
        """Return how many of the first `steps` steps are this worker's."""
        rounds, rest = divmod(steps, self.unit * self.workers)
        return rounds * self.unit + min(max(rest - self.worker * self.unit, 0), self.unit)

    def steps(self, start: int, stop: int) -> Rows:
        """Return which steps this worker's own ones from number `start` to `stop` are, as int64."""
        own = np.arange(start, stop, dtype=np.int64)
        if self.workers == 1:
            return own
        return (own // self.unit * self.workers + self.worker) * self.unit + own % self.unit


@dataclass(frozen=True)
class Steps:
    """The positions of some steps of one rank.

    Attributes:
        positions: int64, the steps' positions one after the other; where a step was padded, with copies.
        bounds: where each step begins in `positions`, and where the last ends.
        mask: bool, False where a position is a copy; None where nothing can be one.
    """

    positions: Rows
    bounds: list[int]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Plan:
    """Which rows each step of each epoch has, on each rank. A small value that is the same everywhere.

    Attributes:
        order: the order of rows.
        batch_size: rows of a step on one rank.
        remainder: what becomes of the rows after the last whole step: `"keep"` makes a short batch of them (for one
            rank only), `"drop"` leaves them out, `"pad"` fills the step on every rank with copies.
    """

    order: Order
    batch_size: int
    remainder: Remainder = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "batch_size", check_int("batch_size", self.batch_size))
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1")
        if self.remainder not in REMAINDERS:
            raise ValueError(f"remainder is {self.remainder!r}; expected one of {', '.join(map(repr, REMAINDERS))}")

    def __len__(self) -> int:
        """Return the number of steps of an epoch for a single rank."""
        return self.steps(1)

    def steps(self, world_size: int = 1, delivered: int = 0) -> int:
        """Return how many steps the rest of an epoch has, behind `delivered` positions; the same on every rank."""
        whole, rest = divmod(self.order.count - delivered, self.batch_size * world_size)
        return whole + (1 if rest and self.remainder != "drop" else 0)

    def advance(self, cursor: Cursor, steps: int, world_size: int = 1) -> Cursor:
        """Return the cursor behind some more steps of the cursor's epoch."""
        delivered = cursor.delivered + steps * self.batch_size * world_size
        return Cursor(cursor.epoch, min(delivered, self.order.count))

    def check(self, world_size: int) -> None:
        """Raise `ValueError` if so many ranks cannot share an epoch in equal steps, or if no step is left to share."""
        if world_size > 1 and self.remainder == "keep":
            raise ValueError(
                f"remainder='keep' would give {world_size} ranks batches of different sizes: choose 'drop' (leave out "
                "the rows after the last whole step) or 'pad' (fill it with copies, marked False in a mask)"
            )
        count, step = self.order.count, self.batch_size * world_size
        if self.remainder == "drop" and 0 < count < step:
            ranks = f" × {world_size} ranks" if world_size > 1 else ""
            raise ValueError(
                f"remainder='drop' leaves nothing of {count:,} rows in batches of {self.batch_size:,}{ranks}: "
                "choose a smaller batch_size, or 'keep' or 'pad'"
            )

    def rows(self, epoch: int, start: int, stop: int) -> Rows:
        """Return the table's rows at positions `[start, stop)` of an epoch's order, as int64."""
        check_epoch(epoch)
        if not 0 <= start <= stop <= self.order.count:
            raise IndexError(f"positions {start:,} to {stop:,} are out of range for {self.order.count:,} rows")
        return self.order.rows(epoch, np.arange(start, stop, dtype=np.int64))

    def batch(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> Rows:
        """Return the table's rows of one step on one rank, as int64; with `"pad"`, the copies too (see `mask`)."""
        return self.order.rows(check_epoch(epoch), self._step(step, rank, world_size).positions)

    def mask(self, step: int, rank: int = 0, world_size: int = 1) -> NDArray[np.bool_]:
        """Return which rows of one step on one rank are no copies."""
        steps = self._step(step, rank, world_size)
        return np.ones(len(steps.positions), np.bool_) if steps.mask is None else steps.mask

    def _step(self, step: int, rank: int, world_size: int) -> Steps:
        replica = Replica(rank, world_size)
        self.check(world_size)
        if not 0 <= step < self.steps(world_size):
            raise IndexError(f"step {step:,} is out of range for {self.steps(world_size):,} steps of an epoch")
        return self.positions(np.array([step]), replica)

    def positions(self, steps: Rows, replica: Replica, delivered: int = 0) -> Steps:
        """Return the positions of some steps of one rank, which must be ascending and in range.

        Args:
            steps: int64, numbers of steps; step 0 begins behind `delivered` positions of the epoch.
            replica: the rank.
            delivered: any number: what was delivered before may have been cut into other steps.
        """
        rank, world_size = replica.rank, replica.world_size
        count, lanes = self.order.count, self.order.lanes
        first = delivered + steps * (self.batch_size * world_size)
        size, stride = self.batch_size, 1
        if lanes % world_size == 0:
            first += (rank - first) % world_size
            stride = world_size
        else:
            first += rank * size
        if self.remainder == "keep":
            size = min(size, count - delivered)  # who asks for a batch of all rows need not count them
        positions = (first[:, None] + np.arange(0, size * stride, stride)).reshape(-1)
        bounds = [size * k for k in range(len(first) + 1)]
        if self.remainder == "pad":
            mask = positions < count
            if not mask.all():
                positions = np.where(mask, positions, self._mirrored(positions))
            return Steps(positions, bounds, mask)
        if self.remainder == "keep" and len(positions) and positions[-1] >= count:
            positions = positions[: np.searchsorted(positions, count)]
            bounds[-1] = len(positions)
        return Steps(positions, bounds, None)

    def _mirrored(self, positions: Rows) -> Rows:
        """Return positions of the same lanes to copy: near the end, where what they need has just been read."""
        lanes, count = self.order.lanes, self.order.count
        mirrored = positions - lanes * (2 * ((positions - count) // lanes) + 1)
        return np.where(mirrored >= 0, mirrored, positions % count)
