"""How the pages of a store's maps are used: which stay resident, which are asked for ahead, when they are given back.

An array that fits into what the memory budget leaves is *kept*: its pages stay resident once they were touched, and a
pass over it populates the page tables ahead. Any other is *streamed*: what it has resident is given back whenever the
budget is used up. For both, pages that are not in the page cache are asked for before they are needed; where samples
show that they are there, nothing is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from shardstore.locks import ForkSafeLock
from shardstore.machine import available_memory
from shardstore.mapping import MappedFiles
from shardstore.paging import PAGE, Advice, advise, ask_for, cached_share, major_faults, resident_file_nbytes
from shardstore.schema import parse_bytes
from shardstore.selection import Rows

Access = Literal["auto", "resident", "streaming"]
ACCESSES: tuple[Access, ...] = get_args(Access)
Verification = Literal["off", "on_read"]
VERIFICATIONS: tuple[Verification, ...] = get_args(Verification)

# A fault maps cached pages around it, too: at most so many bytes, if they are cached as a huge page.
_FAULT_NBYTES = 2 << 20
# Rows between two looks at whether pages are in the page cache, and pages of a look.
_LOOK_ROWS = 1 << 16
_LOOK_PAGES = 32
# Bytes that are populated at once: a few milliseconds, after which it can stop.
_POPULATE_NBYTES = 16 << 20
# Consecutive rows are asked for so far ahead.
RUN_AHEAD_NBYTES = 32 << 20
# Decoded chunks are cached up to so many bytes, or an eighth of the budget.
CHUNK_CACHE_NBYTES = 32 << 20


@dataclass(frozen=True)
class AccessOptions:
    """What a user asked for: a small value that pickles.

    Attributes:
        access: `"auto"` keeps arrays that fit the budget and streams the others; `"resident"` keeps all of them,
            `"streaming"` none.
        memory_budget: bytes that the store may have resident from its maps and in buffers and caches; None for half of
            what the machine has available when the store is opened.
        verify: `"on_read"` checks raw chunks against their checksums when rows of them are first read.
    """

    access: Access = "auto"
    memory_budget: int | None = None
    verify: Verification = "off"

    @classmethod
    def checked(cls, access: Access, memory_budget: int | str | None, verify: Verification = "off") -> AccessOptions:
        """Check what a user asked for.

        Raises:
            ValueError, TypeError, SchemaError: if it makes no sense.
        """
        if access not in ACCESSES:
            raise ValueError(f"access is {access!r}; expected one of {', '.join(map(repr, ACCESSES))}")
        if verify not in VERIFICATIONS:
            raise ValueError(f"verify is {verify!r}; expected one of {', '.join(map(repr, VERIFICATIONS))}")
        if memory_budget is None:
            return cls(access, None, verify)
        if isinstance(memory_budget, bool) or not isinstance(memory_budget, int | str | np.integer):
            found = type(memory_budget).__name__
            raise TypeError(f'memory_budget is a {found}; expected a number of bytes, a text such as "2GiB", or None')
        nbytes = parse_bytes(memory_budget if isinstance(memory_budget, str) else int(memory_budget))
        return cls(access, nbytes, verify)


DEFAULT_ACCESS = AccessOptions()


class Budget:
    """What all arrays of a store share of its memory budget. Safe to use from several threads.

    Attributes:
        options: what was asked for.
        total: bytes.
    """

    def __init__(self, options: AccessOptions) -> None:
        self.options = options
        self.total = options.memory_budget or available_memory() // 2
        self._lock = ForkSafeLock()
        self._kept = 0
        self._streamed: list[PageKeeper] = []
        # Resident bytes of files when none was of streamed arrays, and about how many these have touched since.
        self._floor = 0
        self._touched = 0

    @property
    def cache_nbytes(self) -> int:
        """What the decoded chunks of all columns may take."""
        return min(CHUNK_CACHE_NBYTES, self.total // 8)

    @property
    def streamed_nbytes(self) -> int:
        """What streamed arrays may have resident: half of the budget, or more if little is kept.

        The other half is for buffers.
        """
        return max(self.total // 4, self.total // 2 - self._kept)

    @property
    def buffer_nbytes(self) -> int:
        """What blocks of batches and decoded windows may take."""
        return self.total // 2 - self.cache_nbytes

    def check(self, nbytes: int, what: str, advice: str) -> None:
        """Raise `ValueError` if buffers of so many bytes do not fit the budget that the user has set."""
        if self.options.memory_budget is not None and nbytes > self.buffer_nbytes:
            raise ValueError(
                f"{what} takes {nbytes:,} bytes, but a memory_budget of {self.total:,} bytes leaves "
                f"{self.buffer_nbytes:,} for buffers: {advice}, or open the store with a larger memory_budget"
            )

    def keep(self, nbytes: int) -> bool:
        """Say whether one more array of so many bytes is kept.

        Raises:
            ValueError: if all should be, and are larger than the budget that was asked for.
        """
        options = self.options
        with self._lock:
            kept = self._kept + nbytes
            fits = kept <= self.total // 2
            if options.access == "streaming" or (options.access == "auto" and not fits):
                return False
            if not fits and options.memory_budget is not None:
                raise ValueError(
                    f"access='resident' would keep {kept:,} bytes resident, more than half of the memory_budget of "
                    f"{self.total:,} bytes (the other half is for buffers): give a larger one, or open the store with "
                    "access='auto'"
                )
            self._kept = kept
        return True

    def stream(self, pages: PageKeeper) -> None:
        """Take note of an array that is streamed."""
        with self._lock:
            if not self._streamed:
                self._floor = resident_file_nbytes() or 0
            self._streamed.append(pages)

    def touched(self, nbytes: int) -> None:
        """Take note that streamed arrays have at most so many more bytes resident; give all back if it is too much."""
        self._touched += nbytes  # a race between threads counts a little less, and the next look sets it right
        if self._touched <= self.streamed_nbytes // 2:
            return
        with self._lock:
            resident = resident_file_nbytes()
            if resident is not None:
                self._floor = min(self._floor, resident)
                self._touched = resident - self._floor
            if self._touched <= self.streamed_nbytes // 4:
                return
            for pages in self._streamed:
                pages.give_back()
            self._floor = resident_file_nbytes() or 0
            self._touched = 0

    def forget(self, pages: PageKeeper, nbytes: int) -> None:
        """Count an array no longer."""
        with self._lock:
            if pages in self._streamed:
                self._streamed.remove(pages)
            elif pages.kept:
                self._kept -= nbytes

    def close(self) -> None:
        """Forget the arrays."""
        with self._lock:
            self._streamed.clear()
            self._kept = 0


class PageKeeper:
    """Looks after the pages of one mapped array.

    Args:
        files: the mapped files.
        row_nbytes: bytes of a row. Rows are counted along the range, phantom rows among them.
        budget: that of the store.
        tells: whether the system says truly which pages of the files are cached.

    Attributes:
        kept: whether the array's pages stay resident.
    """

    def __init__(self, files: MappedFiles, row_nbytes: int, budget: Budget, tells: bool) -> None:
        self._files = files
        self._row_nbytes = row_nbytes
        self._budget = budget
        self._tells = tells
        self.kept = budget.keep(files.nbytes)
        if not self.kept:
            budget.stream(self)
        # Whether pages are missing from the page cache, as far as is known.
        self._missing = not tells
        self._faults = 0
        # Rows since the last look, and rows that were asked for and not read yet.
        self._since = _LOOK_ROWS if tells else 0
        self._expected = 0
        # The stretch of consecutive rows that was asked for last.
        self._asked = 0, 0
        self._populated = np.zeros(files.count, np.bool_)
        self._process = os.getpid()

    # Ahead

    def begin_pass(self) -> None:
        """Be told that many rows will be read: look again whether they are in the page cache."""
        if self._tells:
            self._since = _LOOK_ROWS

    def wants(self, count: int) -> bool:
        """Whether so many rows to come should be named to `expect` or `expect_run`."""
        self._since += count
        return self._missing or self._since >= _LOOK_ROWS

    def expect(self, rows: Rows) -> None:
        """Ask for the pages of mapped rows that will be read soon, if they are not in the page cache."""
        if not len(rows):
            return
        starts = self._files.address + rows * self._row_nbytes
        if self._look(starts[:: -(-len(rows) // _LOOK_PAGES)]):
            ask_for(starts, self._row_nbytes)
        self._expected += len(rows)

    def expect_runs(self, starts: Rows, stops: Rows) -> None:
        """The same for runs of consecutive rows."""
        filled = starts < stops
        places = self._files.address + starts[filled] * self._row_nbytes
        if len(places) and self._look(places[:: -(-len(places) // _LOOK_PAGES)]):
            ask_for(places, (stops - starts)[filled] * self._row_nbytes)
        self._expected += len(starts)

    def must_ask(self, count: int) -> bool:
        """Whether so many rows or runs, which are about to be read, should be named to `expect`: nobody has done so."""
        if self._expected > 0:
            self._expected -= count
            return False
        return self.wants(count)

    def forget(self) -> None:
        """Forget which rows were expected: they are read now."""
        self._expected = 0

    def misses_run(self, start: int, stop: int) -> bool:
        """Look whether pages of consecutive mapped rows are missing from the page cache."""
        samples = np.linspace(start, stop - 1, min(_LOOK_PAGES, stop - start)).astype(np.int64)
        return self._look(self._files.address + samples * self._row_nbytes)

    def ask_for_run(self, start: int, stop: int) -> None:
        """Ask for consecutive mapped rows, but for those that were asked for last."""
        first, last = self._asked
        if first <= start <= last:
            start, self._asked = max(start, min(last, stop)), (first, max(last, stop))
        else:
            self._asked = start, stop
        if start < stop:
            place = np.array([self._files.address + start * self._row_nbytes])
            ask_for(place, (stop - start) * self._row_nbytes)

    def _look(self, addresses: Rows) -> bool:
        """Look whether some addresses are in the page cache; return whether pages are missing there."""
        if self._tells:
            self._since = 0
            share = cached_share((addresses & -PAGE).tolist())
            self._missing = share is not None and share < 1 - 1 / _LOOK_PAGES
        elif self._missing:
            # Nobody knows whether asking is still of use: see what happens without.
            self._missing, self._faults = self._since < _LOOK_ROWS, major_faults() or 0
        else:
            faults = major_faults() or 0
            self._missing, self._faults = faults > self._faults, faults
            self._since = 0 if self._missing else _LOOK_ROWS
        return self._missing

    # Behind

    @property
    def rows_at_once(self) -> int:
        """How many scattered rows of a streamed array may be read through the map before `after_rows` is told."""
        return max(1, self._budget.streamed_nbytes // 4 // (_FAULT_NBYTES + self._row_nbytes))

    def after_rows(self, count: int) -> None:
        """Be told that so many scattered rows (or runs) of a streamed array were read through the map."""
        self._budget.touched(count * (_FAULT_NBYTES + self._row_nbytes))

    def after_run(self, count: int) -> None:
        """Be told that so many consecutive rows of a streamed array are shown, and so may be touched."""
        self._budget.touched(_FAULT_NBYTES + count * self._row_nbytes)

    def give_back(self) -> None:
        """Give back what is resident; the page cache keeps it as long as it has room."""
        advise(self._files.address, self._files.span_nbytes, Advice.DONTNEED)

    # All of it

    def populate(self, file: int, stopped: Callable[[], bool]) -> bool:
        """Bring a mapped file into the page cache, and a kept one into the page tables.

        Returns:
            False if the system cannot do that, or it was stopped.
        """
        if os.getpid() != self._process:  # a child of a fork has page tables of its own
            self._process = os.getpid()
            self._populated[:] = False
        if self._populated[file]:
            return True
        address, nbytes = self._files.range_of(file)
        ask_for(np.array([address]), min(_POPULATE_NBYTES, nbytes))
        for start in range(0, nbytes, _POPULATE_NBYTES):
            if stopped():
                return False
            # Large reads, one step ahead; populating alone would read page by page.
            step, behind = min(_POPULATE_NBYTES, nbytes - start), start + _POPULATE_NBYTES
            if behind < nbytes:
                ask_for(np.array([address + behind]), min(_POPULATE_NBYTES, nbytes - behind))
            if self.kept and not advise(address + start, step, Advice.POPULATE_READ):
                return False
        self._populated[file] = self.kept
        return True

    def close(self) -> None:
        """Count no longer for the budget."""
        self._budget.forget(self, self._files.nbytes)
