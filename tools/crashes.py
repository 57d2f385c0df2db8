"""Kill whatever writes a store at every single call to the file system, or let that call fail, and look what is there.

    python -m tools.crashes                     every operation, every fault, at every call
    python -m tools.crashes --only "add an array" --fault EIO
    python -m tools.crashes --prove             compare the calls that are seen with those that strace sees

Each operation runs in a child process, which at its n-th call is killed, or killed after half of a write, or gets EIO
or ENOSPC once, or EIO from there on; for every n. Then the store has to be there with all its rows from before or all
from after, and verify. An operation that raises nothing has to have done its work; one that raises has to say why.
Done again without faults it has to succeed, and to leave the same files as if nothing had happened, in the store and
beside it.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

import shardstore
from tools.faults import FAULTS, FOREVER, Outcome, attempt
from tools.operations import Operation, make_base, make_sources, names_below, operations, state_at
from tools.tracing import calls_seen_and_traced

# What a store holds, the later an operation is interrupted.
_ORDER = ("old", "between", "new")


class WrongError(AssertionError):
    """Something that must never be."""


@dataclass
class Tally:
    """What was seen of an operation.

    Attributes:
        attempts: how often it was run with a fault.
        seen: how often, by how it ended and what the store held then: "killed, old", "failed, new", …
        late: at which kinds of calls an error left the new state.
        unnoticed: at which kinds of calls an error made no difference.
    """

    attempts: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    unnoticed: Counter[str] = field(default_factory=Counter)


class Bench:
    """A folder in which an operation is tried again and again, from the same start."""

    def __init__(self, folder: Path, operation: Operation) -> None:
        self._operation = operation
        self._template = folder / "template"
        self.work = folder / "work"
        self._template.mkdir()
        if operation.old is not None:
            make_base(self._template)
        self._before = _bytes_below(self._template)
        self._old_names = names_below(self._template)
        self.reset()
        operation.run(self.work)
        self._check_state(operation.new, "without a fault")
        self._new_names = names_below(self.work)

    def reset(self) -> None:
        """Go back to the start. The files are links: whatever is written in place is found by `close`."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self._template, self.work, copy_function=os.link)

    def close(self) -> None:
        """Check that no file was written in its place."""
        if _bytes_below(self._template) != self._before:
            raise WrongError(f"{self._operation.name}: wrote into a file of the store")

    def calls(self) -> tuple[str, ...]:
        """Return the calls that the operation makes."""
        self.reset()
        outcome = attempt(self._operation.run, self.work)
        if outcome.kind != "finished":
            raise WrongError(f"{self._operation.name}: {outcome.error}")
        return outcome.calls

    def try_at(self, fault: str, at: int, tally: Tally) -> str:
        """Let a fault happen at the `at`-th call, and check all that must hold; return what the store held then."""
        self.reset()
        operation = self._operation
        outcome = attempt(operation.run, self.work, fault, at)
        where = f"{operation.name}, {fault} at call {at} ({outcome.hit})"
        if not outcome.hit:
            raise WrongError(f"{where}: there was no such call; they are not the same each time")
        tally.attempts += 1
        found = self._check(fault, outcome, where)
        tally.seen[f"{outcome.kind}, {found}"] += 1
        if outcome.kind == "finished":
            tally.unnoticed[outcome.hit] += 1
        if outcome.kind == "failed" and found == "new":
            tally.late[outcome.hit] += 1
        self._go_on(found, where)
        return found

    def _check(self, fault: str, outcome: Outcome, where: str) -> str:
        """Check what a fault has left, and return what the store holds."""
        operation = self._operation
        if not outcome.is_clear:
            raise WrongError(f"{where}: {outcome.error}")
        try:
            state = state_at(self.work / operation.store)
        except Exception as error:
            raise WrongError(f"{where}: the store cannot be read: {error!r}") from error
        names = {operation.old: "old", operation.new: "new", **dict.fromkeys(operation.between, "between")}
        if state not in names:
            raise WrongError(f"{where}: the store holds neither what it held before nor what it is to hold: {state}")
        found = names[state]
        if outcome.kind == "finished" and found != "new" and not operation.optional:
            raise WrongError(f"{where}: no error, but the store holds what it held before")
        if outcome.kind == "failed":
            self._check_failure(fault, outcome, found, where)
        return found

    def _check_failure(self, fault: str, outcome: Outcome, found: str, where: str) -> None:
        """Check what a failure says, and that it has cleared up behind it."""
        expected = os.strerror(errno.ENOSPC if fault == "ENOSPC" else errno.EIO).split()[0]
        if expected.lower() not in outcome.error.lower():
            raise WrongError(f"{where}: the error does not say what happened: {outcome.error}")
        if fault != FOREVER and found == "old":
            kept = f"{self._operation.store}/{self._operation.keeps}"
            names = {name for name in names_below(self.work) if not (name + "/").startswith(kept + "/")}
            if names != self._old_names:
                raise WrongError(f"{where}: an error left files: {sorted(names ^ self._old_names)}")

    def _go_on(self, found: str, where: str) -> None:
        """Check that the next writer succeeds, and leaves nothing of what was there."""
        operation = self._operation
        try:
            with mock.patch.object(os, "fsync", new=_do_nothing):  # nothing is lost here that was not on disk
                if found != "new" or operation.again:
                    operation.run(self.work)
                else:
                    change_something(self.work / operation.store)
        except Exception as error:
            raise WrongError(f"{where}: the next writer fails: {error!r}") from error
        self._check_state(operation.new, f"{where}, and done again")
        names = {name for name in names_below(self.work) if not _is_dead_build(name)}
        if names != self._new_names:
            left, missing = sorted(names - self._new_names), sorted(self._new_names - names)
            raise WrongError(
                f"{where}, and done again: there are {left or 'none'} too many, {missing or 'none'} missing"
            )

    def _check_state(self, expected: object, where: str) -> None:
        try:
            state = state_at(self.work / self._operation.store)
        except Exception as error:
            raise WrongError(f"{where}: the store cannot be read: {error!r}") from error
        if state != expected:
            raise WrongError(f"{where}: the store holds {state}")


