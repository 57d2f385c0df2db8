"""`vacuum`: what interrupted work has left goes, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dumps import run_python, tree
from stores import write_store

import shardstore
from shardstore.changes.writelock import store_lock


def make(path: Path) -> Path:
    write_store(path, {"x": np.arange(100, dtype="i4").reshape(50, 2), "y": np.arange(50)})
    with shardstore.Writer(path, mode="append") as writer:
        writer.append({"x": np.zeros((3, 2), "i4"), "y": np.arange(3)})
    return path


def litter(store: Path) -> set[str]:
    """Leave behind what killed writers may leave; return the paths."""
    left = {
        "s/.zarr.json.partial-01234567": b"half",
        "s/y/.zarr.json.partial-01234567": b"half",
        "s/journal.json": b"{}",
        "s/x/journal.json": b"{}",
        "s/y/c/.3.partial": b"half",
        "s/y/c/.3.tail-9": b"a file of no commit",
        "s/y/c/7": b"a shard of no commit",
        "s/x/c/0/.0.partial": b"not in the last shard's folder, and only of a fresh ingest",
        "s/x/c/17/0": b"a shard of no commit",
        "s/gone/c/0": b"of a column that was dropped",
        "s/half/c/0": b"of a column that was being added",
        "s/half/journal.json": b"{}",
        "s.partial-0123abcd/x/c/0/0": b"of a build",
        "s.partial-0123abcd/journal.json": b"{}",
        "s.replaced-0123abcd/x/c/0/0": b"of a store that was replaced",
    }
    for name, data in left.items():
        path = store.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (store.parent / "s/x/c/0/.0.partial").unlink()
    folders = {"s/x/c/17", "s/gone", "s/half", "s.partial-0123abcd", "s.replaced-0123abcd"}
    return {name for name in left if not any(name.startswith(f"{folder}/") for folder in folders)} - {
        "s/x/c/0/.0.partial"
    } | folders


def others(folder: Path) -> None:
    """Put things beside the store that only look like what writers leave."""
    for name in ("s.partial-0123", "s.partial-0123ABCD", "t.partial-0123abcd", "s/notes"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("somebody's")
    (folder / "s/.hidden").mkdir()
    for name in ("s/more/values/mine.txt", "s/more/.git/config", "s/dots/.git/c/0", "s/other/c/name", "s/links/c/link"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("somebody's")
    (folder / "s/links/values").symlink_to(folder / "t.partial-0123abcd")


def test_what_nobody_needs_goes(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    others(tmp_path)
    before = tree(tmp_path)
    expected = litter(store)
    report = shardstore.open(store).vacuum()
    assert set(report.removed) == expected
    assert report.nbytes > len(expected)
    assert tree(tmp_path) == before
    assert shardstore.open(store).verify().ok
    assert shardstore.open(store).vacuum().removed == ()


def test_a_change_removes_what_cannot_be_gone_on_with(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    before = tree(store)
    litter(store)
    shardstore.open(store).stats  # noqa: B018, which are kept, so that the store is changed
    kept = tree(store)
    assert {name for name in kept if name not in before} == {"half", "half/c", "half/c/0", "half/journal.json"}
    with shardstore.Writer(store, mode="append") as writer:
        writer.append({"x": np.zeros((1, 2), "i4"), "y": np.arange(1)})
    assert not (store / "half").exists()


def test_builds_that_are_under_way_stay(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with shardstore.Writer(store, mode="overwrite") as writer:
        writer.append({"z": np.arange(4)})
        assert shardstore.open(store).vacuum().removed == ()
    assert shardstore.open(store).columns == ("z",)


def test_a_store_that_is_being_changed_is_left_alone(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    litter(store)
    before = tree(tmp_path)
    with store_lock(store), pytest.raises(shardstore.LockedError):
        shardstore.open(store).vacuum()
    assert tree(tmp_path) == before


def test_from_the_command_line(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    expected = litter(store)
    cli = "from shardstore.__main__ import main; main()"
    assert set(json.loads(run_python(cli, "vacuum", "--json", store))["removed"]) == expected
    assert run_python(cli, "vacuum", store) == "ok: 0 files and folders removed, 0 B\n"
