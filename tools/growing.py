"""A store that others read while it changes, and of which everybody knows what it holds in each generation.

What a row holds is a function of its number, and a `Story` says how many rows there are when. So whoever has opened a
generation, in whatever process, can tell whether it sees exactly the rows of that generation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import shardstore
from shardstore.manifest import Manifest

BASE = ("x", "wide", "z", "bags", "text")
SIZES: dict[str, Any] = {"shard_bytes": 1 << 14, "chunk_bytes": 1 << 11}
_CODECS = {"x": "raw", "wide": "raw", "z": "zstd", "bags": "raw", "text": "zstd"}
_STORE_BITS = 40
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class State:
    """What a store holds.

    Attributes:
        store: which store it is, of those that overwrite each other.
        generation: its generation.
        rows: how many rows.
        extra: the generation that added the column `extra`; 0 if there is none.
        change: what has made it of the state before: "overwrite", "append", "add", "drop" or "stats".
    """

    store: int
    generation: int
    rows: int
    extra: int = 0
    change: str = "overwrite"


class Story:
    """Which states a store goes through: always the same ones.

    Args:
        changes: whether columns come and go and the store is overwritten, and rows are not only appended.
        most_rows: with `changes`, the store is overwritten when it has as many.
        batch: how many rows are appended at the most.
    """

    def __init__(self, changes: bool = False, most_rows: int = 30_000, batch: int = 400) -> None:
        self.changes = changes
        self._most_rows = most_rows
        self._batch = batch
        self._states: dict[int, list[State]] = {}

    def state(self, store: int, generation: int) -> State:
        """Return what a store holds in a generation."""
        states = self._states.setdefault(store, [State(store, 1, 1 + random.Random(store).randrange(self._batch))])
        while len(states) < generation:
            following = self.after(states[-1])
            assert following.store == store, f"there is no generation {generation} of store {store}"
            states.append(following)
        return states[generation - 1]

    def after(self, state: State) -> State:
        """Return what comes after a state."""
        choose = random.Random(f"{state.store} {state.generation}")
        here = replace(state, generation=state.generation + 1)
        if self.changes:
            if state.rows >= self._most_rows:
                return self.state(state.store + 1, 1)
            dice = choose.random()
            if dice < 0.06:
                change, extra = ("drop", 0) if state.extra else ("add", here.generation)
                return replace(here, change=change, extra=extra)
            if dice < 0.08:
                return replace(here, change="stats")
        count = choose.choice([1, 3, 63, 64, 65, 1 + choose.randrange(self._batch)])
        return replace(here, change="append", rows=state.rows + count)

    def until(self, last: State) -> Iterator[State]:
        """Yield all states up to one."""
        for store in range(last.store + 1):
            state = self.state(store, 1)
            while True:
                yield state
                if state == last or (following := self.after(state)).store != store:
                    break
                state = following

    def seen(self, store: shardstore.Store) -> State:
        """Return what a store must hold that somebody has opened, and check that it has these rows and columns."""
        number = int(store["x"][0]) >> _STORE_BITS if self.changes else 0
        state = self.state(number, store.generation)
        assert len(store) == state.rows, f"{len(store):,} rows, expected {state}"
        extra = store.manifest.columns["extra"].since if "extra" in store.columns else 0
        assert store.columns == BASE + ("extra",) * bool(extra), store.columns
        # Of an earlier generation there are only those columns that are still there.
        assert extra in (0, state.extra), f"extra is of generation {extra}, expected {state}"
        return replace(state, extra=extra)


def values(name: str, numbers: Numbers, state: State) -> Any:
    """Return what a column holds in the rows of these numbers."""
    if name == "x":
        return numbers + (state.store << _STORE_BITS)
    if name == "wide":
        return ((numbers[:, None] * 5 + np.arange(5) + state.store) % (1 << 24)).astype(np.float32)
    if name == "z":
        return ((numbers * 2_654_435_761 + state.store) % (1 << 31)).astype(np.int32)
    if name == "bags":
        lengths = numbers % 6
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return shardstore.Ragged.from_lengths((np.repeat(numbers, lengths) + within).astype(np.uint32), lengths)
    if name == "text":
        return [f"{number}é" * (number % 4) for number in numbers.tolist()]
    assert name == "extra", name
    return numbers * state.extra


def rows(start: int, stop: int, state: State) -> dict[str, Any]:
    """Return consecutive rows of a state's columns."""
    names = BASE + ("extra",) * bool(state.extra)
    return {name: values(name, np.arange(start, stop), state) for name in names}


def check(name: str, found: Any, numbers: Numbers, state: State) -> None:
    """Raise `AssertionError` unless a column has in the rows of these numbers what it must have."""
    expected = values(name, numbers, state)
    if isinstance(expected, list):
        same = found.to_list() == expected
    elif isinstance(expected, shardstore.Ragged):
        same = all(np.array_equal(getattr(found, part), getattr(expected, part)) for part in ("offsets", "values"))
    else:
        same = np.array_equal(found, expected)
    assert same, f"column {name} of {state} is wrong in rows {numbers[:5].tolist()}… ({len(numbers)} rows)"


TYPES = {"text": "utf8", "bags": "ragged[uint32]"}


def begin(path: Path, state: State) -> None:
    """Write a new store, or one in the place of another."""
    mode: Any = "overwrite" if path.exists() else "create"
    with shardstore.Writer(path, mode=mode, codec=_CODECS, types=TYPES, **SIZES) as writer:
        writer.append(rows(0, state.rows, state))


def step(path: Path, story: Story) -> State | None:
    """Bring a store into its next state; return that, or None if somebody else has done so meanwhile.

    With a story that has changes, only one process may call this.
    """
    with shardstore.open(path) as store:
        state = story.seen(store)
        new = story.after(state)
        if new.change == "overwrite":
            begin(path, new)
        elif new.change == "add":
            store.add_column("extra", values("extra", np.arange(state.rows), new), codec="zstd")
        elif new.change == "drop":
            store.drop_column("extra")
        elif new.change == "stats":
            store.compute_stats()
        else:
            with shardstore.Writer(path, mode="append") as writer:
                if writer.num_rows != state.rows:
                    return None
                half = (state.rows + new.rows) // 2
                for start, stop in ((state.rows, half), (half, new.rows)):
                    writer.append(rows(start, stop, new))
    return new


def is_gone(path: Path, then: Manifest) -> bool:
    """Whether the store that had this manifest was overwritten, or has lost a column to another change."""
    now = shardstore.open(path).manifest
    return now.store_id != then.store_id or any(
        name not in now.columns or now.columns[name].since != entry.since for name, entry in then.columns.items()
    )


def needless_files(path: Path) -> list[str]:
    """Return the files of a store that its manifest does not name."""
    manifest = shardstore.open(path).manifest
    named = {"zarr.json", *(f"{name}/zarr.json" for name in manifest.documents())}
    named |= {key for entry in manifest.arrays for key in entry.keys}
    return sorted({str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()} - named)
