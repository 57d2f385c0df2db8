"""Two writers at a time: the second one is refused, and told which process the first one is.

    python tools/locking.py

For each way to hold the lock of a store: a child holds it, and has children of its own that live on. Meanwhile every
way to change the store is a `LockedError` that names the child, and the store is as it was. The child is killed: the
lock is free at once, the store as it was, and the next writer succeeds and leaves nothing of what the child had begun.
Prints what was tried, and exits with 1 if anything was not as it must be.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

import shardstore
from tools.workplaces import scratch

ROWS = 3000
_SIZES: dict[str, Any] = {"shard_bytes": 1 << 13, "chunk_bytes": 1 << 10}
Inside = Callable[[], None]


def write(path: Path) -> None:
    """Write a store of two columns."""
    with shardstore.Writer(path, codec={"x": "raw", "y": "zstd"}, **_SIZES) as writer:
        writer.append(_rows(0, ROWS))


def _rows(start: int, stop: int) -> dict[str, Any]:
    return {"x": np.arange(start, stop), "y": np.arange(start, stop) % 7}


def _blocks(inside: Inside) -> Iterator[dict[str, Any]]:
    """Yield rows from the end of the store on."""
    yield _rows(ROWS, ROWS + 2500)
    inside()
    yield _rows(ROWS + 2500, ROWS + 2600)


def _append(path: Path, inside: Inside) -> None:
    with shardstore.Writer(path, mode="append") as writer:
        for block in _blocks(inside):
            writer.append(block)


def _ingest(path: Path, inside: Inside) -> None:
    def one_by_one() -> Iterator[dict[str, Any]]:
        for block in _blocks(inside):
            for x, y in zip(block["x"], block["y"], strict=True):
                yield {"x": x, "y": y}

    shardstore.ingest(one_by_one(), path, mode="append", progress=False)


def _add_column(path: Path, inside: Inside) -> None:
    def twice(batch: dict[str, Any]) -> Any:
        if batch["x"][0] > ROWS // 2:
            inside()
        return batch["x"] * 2

    shardstore.open(path).add_column("twice", twice, batch_size=500, fingerprint="twice", progress=False)


HOLDERS: dict[str, Callable[[Path, Inside], None]] = {
    "append": _append,
    "ingest": _ingest,
    "add_column": _add_column,
}


def _nothing() -> None: ...


def _changes(path: Path) -> dict[str, Callable[[], object]]:
    """Return all that changes a store."""
    store = shardstore.open(path)
    return {
        "append": lambda: _append(path, _nothing),
        "ingest": lambda: _ingest(path, _nothing),
        "add_column": lambda: store.add_column("new", np.arange(ROWS)),
        "drop_column": lambda: store.drop_column("x"),
        "rename_column": lambda: store.rename_column("x", "z"),
        "overwrite": lambda: shardstore.Writer(path, mode="overwrite").__enter__(),
        "repair": lambda: shardstore.repair(path),
    }


@contextmanager
def held(hold: Callable[[Inside], object]) -> Iterator[tuple[int, list[int]]]:
    """Give a child of this process that is in the middle of something, and its children, which outlive it.

    In the end all of them are gone.
    """
    (told, tell), (ended, end) = os.pipe(), os.pipe()

    def inside() -> None:
        forked = os.fork()
        if not forked:
            os.close(end)
            os.read(ended, 1)  # until the end is closed
            os._exit(0)
        other = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=ended, close_fds=False)
        os.write(tell, f"{forked} {other.pid}\n".encode())
        signal.pause()

    child = os.fork()
    if not child:
        signal.alarm(300)
        try:
            os.close(end)
            hold(inside)
        finally:
            os._exit(1)
    os.close(tell)
    os.close(ended)
    try:
        with os.fdopen(told) as lines:
            line = lines.readline()
        assert line, "whoever was to hold the lock ended"
        yield child, [int(word) for word in line.split()]
    finally:
        os.close(end)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def check_holder(path: Path, name: str) -> int:
    """Check what others are told while a store is changed in one way; return how many were."""
    write(path)
    before = (path / "zarr.json").read_bytes()
    with held(lambda inside: HOLDERS[name](path, inside)) as (child, outliving):
        changes = _changes(path)
        for what, change in changes.items():
            _check_refused(change, child, f"{what} while a child is in {name}")
        assert (path / "zarr.json").read_bytes() == before
        assert shardstore.open(path).verify(progress=False).ok
        _kill(child)
        for pid in outliving:
            os.kill(pid, 0)  # lives
        HOLDERS[name](path, _nothing)  # nobody waits for anything
    store = shardstore.open(path)
    count = ROWS if name == "add_column" else ROWS + 2600
    assert store["x"][:].tolist() == list(range(count))
    assert store["y"][:].tolist() == [number % 7 for number in range(count)]
    assert "twice" not in store.columns or store["twice"][:].tolist() == list(range(0, 2 * count, 2))
    assert store.verify(progress=False, deep=True).ok
    assert sorted(os.listdir(path)) == sorted([*store.columns, "zarr.json"])
    assert not [file for file in path.rglob("*") if "tail" in file.name or "partial" in file.name]
    return len(changes)


def check_build(path: Path) -> None:
    """Check that two do not go on with the same new store, and that one can when the other was killed."""

    def build(inside: Inside) -> None:
        with shardstore.Writer(path, mode="resume", **_SIZES) as writer:
            writer.append(_rows(writer.num_rows, ROWS))
            inside()

    with held(build) as (child, _):
        _check_refused(lambda: build(_nothing), child, "resume while a child builds")
        _kill(child)
        build(_nothing)
    assert shardstore.open(path)["x"][:].tolist() == list(range(ROWS))
    assert os.listdir(path.parent) == [path.name]


def _check_refused(change: Callable[[], object], child: int, what: str) -> None:
    message = "nobody was refused"
    try:
        change()
    except shardstore.LockedError as error:
        message = str(error)
    found = re.search(r"being changed by process (\d+) \(.*\), and only one writer may at a time", message)
    assert found is not None, f"{what}: {message}"
    assert int(found[1]) == child, f"{what}: expected process {child}: {message}"


def main() -> int:
    """Try everything."""
    for name in HOLDERS:
        with scratch() as folder:
            print(f"{name}: {check_holder(folder / 's', name)} ways to change the store were refused", flush=True)
    with scratch() as folder:
        check_build(folder / "s")
    print("resume: refused while another one builds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
