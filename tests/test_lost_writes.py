"""Whatever a power cut leaves of what was not yet fsynced: `tools.lost_writes` with small samples."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import lost_writes, operations
from tools.disks import Choice, Disk
from tools.operations import named
from tools.watching import Watch
from tools.workplaces import WrongError, scratch


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dumps") / "sources"
    operations.make_sources(folder)
    return folder


@pytest.fixture
def folder() -> Iterator[Path]:
    with scratch() as path:
        yield path


@pytest.mark.parametrize("name", [operation.name for operation in operations.operations(Path())])
def test_a_power_cut_leaves_the_old_store_or_the_new_one(folder: Path, sources: Path, name: str) -> None:
    operation = named(name, sources)
    tally = lost_writes.run(folder, operation, most=2, again=0.1)
    assert set(tally.cuts) >= ({"new"} if operation.new == operation.old else {"old", "new"})


@pytest.mark.parametrize("without", lost_writes.WITHOUT)
@pytest.mark.parametrize("name", ["create from files", "add an array"])
def test_without_fsync_losses_are_found(folder: Path, sources: Path, name: str, without: str) -> None:
    with pytest.raises(WrongError):
        lost_writes.run(folder, named(name, sources), most=50, again=0, without=[without])


def kept_of(folder: Path, names: dict[str, bytes]) -> set[frozenset[tuple[str, bytes | None]]]:
    """Return all that a model may keep of files that are written beside `a`, then renamed to `a`."""
    (folder / "a").write_bytes(b"old")
    disk = Disk.of(folder)
    with Watch(folder, lambda call, act: (act(), disk.do(call))[0]):
        for name, data in names.items():
            with (folder / name).open("xb") as file:
                file.write(data)
        (folder / "b").rename(folder / "a")
    return {frozenset(disk.tree(choice)) for choice in disk.choices(1000, random.Random(0))}


def test_the_model_keeps_any_part_of_what_was_not_synced(tmp_path: Path) -> None:
    found = kept_of(tmp_path, {"b": b"new!"})
    contents = [b"new!", b"ne", bytes(4), b""]
    renamed = {frozenset({("a", content)}) for content in contents}
    beside = {frozenset({("a", b"old"), ("b", content)}) for content in contents}
    assert found == {frozenset({("a", b"old")}), *renamed, *beside}


def test_the_model_keeps_all_that_was_synced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    disk = Disk.of(tmp_path)
    with Watch(tmp_path, lambda call, act: (act(), disk.do(call))[0]):
        with (tmp_path / "b").open("xb") as file:
            file.write(b"new!")
            file.flush()
            os.fsync(file.fileno())
        (tmp_path / "b").rename(tmp_path / "a")
        descriptor = os.open(tmp_path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        (tmp_path / "later").mkdir()
    assert {disk.tree(choice) for choice in disk.choices(1000, random.Random(0))} == {
        (("a", b"new!"),),
        (("a", b"new!"), ("later", None)),
    }
    assert disk.tree(Choice(frozenset(), "none"), "a") == (("a", b"new!"),)
