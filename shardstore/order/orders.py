"""Orders: which row comes at which position of which epoch.

An order is a frozen value of constant size and a pure function of the position. `Sequential` is the table's own order,
`FullShuffle` a permutation of all rows, `WindowShuffle` one that reads a compressed column chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from shardstore.order.permutation import epoch_key, permute
from shardstore.selection import Rows


class Order(Protocol):
    """Which row of a table comes at which position of which epoch."""

    @property
    def count(self) -> int:
        """Positions of an epoch."""

    @property
    def lanes(self) -> int:
        """Position p belongs to lane p mod `lanes`."""

    def rows(self, epoch: int, positions: Rows) -> Rows:
        """Return the table's rows at int64 `positions`, each in `[0, count)`, of an epoch."""

    def describe(self) -> dict[str, int | str]:
        """Return all that decides about the order, for a state to name: two orders are equal if these are."""


@dataclass(frozen=True)
class Sequential:
    """The table's own order.

    Attributes:
        count: how many rows there are.
    """

    count: int

    @property
    def lanes(self) -> int:
        """One."""
        return 1

    def rows(self, epoch: int, positions: Rows) -> Rows:
        """Return the positions themselves."""
        return positions

    def describe(self) -> dict[str, int | str]:
        """Return the number of rows."""
        return {"shuffle": "none", "rows": self.count}


@dataclass(frozen=True)
class FullShuffle:
    """A permutation of all rows, another one in every epoch.

    Attributes:
        count: how many rows there are.
        seed: any integer; with the epoch's number it determines the permutation.
    """

    count: int
    seed: int

    @property
    def lanes(self) -> int:
        """One."""
        return 1

    def rows(self, epoch: int, positions: Rows) -> Rows:
        """Return the rows at some positions."""
        return permute(self.count, epoch_key(self.seed, epoch), positions)

    def describe(self) -> dict[str, int | str]:
        """Return the number of rows and the seed."""
        return {"shuffle": "full", "rows": self.count, "seed": self.seed}


