"""Feed hostile bytes to whatever reads bytes that others made, until the time is up.

    python -m tools.fuzz --list
    python -m tools.fuzz manifest --seconds 60
    python -m tools.fuzz all --seconds 600                      shared evenly by all targets
    python -m tools.fuzz npy --engine atheris --seconds 300     needs the extra `fuzz`

Only errors of this package may come out, within 2 GiB of memory and a minute an input. An input that breaks this is
kept in `tests/fuzz/TARGET/`, from where the tests feed it again. Each target runs in a process of its own, so one that
dies is seen, too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FunctionType
from typing import Any

from tools.hostile import TARGETS, Target, mutated

SEEDS = Path(__file__).parent.parent / "tests/fuzz"
MOST_MEMORY = 2 << 30
MOST_SECONDS = 60


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in memory where the system has one: each input is a file."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


def kept(name: str) -> list[bytes]:
    """Return the inputs that once failed, or are of use as beginnings."""
    return [path.read_bytes() for path in sorted((SEEDS / name).glob("*"))]


@contextmanager
def limited() -> Iterator[None]:
    """Let this process take no more memory than hostile inputs may, and end whatever takes too long."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, limits[1]))
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)


def _too_long(number: int, frame: Any) -> None:
    raise TimeoutError(f"not done after {MOST_SECONDS} s")


def watched(target: Target, folder: Path, data: bytes) -> None:
    """Feed one input; it is in the file `input` if the process dies of it."""
    (folder / "input").write_bytes(data)
    with limited():
        target.feed(folder / "work", data)


def search(target: Target, folder: Path, seconds: float, seed: int, report: Callable[[bytes], None]) -> int:
    """Feed made-up inputs until the time is up, and return how many; `report` gets those that fail, while handled."""
    (folder / "work").mkdir()
    good = [*target.prepare(folder / "work"), *kept(target.name)]
    random, end, count = Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutated(good, random) if count >= len(good) else good[count]
        count += 1
        try:
            watched(target, folder, data)
        except Exception:
            report(data)
    return count


def keep(target: Target, data: bytes) -> Path:
    """Keep an input that failed, for the tests."""
    path = SEEDS / target.name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _search_here(target: Target, folder: Path, seconds: float, seed: int) -> int:
    seen: set[str] = set()

    def report(data: bytes) -> None:
        error = sys.exc_info()[1]
        assert error is not None
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} {last.filename}:{last.lineno}"
        if place not in seen:
            seen.add(place)
            print(f"{target.name}: {error!r:.300}\n  input kept as {keep(target, data)}", flush=True)
            traceback.print_exc(limit=-6)

    count = search(target, folder, seconds, seed, report)
    print(f"{target.name}: {count:,} inputs, {len(seen)} failures", flush=True)
    return 1 if seen else 0


def _atheris_here(target: Target, folder: Path, seconds: float) -> int:
    import atheris

    (folder / "work").mkdir()
    good = [*target.prepare(folder / "work"), *kept(target.name)]
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, data in enumerate(good):
        (corpus / str(i)).write_bytes(data)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return mutated([data, *good], random)[:max_size]

    def feed(data: bytes) -> None:
        watched(target, folder, data)

    for function in _functions():
        atheris.instrument_func(function)
    arguments = [sys.argv[0], f"-max_total_time={int(seconds)}", "-rss_limit_mb=0", "-max_len=65536"]
    atheris.Setup([*arguments, f"-artifact_prefix={folder}/", str(corpus)], feed, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def _functions() -> list[FunctionType]:
    """Return the functions and methods of the package, as far as it is imported."""
    owners: list[Any] = [module for name, module in sys.modules.items() if name.split(".")[0] == "shardstore"]
    owners += [value for owner in owners for value in vars(owner).values() if isinstance(value, type)]
    values = {id(value): value for owner in owners for value in vars(owner).values()}.values()
    functions = [getattr(value, "__func__", value) for value in values]
    return [f for f in functions if isinstance(f, FunctionType) and f.__module__.startswith("shardstore")]


def _in_a_child(target: Target, arguments: argparse.Namespace, seconds: float) -> int:
    with scratch() as folder:
        command = [sys.executable, "-m", "tools.fuzz", target.name, "--seconds", str(seconds), "--here", folder]
        done = subprocess.run([*command, "--engine", arguments.engine, "--seed", str(arguments.seed)], check=False)
        if done.returncode and (arguments.engine == "atheris" or done.returncode < 0):
            path = keep(target, (Path(folder) / "input").read_bytes())
            print(f"{target.name}: ended with {done.returncode}; input kept as {path}", flush=True)
        return done.returncode


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="all", choices=["all", *TARGETS])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--engine", choices=["search", "atheris"], default="search")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(TARGETS))
        return 0
    if arguments.here is not None:
        target = TARGETS[arguments.target]
        if arguments.engine == "atheris":
            return _atheris_here(target, arguments.here, arguments.seconds)
        return _search_here(target, arguments.here, arguments.seconds, arguments.seed)
    targets = list(TARGETS.values()) if arguments.target == "all" else [TARGETS[arguments.target]]
    results = [_in_a_child(target, arguments, arguments.seconds / len(targets)) for target in targets]
    return 1 if any(results) else 0


if __name__ == "__main__":
    sys.exit(main())
