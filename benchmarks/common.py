"""What the benchmarks share: alternating runs, memory of child processes, dumps, tables and raw numbers.

Clocks are compared only within one run of a program: the ways under test take turns, round after round, a ratio is
taken within each round, and the median of the rounds is reported. A missed target is a word in the table, never an
error.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

MB = 1_000_000

# Programs and their settings


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every program has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--dir", type=Path, help="folder for the data, which are removed at the end (default: $TMPDIR)")
    result.add_argument("--json", type=Path, help="file for the raw numbers")
    result.add_argument(
        "--repeats", type=int, default=repeats, help="rounds of alternating runs (default: %(default)s)"
    )
    return result


@contextmanager
def workspace(parent: Path | None) -> Iterator[Path]:
    """Give a new directory in `parent` that is removed at the end."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="shardstore-benchmark-", dir=parent) as path:
        yield Path(path)


# Clocks

Way = Callable[[], float]


def timed(work: Callable[[], object]) -> Way:
    """Return a way that does `work` and returns the seconds it took."""

    def way() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return way


def alternate(ways: Mapping[str, Way], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Run the ways in turn, each round beginning with another one; return the seconds of every run by way."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    if warm_up:
        for name in names:
            ways[name]()
    for round_number in range(repeats):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            seconds[name].append(ways[name]())
    return seconds


def speed_ratios(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str) -> list[float]:
    """Return, for each round, how many times as fast `ours` was as `theirs`."""
    return [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]


# Child processes and their memory


@dataclass(frozen=True)
class Memory:
    """Bytes that a process and its children hold.

    Attributes:
        anonymous: their own memory (heap, stacks, and shared memory), which must stay in RAM.
        file_backed: mapped files, which the system may take back at any time.
    """

    anonymous: int
    file_backed: int


@dataclass(frozen=True)
class ChildRun:
    """What a function did in a fresh process.

    Attributes:
        result: what it returned.
        before: memory once the modules were imported.
        peak: the largest values seen while it ran.
    """

    result: Any
    before: Memory
    peak: Memory


def run_in_child(
    function: Callable[..., Any],
    *arguments: Any,
    imports: Sequence[str] = ("shardstore",),
    interval: float = 0.005,
    timeout: float | None = None,
    method: str = "spawn",
) -> ChildRun:
    """Call a module-level function in a fresh process that has imported `imports`, and watch its memory.

    Args:
        function: called with `arguments`; both and its result must pickle.
        arguments: the function's.
        imports: modules to import before the call, so that they count neither as time nor as memory of it.
        interval: seconds between two looks at the memory, at least.
        timeout: seconds, imports included, after which the process and all that it has started are killed. What it
            leaves running once it has a result is then killed, too.
        method: how the process starts, as `multiprocessing` calls it.

    Raises:
        RuntimeError: if the function raised, or its process died.
        TimeoutError: if it was killed.
    """
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    alone = timeout is not None
    process = context.Process(target=_serve, args=(theirs, function, arguments, imports, alone))
    process.start()
    theirs.close()
    try:
        return _watch(ours, process.pid or 0, interval, timeout)
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed in its process; its traceback is above") from None
    finally:
        ours.close()
        if alone:
            process.join(1)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
        process.join()


def _watch(ours: Connection, process: int, interval: float, timeout: float | None) -> ChildRun:
    deadline = time.monotonic() + (math.inf if timeout is None else timeout)
    if not ours.poll(timeout):
        raise TimeoutError(f"no start within {timeout:g} s")
    ours.recv()
    before = peak = memory_of(process)
    ours.send("go")
    pause = interval
    while not ours.poll(pause):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no result within {timeout:g} s")
        start = time.perf_counter()
        now = memory_of(process)
        # Looking at mapped files takes the processes' own time, too: a twentieth of it at most.
        pause = max(interval, 20 * (time.perf_counter() - start))
        peak = Memory(max(peak.anonymous, now.anonymous), max(peak.file_backed, now.file_backed))
    return ChildRun(ours.recv(), before, peak)


def _serve(
    connection: Connection,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    imports: Sequence[str],
    alone: bool,
) -> None:
    if alone:
        os.setsid()  # so that it can be killed with all that it starts
    # A spawned process would spawn its own ones, too; let them begin as they would in a program of their own.
    multiprocessing.set_start_method(None, force=True)
    for name in imports:
        importlib.import_module(name)
    connection.send("ready")
    connection.recv()
    connection.send(function(*arguments))


def memory_of(process: int) -> Memory:
    """Return the memory of a process; with children of its own, of all of them, shared pages counted once."""
    try:
        children = _children(process)
        if not children:
            status = _sizes(f"/proc/{process}/status")
            return Memory(status["RssAnon"] + status["RssShmem"], status["RssFile"])
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return Memory(0, 0)
    anonymous = file_backed = 0
    for member in (process, *children):
        try:
            sizes = _sizes(f"/proc/{member}/smaps_rollup")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        anonymous += sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)
        file_backed += sizes.get("Pss_File", 0)
    return Memory(anonymous, file_backed)


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def _sizes(path: str) -> dict[str, int]:
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