@dataclass(frozen=True)
class Sections:
    """Rows cut into sections, such as the chunks that hold them; the first and the last may be short.

    Attributes:
        count: how many rows there are.
        size: rows of a section.
        missing: rows that the first section lacks at its front, in `[0, size)`.
    """

    count: int
    size: int
    missing: int = 0

    def __len__(self) -> int:
        return -(-(self.count + self.missing) // self.size) if self.count else 0

    def start(self, sections: Rows) -> Rows:
        """Return each section's first row; for the number of sections, about one past the last row."""
        return np.maximum(sections * self.size - self.missing, 0)

    def short(self) -> list[tuple[int, int]]:
        """Return the number and the rows of the sections that are not whole: at most the first and the last."""
        last = len(self) - 1
        sizes = {0: min(self.count, self.size - self.missing)}
        if last > 0:
            sizes[last] = self.count - (last * self.size - self.missing)
        return [(section, size) for section, size in sizes.items() if size < self.size]


@dataclass(frozen=True)
class WindowShuffle:
    """Sections in permuted order, some of them at a time in a window, and the rows of a window in permuted order.

    Who reads an epoch in order holds one window at a time, and needs each section for one window only. The permuted
    sections, one after the other, are cut into `lanes` runs of equal length (to a row), each of them into windows:
    position p is number p // lanes of lane p mod lanes. Only a section in which a run ends belongs to two lanes.

    Attributes:
        sections: how the rows are cut.
        window: sections of a window; fewer, but equally many, where they would not fill the last window.
        seed: any integer; with the epoch's number it determines the order.
        lanes: how many runs there are.
    """

    sections: Sections
    window: int
    seed: int
    lanes: int = 1

    @property
    def count(self) -> int:
        """Positions of an epoch."""
        return self.sections.count

    def describe(self) -> dict[str, int | str]:
        """Return the seed, and how sections, windows and lanes are cut."""
        return {
            "shuffle": "window",
            "rows": self.count,
            "seed": self.seed,
            "section_rows": self.sections.size,
            "first_section_lacks": self.sections.missing,
            "window_sections": self.window,
            "lanes": self.lanes,
        }

    def rows(self, epoch: int, positions: Rows) -> Rows:
        """Return the rows at some positions."""
        rows = np.empty(len(positions), np.int64)
        for window, where, places in self.windows(epoch, positions):
            rows[where] = window.rows(places)
        return rows

    def windows(self, epoch: int, positions: Rows) -> list[tuple[Window, slice | Rows, Rows]]:
        """Sort positions into windows.

        Returns:
            for each window that holds any of them: the window, which of `positions` these are, and the places that
            their rows have in it.
        """
        if not len(positions):
            return []
        sequence = _Sequence.of(self.sections, epoch_key(self.seed, epoch, "sections"))
        lanes = positions % self.lanes if self.lanes > 1 else np.zeros(1, np.int64)
        flat = positions // self.lanes + self._lane_start(lanes)
        slots = sequence.slot(flat)
        numbers = (slots - sequence.slot(self._lane_start(lanes))) // self._even_window()
        found = []
        for where in groups(lanes * len(self.sections) + numbers):
            one = where.start if isinstance(where, slice) else int(where[0])
            lane = int(lanes[one if self.lanes > 1 else 0])
            window = self._window(epoch, sequence, lane, int(numbers[one]))
            found.append((window, where, window.permuted(flat[where])))
        return found

    def following(self, window: Window) -> Window | None:
        """Return the window that comes behind another one in its lane; None behind the last one of an epoch."""
        epoch, lane, number = window.name
        if window.stop >= int(self._lane_start(np.array([lane + 1]))[0]):
            return None
        return self._window(epoch, window.sequence, lane, number + 1)

    @property
    def max_window_rows(self) -> int:
        """Rows of the windows of all lanes together, at most."""
        return min(self.count, self.lanes * self._even_window() * self.sections.size) if self.count else 0

    def _lane_start(self, lanes: Rows) -> Rows:
        """Return where in the flat sequence of permuted sections a lane's run begins."""
        least, more = divmod(self.count, self.lanes)
        return lanes * least + np.minimum(lanes, more)

    def _even_window(self) -> int:
        slots = -(-len(self.sections) // self.lanes) + 1 if self.lanes > 1 else len(self.sections)
        return -(-slots // -(-slots // self.window))

    def _window(self, epoch: int, sequence: _Sequence, lane: int, number: int) -> Window:
        begin, end = self._lane_start(np.array([lane, lane + 1])).tolist()
        size = self._even_window()
        slot = int(sequence.slot(np.array([begin]))[0]) + number * size
        slots = np.array([slot, min(slot + size, len(self.sections))])
        start, stop = np.clip(sequence.start(slots), begin, end).tolist()
        key = epoch_key(self.seed, epoch, f"lane {lane} window {number}")
        return Window((epoch, lane, number), sequence, start, stop, key)


@dataclass(frozen=True)
class Window:
    """A window of an epoch.

    Attributes:
        name: epoch, lane and number.
        sequence: the epoch's permuted sections, one after the other.
        start: where in that sequence it begins.
        stop: where it ends.
    """

    name: tuple[int, int, int]
    sequence: _Sequence
    start: int
    stop: int
    _key: bytes

    def __len__(self) -> int:
        return self.stop - self.start

    def permuted(self, flat: Rows) -> Rows:
        """Return the places within the window whose rows come at some positions of the flat sequence."""
        return permute(len(self), self._key, flat - self.start)

    def rows(self, places: Rows) -> Rows:
        """Return the table's rows at some places of the window."""
        flat = places + self.start
        slots = self.sequence.slot(flat)
        sections = self.sequence.section(slots)
        return self.sequence.sections.start(sections) + (flat - self.sequence.start(slots))

    def runs(self) -> tuple[Rows, Rows]:
        """Return the first row and the one past the last of each run of consecutive rows, in the places' order."""
        first, last = self.sequence.slot(np.array([self.start, self.stop - 1])).tolist()
        slots = np.arange(first, last + 1)
        starts = self.sequence.sections.start(self.sequence.section(slots))
        flat = self.sequence.start(np.arange(first, last + 2))
        inside = np.clip(flat, self.start, self.stop)
        return starts + (inside[:-1] - flat[:-1]), starts + (inside[1:] - flat[:-1])


@dataclass(frozen=True)
class _Sequence:
    """The sections of an epoch one after the other: each has a slot, and its rows their flat positions.

    The short sections, of which there are at most two, come to slots drawn at random, the whole ones are permuted
    among the others: so flat positions are computed, and no slot has to be searched for.
    """

    sections: Sections
    key: bytes
    # Slot, section and missing rows of the short ones, by slot.
    short: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, sections: Sections, key: bytes) -> _Sequence:
        short = sections.short()
        slots: list[int] = []
        for i in range(len(short)):
            word = int.from_bytes(key[32 + 8 * i : 40 + 8 * i], "little")
            slot = word % (len(sections) - i)
            slots.append(slot + sum(slot >= other for other in slots))
        missing = [(slot, section, sections.size - size) for slot, (section, size) in zip(slots, short, strict=True)]
        return cls(sections, key, tuple(sorted(missing)))

    def section(self, slots: Rows) -> Rows:
        """Return which section is at a slot."""
        short = self.short
        whole = len(self.sections) - len(short)
        rank = slots - sum((slots > slot).astype(np.int64) for slot, _, _ in short)
        # Where a short section is, the rank is that of its neighbour, or one past the last.
        sections = permute(whole, self.key, np.minimum(rank, whole - 1)) if whole else np.zeros_like(slots)
        if any(section == 0 for _, section, _ in short):
            sections += 1
        for slot, section, _ in short:
            sections[slots == slot] = section
        return sections

    def start(self, slots: Rows) -> Rows:
        """Return the flat position at which a slot begins."""
        starts: Rows = slots * self.sections.size
        for slot, _, missing in self.short:
            starts -= (slots > slot) * missing
        return starts

    def slot(self, flat: Rows) -> Rows:
        """Return the slot that holds a flat position."""
        spread = flat
        behind = 0
        for slot, _, missing in self.short:
            behind += missing
            # As if every section before were whole.
            spread = spread + (flat >= (slot + 1) * self.sections.size - behind) * missing
        return spread // self.sections.size


def groups(keys: Rows) -> list[slice | Rows]:
    """Return the places of each distinct key, ascending: as slices where no key comes after a larger one."""
    if not len(keys):
        return []
    steps = np.diff(keys)
    if (steps >= 0).all():
        bounds = [0, *(np.flatnonzero(steps) + 1).tolist(), len(keys)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]
    order = np.argsort(keys, kind="stable")
    bounds = [0, *(np.flatnonzero(np.diff(keys[order])) + 1).tolist(), len(keys)]
    return [order[start:stop] for start, stop in pairwise(bounds)]
