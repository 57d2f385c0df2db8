"""What writes stores, each on a small store, and what the store holds before and after it, according to NumPy."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import shardstore
from shardstore.ragged import Ragged

Array = NDArray[Any]
# Where an operation has its store, in the folder that it is given.
STORE = "s"
ROWS = 21
# Shards of 8 rows in chunks of 2.
CUT: Mapping[str, Any] = {"shard_bytes": 8 * 24, "chunk_bytes": 2 * 24}

# What a store holds: by column, in order, what tells its rows from all others. None is no store.
State = tuple[tuple[Any, ...], ...] | None


@dataclass(frozen=True)
class Operation:
    """Something that writes a store.

    Attributes:
        name: what it is called.
        run: does it, in a folder.
        old: what the store holds before.
        new: what it holds after.
        between: what else it may hold if it is interrupted: an operation may have several commits.
        again: whether it can be done again once it is done; what it gives is the same.
        optional: whether it may leave the store as it was without an error: it gives its results all the same.
        keeps: how names of finished work begin that it may leave, for the next call to go on with.
        store: where the store is, in the folder.
        base: writes the store that it changes.
    """

    name: str
    run: Callable[[Path], object]
    old: State
    new: State
    between: tuple[State, ...] = ()
    again: bool = False
    optional: bool = False
    keeps: str | None = None
    store: str = STORE
    base: Callable[[Path], None] | None = None

    def prepare(self, folder: Path) -> None:
        """Write what there is before, into an empty folder."""
        if self.old is not None:
            (self.base or make_base)(folder)


def state_of(columns: Mapping[str, Any], statistics: Mapping[str, Any] | None = None) -> State:
    """Return the state of a store with these columns, and for some the least and the greatest number that it keeps."""
    described = [(name, *_described(rows)) for name, rows in columns.items()]
    described += [("statistics", name, *found) for name, found in (statistics or {}).items()]
    return tuple(described)


def state_at(path: Path) -> State:
    """Read all of the store at a path, of which each byte has to be as it was written."""
    if not os.path.lexists(path):
        return None
    with shardstore.open(path) as store:
        report = store.verify(progress=False)
        assert report.ok, f"verify: {[str(damage) for damage in report.damages]}"
        columns = {
            name: store[name][:].to_list() if store.schema[name].is_ragged else np.asarray(store[name])
            for name in store.columns
        }
        kept = {name: (kept.minimum, kept.maximum) for name, kept in store.kept_stats.items() if name == "y"}
        return state_of(columns, kept)


def names_below(folder: Path) -> set[str]:
    """Return the names of all that lies below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _described(rows: Any) -> tuple[Any, ...]:
    if isinstance(rows, np.ndarray):
        return str(rows.dtype), rows.shape, rows.tobytes()
    return ("ragged", *(row if isinstance(row, str) else tuple(row) for row in rows))


# The rows

X = np.random.default_rng(0).integers(0, 256, ROWS * 24, np.uint8).view("<f8").reshape(ROWS, 3)
Y = np.arange(ROWS)
T = ["ä" * (7 * i % 11) + str(i) for i in range(ROWS)]
R = [[i] * (i % 5) for i in range(ROWS)]
BASE = {"x": X, "y": Y, "t": T}
OTHER = {"x": X[::-1].copy(), "y": Y + 100, "t": T[::-1]}
MORE = {name: [*rows, *rows] if name == "t" else np.concatenate([rows, rows]) for name, rows in BASE.items()}
TRIPLE = Y * 3
WORDS = [str(i) * (i % 5) for i in range(ROWS)]


def make_base(folder: Path, codec: str = "raw") -> None:
    """Write the store that others change."""
    with shardstore.Writer(folder / STORE, codec=codec, **CUT) as writer:
        writer.append({"x": X, "y": Y, "t": T})


def make_compressed(folder: Path) -> None:
    """Write the same, compressed."""
    make_base(folder, "zstd")


