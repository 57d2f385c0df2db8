"""Whatever writes a store, killed or failing at its calls to the file system: `tools.crashes` at some of the calls."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import shardstore
from tools import crashes, full_disk, operations
from tools.faults import attempt
from tools.operations import Operation, named
from tools.tracing import calls_seen_and_traced
from tools.workplaces import Workplace, WrongError, scratch

# Sources that are the same for all tests; no test writes there.
NAMES = [operation.name for operation in operations.operations(Path())]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dumps") / "sources"
    operations.make_sources(folder)
    return folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch() as path:
        yield path


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_at_any_call_a_store_is_the_old_one_or_the_new_one(folder: Path, sources: Path, name: str) -> None:
    tally = crashes.run(folder, named(name, sources), most=4)
    assert tally.attempts > 9


def test_what_was_computed_before_a_kill_is_not_computed_again(folder: Path, sources: Path) -> None:
    operation = named("add a computed column", sources)
    place = Workplace(folder, operation)
    again = []
    for at in range(len(crashes.calls_of(place))):
        place.reset()
        assert attempt(operation.run, place.work, "kill", at).kind == "killed"
        operations.COMPUTED.clear()
        operation.run(place.work)
        again.append(sum(operations.COMPUTED))
    assert again == sorted(again, reverse=True)
    # Behind each of the shards of 8 rows, from the first row of a batch of 5; and nothing, once it is committed.
    assert set(again) == {21, 16, 6, 0}


def spoil(drop: Operation, folder: Path) -> None:
    drop.run(folder)
    with (folder / drop.store / "y/c/0").open("r+b") as file:
        file.write(b"1")


def leave_files(drop: Operation, folder: Path) -> None:
    path = folder / drop.store / "notes"
    path.touch()
    path.unlink()
    drop.run(folder)


def say_nothing(drop: Operation, folder: Path) -> None:
    with contextlib.suppress(shardstore.ShardStoreError):
        drop.run(folder)


@pytest.mark.parametrize(
    ("run", "says"), [(spoil, "cannot be read"), (leave_files, "left files"), (say_nothing, "no error")]
)
def test_what_is_wrong_is_found(folder: Path, sources: Path, run: Callable[[Operation, Path], None], says: str) -> None:
    drop = named("drop a column", sources)
    with pytest.raises(WrongError, match=says):
        crashes.run(folder, dataclasses.replace(drop, run=partial(run, drop)), ("EIO",))


@pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace here")
def test_every_call_that_changes_a_file_is_one_of_those(folder: Path) -> None:
    seen, traced = calls_seen_and_traced(folder)
    assert seen == traced
    assert sum(sum(counts.values()) for counts in seen.values()) > 1000


def test_a_disk_that_fills_up_leaves_the_old_store() -> None:
    if not full_disk.can_mount():
        pytest.skip("no file system can be mounted here")
    full = full_disk.run(["create from rows", "add an array"], step=6)
    assert all(counts["bytes"] and counts["files"] for counts in full.values())