def change_something(path: Path) -> None:
    """Change a store, and put it back."""
    with shardstore.open(path) as store:
        store.add_column("later", np.zeros(len(store))).drop_column("later")


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a folder, in memory where there is one: disks are slow at making and removing many small files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def _do_nothing(descriptor: int) -> None: ...


def _is_dead_build(name: str) -> bool:
    return re.search(r"(^|/)s\.(partial|replaced)-", name) is not None


def _bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(
    folder: Path,
    operation: Operation,
    faults: Sequence[str] = FAULTS,
    most: int | None = None,
    wrong: Callable[[WrongError], None] | None = None,
) -> Tally:
    """Try an operation in an empty folder with faults at every call, or at so many of them for each fault.

    What is wrong is raised, or given to `wrong`.
    """
    bench = Bench(folder, operation)
    tally = Tally()
    calls = bench.calls()
    for i, fault in enumerate(faults):
        last = "old"
        possible = [at for at, call in enumerate(calls) if fault != "torn" or call.startswith("write ")]
        count = min(most or len(possible), len(possible))
        # Each fault at others of the calls.
        for step in range(count):
            at = possible[(step * len(faults) + i) * len(possible) // (count * len(faults))]
            try:
                found = bench.try_at(fault, at, tally)
                if fault == "kill" and _ORDER.index(found) < _ORDER.index(last):
                    raise WrongError(f"{operation.name}: killed at call {at} it is {found}, and before was {last}")
                last = found
            except WrongError as error:
                if wrong is None:
                    raise
                wrong(error)
    bench.close()
    return tally


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.crashes", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", help="one operation")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="one fault, or several")
    parser.add_argument("--most", type=int, help="at no more than so many calls for each fault")
    parser.add_argument("--go-on", action="store_true", help="say what is wrong, and go on")
    parser.add_argument("--prove", action="store_true", help="compare the calls that are seen with those of strace")
    options = parser.parse_args()
    if options.prove:
        prove()
        return
    total = Tally()
    with scratch() as place:
        make_sources(place / "sources")
        for i, operation in enumerate(operations(place / "sources")):
            if options.only not in (None, operation.name):
                continue
            folder = place / str(i)
            folder.mkdir()
            note = (lambda error: print(error, flush=True)) if options.go_on else None
            tally = run(folder, operation, options.fault or FAULTS, options.most, note)
            print(f"{operation.name}: {tally.attempts} faults; {_listed(tally.seen)}", flush=True)
            for what, calls in (("left the new state", tally.late), ("made no difference", tally.unnoticed)):
                if calls:
                    print(f"  errors that {what}: {_listed(calls)}")
            total.attempts += tally.attempts
            total.seen += tally.seen
    print(f"all: {total.attempts} faults; {_listed(total.seen)}")


def prove() -> None:
    """Print which calls were seen and that strace sees the same, or raise `WrongError`."""
    with scratch() as place:
        seen, traced = calls_seen_and_traced(place)
    for name, counts in seen.items():
        print(f"{name}: {_listed(counts)}")
        if counts != traced[name]:
            raise WrongError(f"{name}: strace sees {_listed(traced[name])}")
    print(f"all: {sum(sum(counts.values()) for counts in seen.values())} calls, and strace sees the same")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
