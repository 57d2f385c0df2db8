"""Any changes to a store in any order, any of them killed or failing anywhere, against a dict of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import shardstore
from tools.faults import FAULTS, attempt
from tools.operations import CUT, state_at, state_of
from tools.workplaces import scratch

Columns = dict[str, Any]
names = st.sampled_from(["a", "b", "c"])
row_counts = st.sampled_from([0, 1, 7, 8, 9, 21])
codecs = st.sampled_from(["raw", "zstd"])
# At which call what happens; beyond the last call of a change, nothing does.
faults = st.tuples(st.sampled_from(FAULTS), st.one_of(st.integers(0, 12), st.integers(0, 60)))


def column(rows: int, kind: str, seed: int) -> Any:
    """Return rows of a kind: an array, or a list of texts."""
    draws = np.random.default_rng(seed)
    if kind == "texts":
        return ["é" * int(n) + str(seed) for n in draws.integers(0, 9, rows)]
    return draws.integers(0, 9, (rows, 3) if kind == "wide" else rows)


def kind_of(rows: Any) -> str:
    """Return the kind of a column's rows."""
    return "texts" if isinstance(rows, list) else "wide" if rows.ndim == 2 else "numbers"


def joined(first: Any, second: Any) -> Any:
    """Return the rows of both."""
    return first + second if isinstance(first, list) else np.concatenate([first, second])


kinds = st.sampled_from(["numbers", "wide", "texts"])


class CrashingStore(RuleBasedStateMachine):
    """A store, and what it must hold. What is interrupted has happened or not; everything else has happened."""

    @initialize(rows=row_counts, kind=kinds)
    def begin(self, rows: int, kind: str) -> None:
        self.scratch = scratch()
        self.path = self.scratch.__enter__() / "s"
        self.columns: Columns = {}
        self.rows = rows
        self.seed = 0
        self.create(rows, kind, "raw", ("kill", 0))
        self.create(rows, kind, "raw", None)

    def teardown(self) -> None:
        if hasattr(self, "scratch"):
            self.scratch.__exit__(None, None, None)

    def change(
        self, run: Callable[[Path], object], new: Columns, fault: tuple[str, int] | None, *between: Columns
    ) -> None:
        """Make a change in a child, with a fault or without, and see what has become of it."""
        outcome = attempt(lambda folder: run(folder / "s"), self.path.parent, *(fault or ("", -1)))
        assert outcome.is_clear, outcome.error
        found = state_at(self.path)
        candidates = [new] if outcome.kind == "finished" else [self.columns, new]
        matching = [columns for columns in candidates if found == (state_of(columns) if columns else None)]
        assert matching, (outcome, found)
        self.columns = matching[0]

    def fresh(self, kind: str, rows: int | None = None) -> Any:
        """Return a column that there was not yet."""
        self.seed += 1
        return column(self.rows if rows is None else rows, kind, self.seed)

    @rule(rows=row_counts, kind=kinds, codec=codecs, fault=st.none() | faults)
    def create(self, rows: int, kind: str, codec: str, fault: tuple[str, int] | None) -> None:
        first, second = self.fresh("numbers", rows), self.fresh(kind, rows)
        types: Any = {"b": "utf8"} if kind == "texts" else None

        def write(path: Path) -> None:
            mode: Any = "overwrite" if path.exists() else "create"
            with shardstore.Writer(path, codec=codec, mode=mode, types=types, **CUT) as writer:
                for start in range(0, max(1, rows), 5):
                    writer.append({"a": first[start : start + 5], "b": second[start : start + 5]})

        self.change(write, {"a": first, "b": second}, fault)
        if not fault:
            assert [path.name for path in self.path.parent.iterdir()] == ["s"]
        self.rows = len(next(iter(self.columns.values()), ()))

    @rule(more=row_counts, fault=faults)
    def append(self, more: int, fault: tuple[str, int]) -> None:
        added = {name: self.fresh(kind_of(rows), more) for name, rows in self.columns.items()}
        new = {name: joined(rows, added[name]) for name, rows in self.columns.items()}

        def write(path: Path) -> None:
            with shardstore.Writer(path, mode="append") as writer:
                for start in range(0, more, 5):
                    writer.append({name: rows[start : start + 5] for name, rows in added.items()})

        self.change(write, new, fault)
        self.rows = len(next(iter(self.columns.values())))

    @rule(name=names, kind=kinds, codec=codecs, computed=st.booleans(), fault=faults)
    def add(self, name: str, kind: str, codec: str, computed: bool, fault: tuple[str, int]) -> None:
        if name in self.columns:
            return
        rows = self.fresh(kind)
        position = iter(range(0, max(1, self.rows), 5))

        def compute(batch: Any) -> Any:
            start = next(position)
            return rows[start : start + 5]

        options: dict[str, Any] = {"codec": codec, "type": "utf8" if kind == "texts" else None}
        if computed:
            options |= {"batch_size": 5, "fingerprint": str(self.seed)}
        values = compute if computed else rows
        self.change(
            lambda path: shardstore.open(path).add_column(name, values, **options), {**self.columns, name: rows}, fault
        )

    @rule(name=names, fault=faults)
    def drop(self, name: str, fault: tuple[str, int]) -> None:
        if name in self.columns and len(self.columns) > 1:
            new = {other: rows for other, rows in self.columns.items() if other != name}
            self.change(lambda path: shardstore.open(path).drop_column(name), new, fault)

    @rule(old=names, new=names, fault=faults)
    def rename(self, old: str, new: str, fault: tuple[str, int]) -> None:
        if old in self.columns and new not in self.columns:
            renamed = {new if name == old else name: rows for name, rows in self.columns.items()}
            self.change(lambda path: shardstore.open(path).rename_column(old, new), renamed, fault)

    @rule()
    def tidy(self) -> None:
        """Whoever changes the store next leaves nothing but the store, and what can be gone on with."""
        with shardstore.open(self.path) as store:
            store.add_column("z", np.zeros(self.rows)).drop_column("z")
        left = {path.name for path in self.path.iterdir() if not (path / "journal.json").exists()}
        assert left == {"zarr.json", *self.columns}

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "columns"):
            assert state_at(self.path) == state_of(self.columns)


TestCrashingStore = CrashingStore.TestCase
TestCrashingStore.settings = settings(max_examples=settings().max_examples // 3, stateful_step_count=12)
