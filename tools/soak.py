"""Do everything to one store at once, for minutes, and account for every row and every resource.

    python tools/soak.py [--minutes 10]

One process appends, adds and drops a column, computes statistics and overwrites the store when it is large; it is
killed and started again all the time. Another one takes the lock and vacuums. Others read at random and earlier
generations, refresh, pickle and go on; stream epochs whose every stretch is resumed from a state by another number of
ranks; feed pools of DataLoader workers and a StoreLoader; verify. Each epoch has each row of its generation once, each
row holds what it must. Memory, descriptors, mappings and threads of all that live long are sampled: the last quarter of
the time may not have more than the second. In the end no process, no file of a killed writer is left. Prints what was
done, and exits with 1 if anything was not as it must be. Reads Linux' /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import shardstore
from tools.crowds import Crowd, Role, Tally, total
from tools.growing import Numbers, State, Story, begin, check, is_gone, needless_files, step
from tools.readers import contending, reading, warm_up, writing
from tools.workplaces import scratch

_SECONDS_BETWEEN_SAMPLES = 1.0
_SET_CHILD_SUBREAPER = 36  # of prctl


@dataclass(frozen=True)
class Usage:
    """What a process has of the system's.

    Attributes:
        memory: bytes of anonymous memory.
        descriptors: open files.
        maps: mappings.
        threads: threads.
    """

    memory: int
    descriptors: int
    maps: int
    threads: int

    @classmethod
    def of(cls, process: int) -> Usage:
        """Return that of a process now."""
        folder = Path(f"/proc/{process}")
        anonymous = (folder / "smaps_rollup").read_text().split("Anonymous:")[1]
        return cls(
            memory=int(anonymous.split()[0]) << 10,
            descriptors=len(os.listdir(folder / "fd")),
            maps=(folder / "maps").read_text().count("\n"),
            threads=len(os.listdir(folder / "task")),
        )


# What may come and go with the stores that are open, a dozen of a reader, and how many files these have at the time.
_SLACK = Usage(memory=24 << 20, descriptors=200, maps=300, threads=4)
_FACTOR = 1.25
_FEWEST = 8  # samples


class Watched:
    """A process that lives long, and what it had each time somebody looked."""

    def __init__(self, role: str, process: int) -> None:
        self.role = role
        self._process = process
        self._samples: list[Usage] = []

    def sample(self) -> None:
        """Look, if it is still there."""
        try:
            self._samples.append(Usage.of(self._process))
        except (FileNotFoundError, ProcessLookupError, IndexError):
            return  # it has ended, or is about to

    def _medians(self) -> list[tuple[str, float, float]]:
        """Return of each resource what it has in the second quarter of the time and in the last one."""
        quarter = len(self._samples) // 4
        early, late = self._samples[quarter : 2 * quarter], self._samples[3 * quarter :]
        return [
            (what, *(statistics.median(getattr(usage, what) for usage in part) for part in (early, late)))
            for what in asdict(_SLACK)
        ]

    def growth(self) -> list[str]:
        """Return what has become more."""
        if len(self._samples) < _FEWEST:
            return [f"{self.role}: ended after {len(self._samples)} samples"]
        return [
            f"{self.role}: {what} has grown from {early:,} to {late:,}"
            for what, early, late in self._medians()
            if late > early * _FACTOR + getattr(_SLACK, what)
        ]

    def line(self) -> str:
        """Return it in words."""
        if len(self._samples) < _FEWEST:
            return f"{self.role}: {len(self._samples)} samples"
        parts = [
            f"{what} {early / 1e6:.1f} → {late / 1e6:.1f} MB" if what == "memory" else f"{what} {early:g} → {late:g}"
            for what, early, late in self._medians()
        ]
        return f"{self.role}: {', '.join(parts)} ({len(self._samples)} samples)"


def every_row_once(came: list[Numbers], state: State) -> None:
    """Raise `AssertionError` unless an epoch has had each row of a state once."""
    numbers = np.sort(np.concatenate(came))
    assert np.array_equal(numbers, np.arange(state.rows)), f"{len(numbers)} rows came of {state}"


def _unless_gone(path: Path, story: Story, tally: Tally, act: Callable[[shardstore.Store, State], object]) -> None:
    """Open the store and do something with it, which may fail only if the store was overwritten meanwhile."""
    store = shardstore.open(path)
    try:
        act(store, story.seen(store))
    except shardstore.FormatError:
        if not is_gone(path, store.manifest):
            raise
        tally.counts["stores that were gone"] += 1


def resuming(path: Path, story: Story) -> Role:
    """Return the role of who streams epochs in stretches, each resumed from the state that the one before ended with.

    Each stretch has another number of ranks and another batch size.
    """

    def role(choose: random.Random, tally: Tally) -> Callable[[], None]:
        def epoch(store: shardstore.Store, state: State) -> None:
            columns = choose.choice([("x", "z"), ("x", "bags", "text"), ("wide",)])
            order: dict[str, Any] = {
                "shuffle": choose.choice([False, "full", "window"]),
                "seed": choose.randrange(1000),
            }
            came: list[Numbers] = []
            standing: str | None = None
            while sum(map(len, came)) < state.rows:
                ranks = choose.choice([1, 1, 2, 3])
                steps = choose.randint(1, 40)
                batch_size = choose.choice([32, 100, 256])
                states = set()
                for rank in range(ranks):
                    stream = store.batches(
                        batch_size,
                        columns=columns,
                        rank=rank,
                        world_size=ranks,
                        remainder="keep" if ranks == 1 else "pad",
                        with_rows=True,
                        prefetch=choose.choice([0, 2]),
                        window_bytes=1 << 14,
                        **order,
                    )
                    if standing is not None:
                        stream.load_state_dict(json.loads(standing))
                    for batch in islice(stream, steps):
                        numbers, own = batch.pop("rows"), batch.pop("mask", slice(None))
                        for name, found in batch.items():
                            check(name, found, numbers, state)
                        came.append(numbers[own])
                    states.add(json.dumps(stream.state_dict(), sort_keys=True))
                    stream.close()
                    tally.counts["stretches of streams"] += 1
                (standing,) = states  # the same on each rank
                if choose.random() < 0.3:  # in another process it would be opened again
                    store = shardstore.open(path, generation=state.generation)
            every_row_once(came, state)
            tally.counts["epochs resumed"] += 1
            tally.counts["rows of epochs"] += state.rows

        return lambda: _unless_gone(path, story, tally, epoch)

    return role


def loading(path: Path, story: Story) -> Role:
    """Return the role of who trains: with workers of a DataLoader, or with a StoreLoader that is resumed."""

    def role(choose: random.Random, tally: Tally) -> Callable[[], None]:
        import torch
        from torch.utils.data import DataLoader

        from shardstore.torch import StoreIterableDataset, StoreLoader

        torch.set_num_threads(1)

        def numbers_in(batch: dict[str, Any], state: State) -> Numbers:
            numbers: Numbers = batch.pop("rows").numpy()
            for name, found in batch.items():
                check(name, found.numpy(), numbers, state)
            return numbers

        def pool(store: shardstore.Store, state: State) -> None:
            columns = choose.choice([["x", "z"], ["x", "wide"]])
            dataset = StoreIterableDataset(store, 200, columns=columns, shuffle=True, with_rows=True)
            loader = DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=choose.random() < 0.5)
            most = choose.choice([3, 1 << 30, 1 << 30])
            for _ in range(choose.choice([1, 2])):
                came = [numbers_in(batch, state) for batch in islice(loader, most)]
                if most > state.rows:
                    every_row_once(came, state)
                    tally.counts["epochs of worker pools"] += 1
                    tally.counts["rows of epochs"] += state.rows
                else:
                    tally.counts["worker pools abandoned"] += 1

        def loader(store: shardstore.Store, state: State) -> None:
            options: dict[str, Any] = {"columns": ["x", "wide"], "shuffle": choose.choice(["full", "window"])}
            first = StoreLoader(store, 100, with_rows=True, **options)
            came = [numbers_in(batch, state) for batch in islice(first, choose.randint(1, 20))]
            if sum(map(len, came)) < state.rows:
                rest = StoreLoader(store, 64, with_rows=True, **options)
                rest.load_state_dict(first.state_dict())
                came += [numbers_in(batch, state) for batch in rest]
            every_row_once(came, state)
            tally.counts["epochs of a StoreLoader, resumed"] += 1
            tally.counts["rows of epochs"] += state.rows

        def act() -> None:
            _unless_gone(path, story, tally, choose.choice([pool, loader, loader]))
            gc.collect()  # a loader of torch that goes in another one's worker complains

        for _ in range(6):  # it imports what it takes, and gets what torch keeps
            act()
        return act

    return role


def verifying(path: Path, story: Story) -> Role:
    """Return the role of who verifies the store, which may be changed each time that a verification begins again."""

    def role(choose: random.Random, tally: Tally) -> Callable[[], None]:
        def verify(store: shardstore.Store, state: State) -> None:
            report = store.verify(progress=False, deep=choose.random() < 0.5)
            tally.counts["bytes verified"] += report.nbytes
            if report.ok:
                tally.counts["verifications"] += 1
                return
            tally.counts["verifications of a store that changed meanwhile"] += 1
            (damage,) = report.damages
            assert damage.file == "zarr.json", damage
            assert damage.reason.endswith(("; open it again", "; wait until nobody changes it")), damage
            now, then = shardstore.open(path).manifest, store.manifest
            assert (now.store_id, now.generation) != (then.store_id, then.generation), damage

        return lambda: _unless_gone(path, story, tally, verify)

    return role


def run(folder: Path, seconds: float, report: Callable[[str], object]) -> list[str]:
    """Do it all in an empty folder, and return what was not as it must be; `report` is told what was done."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whoever is left behind becomes a child of this process
    path, story = folder / "s", Story(changes=True, most_rows=3000)
    begin(path, story.state(0, 1))
    warm_up(path, story)
    # What each of them must have done, however slow the machine is.
    roles: list[tuple[str, Role, list[str]]] = [
        ("reader", reading(path, story), ["pickles", "earlier generations", "refreshes"]),
        ("reader", reading(path, story), ["epochs"]),
        ("resuming", resuming(path, story), ["epochs resumed"]),
        ("loading", loading(path, story), ["epochs of worker pools", "epochs of a StoreLoader, resumed"]),
        ("verifying", verifying(path, story), ["verifications"]),
        ("contending", contending(path), ["locks taken for nothing"]),
    ]
    killed = 0
    with Crowd(seconds) as crowd:
        watched = [Watched(name, crowd.start(name, role, must)) for name, role, must in roles]
        writer = crowd.start("writer", writing(path, story))
        crowd.begin()
        choose = random.Random(2)
        while (left := crowd.end - time.monotonic()) > 0:
            time.sleep(min(left, _SECONDS_BETWEEN_SAMPLES))
            for process in watched:
                process.sample()
            if left > 2 and choose.random() < 0.4:
                crowd.kill(writer)
                killed += 1
                writer = crowd.start("writer", writing(path, story))
        tallies = crowd.finish()
    wrong = [f"{tally.role}: {tally.error}" for tally in tallies if tally.error]
    wrong += [message for process in watched for message in process.growth()]
    with shardstore.open(path) as store:
        last = story.seen(store)
    wrong += _left(path, story)
    changes = [state.change for state in story.until(last)]
    report(f"{seconds:g} s; {killed} writers killed")
    report("made: " + ", ".join(f"{changes.count(change)} {change}" for change in dict.fromkeys(changes)))
    for name, count in sorted(total(tallies).items()):
        report(f"{name}: {count:,}")
    for process in watched:
        report(process.line())
    return wrong


def _left(path: Path, story: Story) -> list[str]:
    """Return what is wrong when nobody is at the store any more: rows, files and processes that are left."""
    wrong = []
    step(path, story)  # the next writer, who clears away what the last one may have left
    with shardstore.open(path) as store:
        state = story.seen(store)
        for name in store.columns:
            check(name, store[name][:], np.arange(state.rows), state)
        store.vacuum()  # also builds beside it, which only who overwrites the store would remove
        wrong += [str(damage) for damage in store.verify(progress=False, deep=True).damages]
    wrong += [f"a file is left: {name}" for name in needless_files(path)]
    wrong += [f"beside the store is left: {name}" for name in os.listdir(path.parent) if name != path.name]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return wrong + [f"a process is left: {Path(f'/proc/{child}/stat').read_text()}" for child in children]


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    with scratch() as folder:
        wrong = run(folder, 60 * arguments.minutes, lambda text: print(text, flush=True))
    print("\n".join(wrong) or "nothing is lost, and nothing is left")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
