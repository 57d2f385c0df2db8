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
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.faults import FAULTS, FOREVER, attempt
from tools.operations import Operation, make_sources, operations
from tools.tracing import calls_seen_and_traced
from tools.workplaces import Workplace, WrongError, scratch

# What a store holds, the later an operation is interrupted.
_ORDER = ("old", "between", "new")


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
    place = Workplace(folder, operation)
    tally = Tally()
    calls = calls_of(place)
    for i, fault in enumerate(faults):
        last = "old"
        possible = [at for at, call in enumerate(calls) if fault != "torn" or call.startswith("write ")]
        count = min(most or len(possible), len(possible))
        # Each fault at others of the calls.
        for step in range(count):
            at = possible[(step * len(faults) + i) * len(possible) // (count * len(faults))]
            try:
                found = _try(place, fault, at, tally)
                if fault == "kill" and _ORDER.index(found) < _ORDER.index(last):
                    raise WrongError(f"{operation.name}: killed at call {at} it is {found}, and before was {last}")
                last = found
            except WrongError as error:
                if wrong is None:
                    raise
                wrong(error)
    place.close()
    return tally


def calls_of(place: Workplace) -> tuple[str, ...]:
    """Return the calls that an operation makes."""
    place.reset()
    outcome = attempt(place.operation.run, place.work)
    if outcome.kind != "finished":
        raise WrongError(f"{place.operation.name}: {outcome.error}")
    return outcome.calls


def _try(place: Workplace, fault: str, at: int, tally: Tally) -> str:
    """Let a fault happen at the `at`-th call, and check all that must hold; return what the store held then."""
    place.reset()
    outcome = attempt(place.operation.run, place.work, fault, at)
    where = f"{place.operation.name}, {fault} at call {at} ({outcome.hit})"
    if not outcome.hit:
        raise WrongError(f"{where}: there was no such call; they are not the same each time")
    if not outcome.is_clear:
        raise WrongError(f"{where}: {outcome.error}")
    found = place.found(where)
    if outcome.kind == "finished" and found != "new" and not place.operation.optional:
        raise WrongError(f"{where}: no error, but the store holds what it held before")
    if outcome.kind == "failed":
        expected = os.strerror(errno.ENOSPC if fault == "ENOSPC" else errno.EIO)
        if expected.lower().split(" on ")[0] not in outcome.error.lower():
            raise WrongError(f"{where}: the error does not say what happened: {outcome.error}")
        if fault != FOREVER and found == "old":
            place.check_cleared(where)
    tally.attempts += 1
    tally.seen[f"{outcome.kind}, {found}"] += 1
    if outcome.kind == "finished":
        tally.unnoticed[outcome.hit] += 1
    if outcome.kind == "failed" and found == "new":
        tally.late[outcome.hit] += 1
    place.go_on(found, where)
    return found


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
    logging.disable()  # what is said of each commit that the next writer finishes
    total = Tally()
    with scratch() as folder:
        make_sources(folder / "sources")
        for i, operation in enumerate(operations(folder / "sources")):
            if options.only not in (None, operation.name):
                continue
            (folder / str(i)).mkdir()
            note = (lambda error: print(error, flush=True)) if options.go_on else None
            tally = run(folder / str(i), operation, options.fault or FAULTS, options.most, note)
            print(f"{operation.name}: {tally.attempts} faults; {_listed(tally.seen)}", flush=True)
            for what, calls in (("left the new state", tally.late), ("made no difference", tally.unnoticed)):
                if calls:
                    print(f"  errors that {what}: {_listed(calls)}")
            total.attempts += tally.attempts
            total.seen += tally.seen
    print(f"all: {total.attempts} faults; {_listed(total.seen)}")


def prove() -> None:
    """Print which calls were seen and that strace sees the same, or raise `WrongError`."""
    with scratch() as folder:
        seen, traced = calls_seen_and_traced(folder)
    for name, counts in seen.items():
        print(f"{name}: {_listed(counts)}")
        if counts != traced[name]:
            raise WrongError(f"{name}: strace sees {_listed(traced[name])}")
    print(f"all: {sum(sum(counts.values()) for counts in seen.values())} calls, and strace sees the same")


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(counts.items()))


if __name__ == "__main__":
    main()