def make_littered(folder: Path) -> None:
    """Write the same, with what killed writers may leave in it and beside it."""
    make_base(folder)
    store = folder / STORE
    shutil.copytree(store / "x", store / "dropped")
    shutil.copytree(store / "y", store / "unfinished")
    (store / "unfinished" / "journal.json").write_text("{}")
    shutil.copytree(store / "y", folder / f"{STORE}.partial-0123abcd" / "y")
    (store / ".zarr.json.partial-0123abcd").write_text("{")


def make_sources(folder: Path) -> None:
    """Write the dumps that are ingested."""
    folder.mkdir()
    for i, (start, stop) in enumerate(((0, 10), (10, 11), (11, ROWS))):
        np.save(folder / f"x-{i}.npy", X[start:stop])
        np.save(folder / f"y-{i}.npy", Y[start:stop])
        np.save(folder / f"t-{i}.npy", np.array(T[start:stop]))
        rows = R[start:stop]
        np.save(folder / f"values-{i}.npy", np.array([item for row in rows for item in row], np.int64))
        np.save(folder / f"lengths-{i}.npy", np.array([len(row) for row in rows]))


# The numbers of rows that were computed, call by call.
COMPUTED: list[int] = []


def _triple(batch: dict[str, Any]) -> Array:
    COMPUTED.append(len(batch["y"]))
    return np.asarray(batch["y"] * 3)


def _words(batch: dict[str, Any]) -> list[str]:
    return [str(i) * (i % 5) for i in batch["y"].tolist()]


def _blocks(rows: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, ROWS, size):
        yield {name: found[start : start + size] for name, found in rows.items()}