# Data


def uneven_counts(total: int, files: int) -> list[int]:
    """Cut `total` rows into files of very different lengths (the longest has about ten times the shortest)."""
    weights = np.geomspace(1, 10, files)[np.random.default_rng(0).permutation(files)]
    ends = np.round(np.cumsum(weights) / weights.sum() * total).astype(int)
    return [int(n) for n in np.diff(ends, prepend=0)]


def write_dumps(directory: Path, rows: int, width: int, files: int) -> list[Path]:
    """Write `.npy` dumps of float32 `(n, width)`: random numbers, and in the last column the row's number.

    Row numbers stay exact in float32 up to 2**24 rows.
    """
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths, first = [], 0
    for number, count in enumerate(uneven_counts(rows, files)):
        data = rng.random((count, width), np.float32)
        data[:, -1] = np.arange(first, first + count)
        paths.append(directory / f"part-{number}.npy")
        np.save(paths[-1], data)
        first += count
    return paths


def random_rows(rows: int, width: int) -> NDArray[np.float32]:
    """Return float32 `(rows, width)` of random numbers."""
    return np.random.default_rng(0).random((rows, width), np.float32)


# Results


@dataclass(frozen=True)
class Figure:
    """One measured quantity.

    Attributes:
        name: what was measured.
        samples: one value a round; the median is reported.
        unit: such as `"×"` or `"ms"`.
        target: the value to reach, if there is one.
        at_least: whether the target is a lower bound; else an upper one.
    """

    name: str
    samples: Sequence[float]
    unit: str
    target: float | None = None
    at_least: bool = True

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.samples)

    @property
    def verdict(self) -> str:
        """`"pass"`, `"short"`, or nothing without a target."""
        if self.target is None:
            return ""
        reached = self.median >= self.target if self.at_least else self.median <= self.target
        return "pass" if reached else "short"

    def cells(self) -> list[str]:
        """Return the figure's cells of the table."""
        bound = "≥" if self.at_least else "≤"
        target = "" if self.target is None else f"{bound} {self.target:,g} {self.unit}"
        spread = f"{_number(min(self.samples))} to {_number(max(self.samples))}" if len(self.samples) > 1 else ""
        median = f"{_number(self.median)} {self.unit}"
        return [self.name, median, spread, str(len(self.samples)), target, self.verdict]

    def document(self) -> dict[str, Any]:
        """Return the figure as JSON values."""
        return {
            "name": self.name,
            "median": self.median,
            "unit": self.unit,
            "target": self.target,
            "at_least": self.at_least,
            "verdict": self.verdict,
            "samples": list(self.samples),
        }


def report(title: str, figures: Sequence[Figure], json_path: Path | None, **raw: Any) -> None:
    """Print the figures as a table; save them, with any `raw` values, where a path is given."""
    headers = ["figure", "median", "range", "rounds", "target", ""]
    print_table(title, headers, [figure.cells() for figure in figures])
    save_json(json_path, title, figures=[figure.document() for figure in figures], **raw)


def print_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """Print a table; the first column is text, the others are numbers."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*row)
    console = Console()
    # A pipe has no width of its own, and 80 columns would break the lines.
    (console if console.is_terminal else Console(width=160)).print(table)


def save_json(path: Path | None, title: str, **values: Any) -> None:
    """Save raw numbers with a few words about the machine, where a path is given."""
    if path is None:
        return
    machine = {
        "processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"title": title, "machine": machine, **values}, indent=1) + "\n")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
