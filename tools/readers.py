"""Read a store in hundreds of processes while others append to it, and check every row that they see.

    python tools/readers.py [--readers 200] [--writers 2] [--seconds 60] [--changes]

Readers open the store as it is, or an earlier generation of it, keep stores, views, pickles and streams that are not at
their end, and read from them again when it has grown: each sees exactly the rows of its generation. Writers meet at
the lock: who comes second gets a `LockedError` that names a writer. With `--changes` a single writer, which is killed
and started again all the time, also adds and drops a column and overwrites the store. Prints what was done, and exits
with 1 if anything was not as it must be.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import shardstore
from shardstore.manifest import Manifest
from tools.crowds import Crowd, Role, Tally, at_once, total
from tools.growing import Numbers, State, Story, begin, check, is_gone, step
from tools.workplaces import scratch

_OPTIONS: tuple[dict[str, Any], ...] = ({}, {"verify": "on_read"}, {"access": "streaming", "memory_budget": "64MiB"})
_MOST_KEPT = 6
# Generations further back may be forgotten while one is being opened: a thousand are kept.
_BACK = 500


@dataclass
class Kept:
    """An open store, its manifest, and what it must hold; None until somebody has looked."""

    store: shardstore.Store
    manifest: Manifest
    state: State | None = None


@dataclass
class Paused:
    """A pickled stream that is not at its end, of which rows have come already."""

    data: bytes
    came: Numbers
    columns: tuple[str, ...]


class Reader:
    """Reads a store that others change: each call is one read, of something that was opened now or earlier."""

    def __init__(self, path: Path, story: Story, choose: random.Random, tally: Tally) -> None:
        self._path = path
        self._story = story
        self._choose = choose
        self._tally = tally
        self._kept: list[Kept] = []
        self._paused: list[tuple[Kept, Paused]] = []

    def __call__(self) -> None:
        """Read something, and check it."""
        if not self._kept or self._choose.random() < 0.2:
            self._keep(self._opened())
        kept = self._choose.choice(self._kept)
        (act,) = self._choose.choices([*_ACTS], [*_ACTS.values()])
        self.attempt(kept, lambda: act(self, kept, self._state(kept)))

    def attempt(self, kept: Kept, act: Callable[[], object]) -> bool:
        """Do something with an open store; return False if it was replaced, or a column of it dropped, meanwhile."""
        try:
            act()
        except shardstore.FormatError:
            if not self._is_gone(kept.manifest):
                raise
            self._tally.counts["stores that were gone"] += 1
            self._kept = [other for other in self._kept if other is not kept]
            self._paused = [(other, paused) for other, paused in self._paused if other is not kept]
            return False
        return True

    def _opened(self, generation: int | None = None) -> Kept:
        store = shardstore.open(self._path, generation=generation, **self._choose.choice(_OPTIONS))
        return Kept(store, store.manifest)

    def _is_gone(self, then: Manifest) -> bool:
        return self._story.changes and is_gone(self._path, then)

    def _keep(self, kept: Kept) -> None:
        if len(self._kept) >= _MOST_KEPT:
            old = self._kept.pop(self._choose.randrange(_MOST_KEPT))
            if self._choose.random() < 0.5 and all(other is not old for other, _ in self._paused):
                old.store.close()
        self._kept.append(kept)

    def _state(self, kept: Kept) -> State:
        if kept.state is None:
            kept.state = self._story.seen(kept.store)
            self._tally.states.add((kept.state.store, kept.state.generation))
        return kept.state

    def _check(self, name: str, found: Any, numbers: Numbers, state: State) -> None:
        check(name, found, numbers, state)
        self._tally.counts["rows"] += len(numbers)

    # What can be done with an open store

    def _slice(self, kept: Kept, state: State) -> None:
        start, stop = self._range(state)
        name = self._choose.choice(kept.store.columns)
        self._check(name, kept.store[name][start:stop], np.arange(start, stop), state)

    def _range(self, state: State) -> tuple[int, int]:
        """Choose consecutive rows: half of the time the last ones, which is where it grows."""
        count = self._choose.randint(1, min(state.rows, 300))
        start = state.rows - count if self._choose.random() < 0.5 else self._choose.randint(0, state.rows - count)
        return start, start + count

    def _numbers(self, state: State) -> Numbers:
        start, stop = self._range(state)
        some = [self._choose.randrange(state.rows) for _ in range(20)]
        return np.array(some + [self._choose.randrange(start, stop) for _ in range(20)])

    def _gather(self, kept: Kept, state: State) -> None:
        numbers = self._numbers(state)
        name = self._choose.choice(kept.store.columns)
        self._check(name, kept.store[name].take(numbers), numbers, state)

    def _row(self, kept: Kept, state: State) -> None:
        number = self._choose.randrange(state.rows)
        row = kept.store[number]
        assert [*row] == [*kept.store.columns]
        for name in ("x", "z", "wide"):
            self._check(name, np.asarray(row[name])[None], np.array([number]), state)
        assert row["text"] == f"{number}é" * (number % 4)
        assert row["bags"].tolist() == list(range(number, number + number % 6))

    def _view(self, kept: Kept, state: State) -> None:
        numbers = np.sort(self._numbers(state))
        view = kept.store.rows(numbers)
        if self._choose.random() < 0.5:
            view = pickle.loads(pickle.dumps(view))
        for name, found in view[:].items():
            self._check(name, found, numbers, state)

    def _stream(self, kept: Kept, state: State) -> None:
        columns = self._choose.choice([("x", "wide"), ("x", "bags"), ("z", "text"), kept.store.columns])
        stream = kept.store.batches(
            self._choose.choice([1, 16, 100, 256]),
            columns=columns,
            shuffle=self._choose.choice([False, "full", "window"]),
            seed=self._choose.randrange(100),
            prefetch=self._choose.choice([0, 0, 2]),
            window_bytes=1 << 14,
            with_rows=True,
        )
        most = self._choose.choice([5, 5, 20, 1 << 30 if state.rows < 4000 else 5])
        came = self._walk(stream, state, most)
        if len(came) < state.rows and self._choose.random() < 0.5:
            self._paused = [*self._paused[-3:], (kept, Paused(pickle.dumps(stream), came, columns))]
        stream.close()

    def _walk(self, stream: Any, state: State, most: int) -> Numbers:
        """Return the numbers of the rows of some batches, all of which are what they must be."""
        came: list[Numbers] = [np.zeros(0, np.int64)]
        for batch in stream:
            numbers = batch.pop("rows")
            for name, found in batch.items():
                self._check(name, found, numbers, state)
            came.append(numbers)
            if len(came) > most:
                break
        return np.concatenate(came)

    def _go_on(self, _: Kept, __: State) -> None:
        """Read the rest of a stream that was pickled earlier: all rows of its generation that had not come."""
        if not self._paused:
            return
        kept, paused = self._paused.pop(self._choose.randrange(len(self._paused)))
        if kept.state is None:  # it was refreshed
            return

        def rest(state: State) -> None:
            stream = pickle.loads(paused.data)
            came = np.concatenate([paused.came, self._walk(stream, state, 1 << 30)])
            assert np.array_equal(np.sort(came), np.arange(state.rows)), "an epoch has not each row once"
            self._tally.counts["epochs"] += 1

        state = kept.state
        self.attempt(kept, lambda: rest(state))

    def _pickle(self, kept: Kept, state: State) -> None:
        copy = pickle.loads(pickle.dumps(kept.store))
        self._keep(Kept(copy, kept.manifest))  # it has not even looked whether it is there
        assert self._story.changes or self._story.seen(copy) == state
        self._tally.counts["pickles"] += 1

    def _earlier(self, kept: Kept, state: State) -> None:
        newest = shardstore.open(self._path).manifest
        first = max(newest.history[0].until if newest.history else 1, newest.generation - _BACK)
        try:
            earlier = self._opened(self._choose.randint(first, newest.generation))
        except shardstore.FormatError:
            if not self._is_gone(newest):
                raise
            return
        self._keep(earlier)
        self.attempt(earlier, lambda: self._slice(earlier, self._state(earlier)))
        self._tally.counts["earlier generations"] += 1

    def _refresh(self, kept: Kept, state: State) -> None:
        self._paused = [(other, paused) for other, paused in self._paused if other is not kept]
        kept.manifest, kept.state = kept.store.refresh().manifest, None
        new = self._state(kept)
        assert (new.store, new.generation, new.rows) >= (state.store, state.generation, state.rows), (state, new)
        self._tally.counts["refreshes"] += 1
        self._tally.counts["refreshes that see more rows"] += new.rows > state.rows

    def _forget(self, kept: Kept, state: State) -> None:
        self._kept.remove(kept)


_ACTS: dict[Callable[[Reader, Kept, State], None], int] = {
    Reader._slice: 8,
    Reader._gather: 6,
    Reader._row: 2,
    Reader._view: 3,
    Reader._stream: 4,
    Reader._go_on: 2,
    Reader._pickle: 1,
    Reader._earlier: 3,
    Reader._refresh: 2,
    Reader._forget: 1,
}


def reading(path: Path, story: Story) -> Role:
    """Return the role of a `Reader`."""

    def role(choose: random.Random, tally: Tally) -> Callable[[], None]:
        os.nice(10)  # or, of hundreds of processes, the writer would get a hundredth of the time
        reader = Reader(path, story, choose, tally)
        reader()

        def act() -> None:
            reader()
            tally.counts["reads"] += 1

        return act

    return role


def writing(path: Path, story: Story) -> Role:
    """Return the role of a writer that brings the store from state to state, waiting for nobody."""

    def role(choose: random.Random, tally: Tally) -> Callable[[], None]:
        def act() -> None:
            try:
                state = step(path, story)
            except shardstore.LockedError as error:
                check_names_a_writer(error, tally)
                time.sleep(choose.random() / 50)
                return
            tally.counts["states that another writer has made"] += state is None

        return act

    return role


def contending(path: Path) -> Role:
    """Return the role of a writer that has nothing to write, but takes the lock, and removes what nobody needs."""

    def role(choose: random.Random, tally: Tally) -> Callable[[], None]:
        def act() -> None:
            try:
                if choose.random() < 0.2:
                    removed = shardstore.open(path).vacuum().removed
                    tally.counts["files and folders of killed writers removed"] += len(removed)
                else:
                    with shardstore.Writer(path, mode="append"):
                        time.sleep(choose.random() / 200)
                tally.counts["locks taken for nothing"] += 1
            except shardstore.LockedError as error:
                check_names_a_writer(error, tally)
            time.sleep(choose.random() / 10)

        return act

    return role


def check_names_a_writer(error: shardstore.LockedError, tally: Tally) -> None:
    """Raise `AssertionError` unless an error names a process that this one's parent has started, if it names one."""
    tally.counts["LockedErrors"] += 1
    found = re.search(r"being changed by process (\d+)\b", str(error))
    if found is None:  # it has let go of the lock before anybody could ask who it was
        assert "being changed by another writer, " in str(error), error
        return
    tally.counts["LockedErrors that name the process"] += 1
    try:
        status = Path(f"/proc/{found[1]}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return  # it was killed since
    assert f"\nPPid:\t{os.getppid()}\n" in status, (str(error), status)
    assert int(found[1]) != os.getpid(), error


def warm_up(path: Path, story: Story) -> None:
    """Do everything once in this process, so that its children need not import and compile what it takes."""
    choose, tally = random.Random(0), Tally("warm up")
    reader = Reader(path, story, choose, tally)
    for _ in range(300):
        reader()


@dataclass(frozen=True)
class Outcome:
    """What came of readers and writers.

    Attributes:
        tallies: what each process has done.
        states: what the store has held, in order.
        killed: how many writers were killed.
    """

    tallies: list[Tally]
    states: list[State]
    killed: int

    @property
    def errors(self) -> list[str]:
        """What went wrong."""
        return [f"{tally.role}: {tally.error}" for tally in self.tallies if tally.error]

    def of(self, role: str) -> list[Tally]:
        """Return what those of one role have done."""
        return [tally for tally in self.tallies if tally.role == role]

    def lines(self) -> list[str]:
        """Return it in words and numbers."""
        readers = self.of("reader")
        states = set[Any]().union(*(tally.states for tally in readers))
        each = [len(tally.states) for tally in readers]
        fewest = min(tally.counts["reads"] for tally in readers)
        counts = total(readers)
        changes = Counter(state.change for state in self.states)
        return [
            f"{at_once(readers)} readers at once (of {len(readers)}); {self.killed} writers killed",
            f"{len(self.states):,} states: {', '.join(f'{name} {count:,}' for name, count in changes.items())}; "
            f"the last one has {self.states[-1].rows:,} rows",
            f"{len(states):,} states were seen, {min(each)} to {max(each)} by each reader, in {fewest:,} reads or more",
            *(f"readers: {name}: {count:,}" for name, count in sorted(counts.items())),
            *(f"writers: {name}: {count:,}" for name, count in sorted(total(self.of("writer")).items())),
            f"errors: {len(self.errors)}",
        ]


def run(path: Path, readers: int, writers: int, seconds: float, changes: bool) -> Outcome:
    """Let readers and writers at a new store for some time.

    Args:
        path: where the store will be.
        readers: how many processes read.
        writers: how many append; with `changes` one of them does the writing, and the others take the lock.
        seconds: for how long.
        changes: whether there is more than appends; see the top of this module.
    """
    story = Story(changes)
    begin(path, story.state(0, 1))
    warm_up(path, story)
    killed = 0
    with Crowd(seconds) as crowd:
        for _ in range(readers):
            crowd.start("reader", reading(path, story), ["reads"])
        writer = crowd.start("writer", writing(path, story))
        for _ in range(writers - 1):
            crowd.start("writer", contending(path) if changes else writing(path, story))
        crowd.begin()
        choose = random.Random(1)
        while (left := crowd.end - time.monotonic()) > 0:
            time.sleep(min(left, choose.random() * 2))
            if left > 2:
                crowd.kill(writer)
                killed += 1
                writer = crowd.start("writer", writing(path, story))
        tallies = crowd.finish()
    with shardstore.open(path) as store:
        last = story.seen(store)
        for name in store.columns:
            check(name, store[name][:], np.arange(last.rows), last)
    return Outcome(tallies, [*story.until(last)], killed)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--changes", action="store_true")
    arguments = parser.parse_args()
    with scratch() as folder:
        outcome = run(folder / "s", arguments.readers, arguments.writers, arguments.seconds, arguments.changes)
    print("\n".join([*outcome.errors, *outcome.lines()]))
    return bool(outcome.errors)


if __name__ == "__main__":
    sys.exit(main())