def _rows(rows: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for i in range(ROWS):
        yield {name: found[i] for name, found in rows.items()}


def _write(path: Path, rows: Mapping[str, Any], **options: Any) -> None:
    cut = {} if options.get("mode") == "append" else CUT
    with shardstore.Writer(path, **cut, **options) as writer:
        for block in _blocks(rows, 13):
            writer.append(block)


def _go_on_writing(path: Path, rows: Mapping[str, Any]) -> None:
    """Write what of some rows an interrupted call has not written yet."""
    with shardstore.Writer(path, mode="resume", **CUT) as writer:
        for start in range(writer.num_rows, ROWS, 5):
            writer.append({name: found[start : start + 5] for name, found in rows.items()})


def _without_exchange(run: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what does the same as on a system that cannot exchange two names."""

    def run_without(folder: Path) -> None:
        with mock.patch.object(sys, "platform", "elsewhere"):
            run(folder)

    return run_without


def _without_links(run: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what does the same as on a file system that has no hard links."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def run_without(folder: Path) -> None:
        with mock.patch.object(os, "link", refuse):
            run(folder)

    return run_without


def named(name: str, sources: Path) -> Operation:
    """Return the operation of a name."""
    (found,) = (operation for operation in operations(sources) if operation.name == name)
    return found


def operations(sources: Path) -> list[Operation]:
    """Return all operations; those that ingest files take these dumps."""

    def files(name: str) -> list[Path]:
        return [sources / f"{name}-{i}.npy" for i in range(3)]

    dumps = {
        "x": files("x"),
        "y": files("y"),
        "t": files("t"),
        "r": {"values": files("values"), "lengths": files("lengths")},
    }

    def changed(change: Callable[[shardstore.Store], object]) -> Callable[[Path], object]:
        return lambda folder: change(shardstore.open(folder / STORE))

    old = state_of(BASE)
    replaced = {**BASE, "_replacing_y": TRIPLE}
    base = {"x": X, "y": Y, "t": T}
    computed: Mapping[str, Any] = {"columns": "y", "batch_size": 5, "fingerprint": "1"}
    return [
        Operation(
            "create from files",
            lambda folder: shardstore.ingest(dumps, folder / STORE, workers=1, **CUT),
            None,
            state_of({**BASE, "r": R}),
        ),
        Operation(
            "create from rows",
            lambda folder: shardstore.ingest(
                _rows(base), folder / "new" / "folders" / STORE, workers=1, block_rows=9, on_error="skip", **CUT
            ),
            None,
            state_of(BASE),
            store=f"new/folders/{STORE}",
        ),
        Operation(
            "create by a Writer",
            lambda folder: _write(folder / STORE, {**base, "r": R}, codec="zstd", types={"r": "ragged[int64]"}),
            None,
            state_of({**BASE, "r": R}),
        ),
        Operation(
            "overwrite by a Writer",
            lambda folder: _write(folder / STORE, OTHER, mode="overwrite"),
            old,
            state_of(OTHER),
            again=True,
        ),
        Operation(
            "overwrite, without exchange of names",
            _without_exchange(lambda folder: _write(folder / STORE, OTHER, mode="overwrite")),
            old,
            state_of(OTHER),
            between=(None,),  # the old store is beside then
            again=True,
        ),
        Operation(
            "overwrite from files",
            lambda folder: shardstore.ingest(dumps, folder / STORE, workers=1, mode="overwrite", **CUT),
            old,
            state_of({**BASE, "r": R}),
            again=True,
        ),
        *(
            Operation(
                f"append by a Writer, {codec}",
                lambda folder: _write(folder / STORE, base, mode="append"),
                old,
                state_of(MORE),
                base=make,
            )
            for codec, make in (("raw", make_base), ("zstd", make_compressed))
        ),
        Operation(
            "append from files",
            lambda folder: shardstore.ingest(
                {name: dumps[name] for name in BASE}, folder / STORE, workers=1, mode="append"
            ),
            old,
            state_of(MORE),
        ),
        Operation(
            "create from files, or go on",
            lambda folder: shardstore.ingest(dumps, folder / STORE, workers=1, mode="resume", **CUT),
            None,
            state_of({**BASE, "r": R}),
            keeps=f"{STORE}.partial-",
        ),
        Operation(
            "create by a Writer, or go on",
            lambda folder: _go_on_writing(folder / STORE, base),
            None,
            state_of(BASE),
            keeps=f"{STORE}.partial-",
        ),
        Operation(
            "add a computed column",
            changed(lambda store: store.add_column("new", _triple, **computed)),
            old,
            state_of({**BASE, "new": TRIPLE}),
            again=True,
            keeps=f"{STORE}/new",
        ),
        Operation(
            "add a computed ragged column",
            changed(lambda store: store.add_column("new", _words, type="utf8", shard_bytes=128, **computed)),
            old,
            state_of({**BASE, "new": WORDS}),
            again=True,
            keeps=f"{STORE}/new",
        ),
        Operation(
            "add an array",
            changed(lambda store: store.add_column("new", TRIPLE, codec="zstd")),
            old,
            state_of({**BASE, "new": TRIPLE}),
        ),
        Operation(
            "add ragged rows",
            changed(lambda store: store.add_column("new", Ragged.from_rows([np.array(r, "i8") for r in R], np.int64))),
            old,
            state_of({**BASE, "new": R}),
        ),
        Operation(
            "drop a column",
            changed(lambda store: store.drop_column("x")),
            old,
            state_of({"y": Y, "t": T}),
        ),
        Operation(
            "rename a column",
            changed(lambda store: store.rename_column("t", "new")),
            old,
            state_of({"x": X, "y": Y, "new": T}),
        ),
        Operation(
            "rename a column, without links",
            _without_links(changed(lambda store: store.rename_column("x", "new"))),
            old,
            state_of({"new": X, "y": Y, "t": T}),
        ),
        Operation(
            "replace a column",
            changed(lambda store: store.add_column("y", TRIPLE, replace=True)),
            old,
            state_of({"x": X, "t": T, "y": TRIPLE}),
            between=(state_of(replaced), state_of({name: replaced[name] for name in ("x", "t", "_replacing_y")})),
            again=True,
        ),
        Operation("vacuum", changed(lambda store: store.vacuum()), old, old, again=True, base=make_littered),
        Operation(
            "compute statistics",
            changed(lambda store: store.compute_stats()),
            old,
            state_of(BASE, {"y": (0, ROWS - 1)}),
            again=True,
            optional=True,
        ),
    ]
