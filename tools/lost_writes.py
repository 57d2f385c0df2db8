"""Cut the power after every single call to the file system, and look what a disk may have kept.

    python -m tools.lost_writes                          every operation, after every call
    python -m tools.lost_writes --without files          as if files were never fsynced: losses have to be found
    python -m tools.lost_writes --without directories

What an operation calls is recorded, and done again on a model of a disk. What was written to a file since it was last
fsynced may be there, or not, or in part, or as zeros. What happened to the names in a directory since that was last
fsynced may have happened or not: either in order, as in a file system with a journal, or any of it without the rest.
Whatever is left of the folder is written out then, and the store has to be there with all its rows from before or all
from after, and verify; after the operation has returned only with all from after. Some of it is gone on from: the next
writer has to succeed, and to leave the same files as if nothing had happened.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.disks import Disk, Tree
from tools.operations import Operation, make_sources, operations
from tools.watching import Call, Watch
from tools.workplaces import Workplace, WrongError, scratch

WITHOUT = ("files", "directories")


@dataclass
class Tally:
    """What was seen of an operation.

    Attributes:
        calls: how many calls it makes.
        cuts: how many different states of the disk were looked at, by what the store held.
        again: after how many of them the operation was done again.
    """

    calls: int = 0
    cuts: Counter[str] = field(default_factory=Counter)
    again: int = 0


def recorded(place: Workplace) -> list[Call]:
    """Run an operation and return its calls."""
    calls: list[Call] = []

    def record(call: Call, act: Callable[..., Any]) -> Any:
        done = None if call.name == "fsync" else act()
        calls.append(call)
        return done

    place.reset()
    with Watch(place.work, record):
        place.operation.run(place.work)
    return calls


def run(
    folder: Path, operation: Operation, most: int = 200, again: float = 0.1, seed: int = 0, without: Sequence[str] = ()
) -> Tally:
    """Cut the power after every call of an operation, in an empty folder.

    Args:
        folder: where.
        operation: what is interrupted.
        most: so many states of the disk are looked at after each call: all, or a sample.
        again: after which part of them the operation is done again.
        seed: of the samples.
        without: fsyncs that are left out: of "files", "directories" or both.
    """
    place = Workplace(folder, operation)
    calls = recorded(place)
    place.reset()
    disk = Disk.of(place.work)
    tally, draws = Tally(calls=len(calls)), random.Random(seed)
    looked_at: set[tuple[bool, Tree]] = set()
    for number in range(len(calls) + 1):
        if number:
            call = calls[number - 1]
            if call.name != "fsync" or ("directories" if disk.is_directory(call) else "files") not in without:
                disk.do(call)
        is_done = number == len(calls)
        for choice in disk.choices(most, draws):
            tree = disk.tree(choice, operation.store)
            is_new = (is_done, tree) not in looked_at
            # What is beside the store differs all the same.
            goes_on = draws.random() < (again if is_new else again / 20)
            if not is_new and not goes_on:
                continue
            looked_at.add((is_done, tree))
            where = f"{operation.name}, power cut after {number} of {len(calls)} calls"
            _put(disk.tree(choice) if goes_on else tree, place)
            found = place.found(where)
            tally.cuts[found] += 1
            if is_done and found != "new":
                raise WrongError(f"{where}: the store holds what it held before, and the operation had returned")
            if goes_on:
                place.go_on(found, where)
                tally.again += 1
    return tally


def _put(tree: Tree, place: Workplace) -> None:
    """Make the working folder what a disk has kept."""
    place.clear()
    for path, data in tree:
        if data is None:
            (place.work / path).mkdir()
        else:
            (place.work / path).write_bytes(data)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.lost_writes", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", help="one operation")
    parser.add_argument("--most", type=int, default=200, help="states of the disk after each call (default 200)")
    parser.add_argument("--again", type=float, default=0.1, help="which part of them to go on from (default 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (default 0)")
    parser.add_argument("--without", choices=WITHOUT, action="append", default=[], help="fsyncs to leave out")
    options = parser.parse_args()
    calls, again, lost, cuts = 0, 0, 0, Counter[str]()
    with scratch() as folder:
        make_sources(folder / "sources")
        for i, operation in enumerate(operations(folder / "sources")):
            if options.only not in (None, operation.name):
                continue
            (folder / str(i)).mkdir()
            try:
                tally = run(folder / str(i), operation, options.most, options.again, options.seed, options.without)
            except WrongError as error:
                print(error, flush=True)
                lost += 1
                continue
            print(f"{operation.name}: {tally.calls} calls, {_listed(tally.cuts)}, again: {tally.again}", flush=True)
            calls, again, cuts = calls + tally.calls, again + tally.again, cuts + tally.cuts
    print(f"all: {calls} calls, {cuts.total()} states of the disk ({_listed(cuts)}), again: {again}; lost: {lost}")
    sys.exit(1 if lost else 0)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
