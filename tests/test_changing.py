"""Changes to a store against NumPy: added, dropped and renamed columns, interrupted at any moment, and who reads on."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from dumps import CODECS, LENGTHS, assert_holds, assert_refused, run_python, scratch, shard_files, tree, values
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstore
from shardstore.changes.commits import changing
from shardstore.changes.fingerprints import function_fingerprint
from shardstore.ragged import Ragged

Array = NDArray[Any]
ROWS = 41


def make(path: Path, rows: int = ROWS, codec: str = "raw") -> shardstore.Store:
    """Write a store with shards of 8 rows in chunks of 2: `x` of three floats, `y` the rows' numbers."""
    with shardstore.Writer(path, codec=codec, shard_bytes=8 * 24, chunk_bytes=2 * 24) as writer:
        writer.append({"x": values("float64", (rows, 3)), "y": np.arange(rows)})
    return shardstore.open(path)


@pytest.fixture
def store(tmp_path: Path) -> shardstore.Store:
    return make(tmp_path / "s")


def texts(rows: int) -> list[str]:
    return ["ä" * (7 * i % 11) + str(i) for i in range(rows)]


def double(batch: dict[str, Any]) -> Array:
    return np.asarray(batch["y"] * 2)


# Added columns


@settings(max_examples=20)
@given(
    rows=st.sampled_from(LENGTHS),
    dtype=st.sampled_from(["uint8", "float32", "complex128", "datetime64[D]", "S3", ">i4"]),
    shape=st.sampled_from([(), (3,), (2, 0), (1, 2)]),
    codec=st.sampled_from(CODECS),
    way=st.sampled_from(["array", "list", "blocks", "function", "column"]),
    batch=st.integers(1, 20),
)
def test_a_column_of_any_kind_is_added_in_any_way(
    rows: int, dtype: str, shape: tuple[int, ...], codec: str, way: str, batch: int
) -> None:
    with scratch() as folder:
        store, array = make(folder / "s", rows), values(dtype, (rows, *shape), 7)
        before, expected = shard_files(folder / "s"), {name: np.asarray(store[name]) for name in store.columns}
        options: dict[str, Any] = {"codec": codec, "shard_bytes": 64, "chunk_bytes": 16}
        if way == "function":
            fingerprint = "rows by number"
            store.add_column(
                "new", lambda rows: array[rows["y"]], columns="y", batch_size=batch, fingerprint=fingerprint, **options
            )
        elif way == "blocks":
            pieces = (array[start : start + batch] for start in range(0, max(1, rows), batch))
            store.add_column("new", pieces, **options)
        elif way == "column":
            with shardstore.Writer(folder / "other") as writer:
                writer.append({"c": array})
            store.add_column("new", shardstore.open(folder / "other")["c"], **options)
        elif way == "list" and rows:  # no rows have no shape
            store.add_column("new", list(array), type=np.dtype(dtype), **options)
        else:
            store.add_column("new", array, **options)
        assert store.generation == 2
        for opened in (store, shardstore.open(folder / "s")):
            assert_holds(opened, {**expected, "new": array})
        after = shard_files(folder / "s")
        assert {key: after[key] for key in before} == before
        assert all(key.startswith("new/") for key in after.keys() - before.keys())
        assert {path.name for path in (folder / "s" / "new").iterdir()} <= {"c", "zarr.json"}


@settings(max_examples=10)
@given(rows=st.sampled_from(LENGTHS), codec=st.sampled_from(CODECS), batch=st.integers(1, 20))
def test_strings_ragged_rows_and_categories_are_added(rows: int, codec: str, batch: int) -> None:
    with scratch() as folder:
        store = make(folder / "s", rows)
        options: dict[str, Any] = {"columns": ["y"], "batch_size": batch, "codec": codec, "shard_bytes": 64}
        words, kinds = texts(rows), ["cat", "dog", "axolotl"]

        def items(batch: dict[str, Any]) -> Ragged:
            return Ragged.from_rows([np.full(i % 5, i, np.int32) for i in batch["y"].tolist()], np.int32)

        store.add_column("t", lambda b: [words[i] for i in b["y"]], type="utf8", **options)
        store.add_column("r", items, type="ragged[int32]", **options)
        store.add_column("c", lambda b: [kinds[i // 7 % 3] for i in b["y"]], type="categorical", **options)
        store.add_column("listed", words, type="utf8")
        assert store["t"][:].to_list() == store["listed"][:].to_list() == words
        assert store["r"][:].to_list() == [[i] * (i % 5) for i in range(rows)]
        assert store["c"].decode(store["c"][:]).tolist() == [kinds[i // 7 % 3] for i in range(rows)]
        assert store.verify(progress=False).ok
        assert store.schema["t"].kind == store.schema["listed"].kind == "utf8"


def test_a_function_gets_rows_in_order_as_fresh_arrays(store: shardstore.Store) -> None:
    seen = []

    def spoil(batch: dict[str, Any]) -> Array:
        assert list(batch) == ["y", "x"]
        seen.append(batch["y"].copy())
        batch["x"][:] = 0
        return seen[-1]

    store.add_column("z", spoil, columns=["y", "x"], batch_size=10, fingerprint="1")
    assert [len(rows) for rows in seen] == [10, 10, 10, 10, 1]
    assert np.concatenate(seen).tolist() == list(range(ROWS))
    assert store.verify(progress=False).ok


@pytest.mark.parametrize(
    ("call", "error", "mentions"),
    [
        (lambda s: s.add_column("z", np.arange(40)), shardstore.SchemaError, ("'z'", "40", "41")),
        (lambda s: s.add_column("z", [1, 2]), shardstore.SchemaError, ("'z'", "2", "41")),
        (lambda s: s.add_column("z", iter([np.arange(40)])), shardstore.SchemaError, ("'z'", "40", "41")),
        (lambda s: s.add_column("z", iter([np.arange(40)] * 2)), shardstore.SchemaError, ("'z'", "more rows", "41")),
        (lambda s: s.add_column("z", iter([])), shardstore.SchemaError, ("'z'", "type=")),
        (lambda s: s.add_column("z", iter([np.zeros(20), np.zeros((21, 2))])), shardstore.SchemaError, ("'z'", "20")),
        (lambda s: s.add_column("z", lambda b: b["y"][1:], batch_size=9), shardstore.SchemaError, ("8", "9 rows")),
        (lambda s: s.add_column("z", lambda b: None), shardstore.SchemaError, ("NoneType", "rows 0 to 40")),
        (lambda s: s.add_column("z", lambda b: {"y": 1}), shardstore.SchemaError, ("dict",)),
        (lambda s: s.add_column("z", lambda b: b["q"], batch_size=9), shardstore.SourceError, ("rows 0 to 8", "'q'")),
        (lambda s: s.add_column("z", lambda b: b["y"], columns="q"), KeyError, ("'q'", "x, y")),
        (lambda s: s.add_column("x", np.arange(ROWS)), shardstore.SchemaError, ("'x'", "replace=True")),
        (lambda s: s.add_column("X", np.arange(ROWS)), shardstore.SchemaError, ("'X'", "case")),
        (lambda s: s.add_column("a/b", np.arange(ROWS)), shardstore.SchemaError, ("'a/b'",)),
        (lambda s: s.add_column("z", np.array(3)), shardstore.SchemaError, ("'z'", "single value")),
        (lambda s: s.add_column("z", "text"), TypeError, ("str",)),
        (lambda s: s.add_column("z", s), TypeError, ("Store",)),
        (lambda s: s.add_column("z", 3), TypeError, ("int",)),
        (lambda s: s.add_column("z", np.arange(ROWS), columns="y"), ValueError, ("columns",)),
        (lambda s: s.add_column("z", double, batch_size=0), ValueError, ("batch_size",)),
        (lambda s: s.add_column("z", double, fingerprint=""), ValueError, ("fingerprint",)),
        (lambda s: s.add_column("z", np.arange(ROWS), codec="zip"), shardstore.SchemaError, ("zip",)),
        (lambda s: s.add_column("z", [300] * ROWS, type="uint8"), shardstore.SchemaError, ("300", "uint8")),
        (lambda s: s.add_column("y", np.zeros(3), replace=True), shardstore.SchemaError, ("'y'", "3", "41")),
        (lambda s: s.add_column("y", lambda b: b["y"], columns="y", replace=True), KeyError, ("'y'",)),
        (lambda s: s.drop_column("q"), KeyError, ("'q'", "x, y")),
        (lambda s: s.rename_column("q", "r"), KeyError, ("'q'",)),
        (lambda s: s.rename_column("x", "y"), shardstore.SchemaError, ("'y'",)),
        (lambda s: s.rename_column("x", "X"), shardstore.SchemaError, ("'X'",)),
        (lambda s: s.rename_column("x", "rows"), shardstore.SchemaError, ("'rows'",)),
    ],
)
def test_mistakes_leave_nothing_behind(
    store: shardstore.Store, call: Callable[[Any], Any], error: type[Exception], mentions: tuple[str, ...]
) -> None:
    assert_refused(error, lambda: call(store), store.path, *mentions)
    assert store.generation == 1
    assert store.add_column("z", np.arange(ROWS))["z"][40] == 40


def test_a_generator_that_raises_leaves_nothing(store: shardstore.Store) -> None:
    def blocks() -> Iterator[Array]:
        yield np.arange(20)
        raise OSError("no more")

    assert_refused(
        shardstore.SourceError, lambda: store.add_column("z", blocks()), store.path, "rows from 20", "no more"
    )


def test_only_what_columns_leave_behind_is_removed(store: shardstore.Store) -> None:
    shutil.copytree(store.path / "x", store.path / "old")  # as an interrupted drop leaves it
    (store.path / "mine").mkdir()
    (store.path / "mine" / "notes.txt").write_text("keep me")
    store.add_column("old", np.arange(ROWS))
    assert store["old"][:].tolist() == list(range(ROWS))
    assert store.verify(progress=False).ok
    for call in (lambda: store.add_column("mine", np.arange(ROWS)), lambda: store.rename_column("x", "mine")):
        assert_refused(shardstore.DestinationError, call, store.path, store.path / "mine")


# What a column was made by


def test_a_column_is_computed_once(store: shardstore.Store) -> None:
    calls: list[int] = []
    offset = 5

    def plus(batch: dict[str, Any]) -> Array:
        count(len(batch["y"]))
        return np.asarray(batch["y"] + offset)

    count = abs  # replaced below by what has no fingerprint
    store.add_column("z", plus, columns="y")
    opened = shardstore.open(store.path)
    before = tree(store.path)
    opened.add_column("z", plus, columns="y")
    opened.add_column("z", plus, columns=["y"], replace=True, batch_size=3)
    assert tree(store.path) == before
    offset = 6
    assert_refused(shardstore.SchemaError, lambda: opened.add_column("z", plus, columns="y"), store.path, "stale", "z")
    assert_refused(
        shardstore.SchemaError, lambda: opened.add_column("z", plus, columns=["x", "y"]), store.path, "stale", "x, y"
    )
    count = calls.append  # type: ignore[assignment]
    opened.add_column("z", plus, columns="y", replace=True, fingerprint="plus 6")
    opened.add_column("z", plus, columns="y", fingerprint="plus 6")
    assert calls == [ROWS]
    assert opened["z"][:].tolist() == list(range(6, ROWS + 6))
    assert opened.generation == 5  # added, the old one dropped, renamed
    extra = json.loads((store.path / "zarr.json").read_bytes())["attributes"]["shardstore"]["columns"][2]["extra"]
    assert extra["since"] == 5
    assert set(extra) == {"since", "made_by"}
    assert extra["made_by"]["fingerprint"] == "plus 6"
    assert extra["made_by"]["columns"] == ["y"]


def test_all_columns_are_those_that_there_were(store: shardstore.Store) -> None:
    def first(batch: dict[str, Any]) -> Array:
        return np.asarray(batch["y"])

    store.add_column("a", first).add_column("b", first).add_column("c", np.zeros(ROWS))
    generation = store.generation
    assert store.add_column("a", first).add_column("b", first).generation == generation
    assert store.manifest.columns["b"].extra["made_by"]["columns"] == ["x", "y", "a"]


def test_columns_of_changed_sources_are_stale(store: shardstore.Store) -> None:
    for name, source in (("a", "y"), ("b", "x"), ("c", "a")):
        store.add_column(name, lambda b: next(iter(b.values())), columns=source)
    assert store.stale_columns() == ()
    store.add_column("y", np.arange(ROWS)[::-1], replace=True)
    assert store.stale_columns() == ("a",)

    def again() -> shardstore.Store:
        return store.add_column("a", lambda b: next(iter(b.values())), columns="y")

    assert_refused(shardstore.SchemaError, again, store.path, "'a'", "stale", "y")
    store.drop_column("a")
    assert store.stale_columns() == ("c",)
    again()
    assert store.stale_columns() == ("c",)  # the rows of "a" are others now
    store.drop_column("y")
    store.rename_column("x", "z")
    assert set(store.stale_columns()) == {"a", "b", "c"}
    store.rename_column("z", "x").add_column("y", np.arange(ROWS))
    assert set(store.stale_columns()) == {"a", "c"}
    store.add_column("y", np.arange(ROWS)[::-1], replace=True)  # what "a" was made from, byte for byte
    assert store.stale_columns() == ("c",)


def test_fingerprints_tell_functions_apart() -> None:
    def make_one(constant: Any) -> Callable[[Any], Any]:
        return lambda batch: batch["x"] * constant

    def helper(x: Any) -> Any:
        return x + 1

    def calls_helper(batch: Any, limit: int = 3) -> Any:
        return [helper(x) for x in batch["x"][:limit]]

    different = [
        *(make_one(c) for c in (1, 2, 1.0, True, "1", b"1", None, (1, 2), [1, 2], {"a": 1}, {1, 2}, range(3))),
        *(make_one(c) for c in (np.arange(3), np.arange(3.0), np.int64(1), np.dtype("i4"), Path("a"), len, np.exp)),
        lambda batch: batch["x"] + 1,
        lambda batch: batch["y"] + 1,
        lambda batch, k=1: batch["y"] + 1,
        lambda batch, *, k=1: batch["y"] + 1,
        calls_helper,
        functools.partial(calls_helper, limit=4),
        functools.partial(calls_helper, limit=5),
        double,
    ]
    prints = [function_fingerprint(function) for function in different]
    assert len(set(prints)) == len(prints)
    assert prints == [function_fingerprint(function) for function in different]
    assert function_fingerprint(make_one({3, 1, 2})) == function_fingerprint(make_one({2, 1, 3}))


def test_fingerprints_are_the_same_in_every_process(tmp_path: Path) -> None:
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from steps import step
from shardstore.changes.fingerprints import function_fingerprint
print(function_fingerprint(step))
"""
    code = "K = {KINDS}\ndef norm(x):\n    return x / {SCALE}\n\ndef step(batch):\n    return [norm(x) for x in K]\n"
    code += "\ndef again(n):\n    return step(n) if n else again(n - 1)\n"

    def printed(prefix: str, kinds: str, scale: int) -> str:
        (tmp_path / "steps.py").write_text(prefix + code.format(KINDS=kinds, SCALE=scale))
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        return run_python(script, tmp_path)

    first = printed("", "{'a', 'b', 'c'}", 3)
    assert printed("# moved\n\n", "{'a', 'b', 'c'}", 3) == first
    assert printed("", "{'a', 'b', 'd'}", 3) != first  # a value of the module
    assert printed("", "{'a', 'b', 'c'}", 4) != first  # a function of the module


class Model:
    def __call__(self, batch: dict[str, Any]) -> Array:
        return np.asarray(batch["y"])


def test_what_has_no_plain_value_needs_a_fingerprint(store: shardstore.Store) -> None:
    model, generator = Model(), np.random.default_rng(0)
    for function in (model, lambda b: model(b), model.__call__, lambda b: generator.random(len(b["y"]))):
        assert_refused(ValueError, lambda f=function: store.add_column("z", f), store.path, "fingerprint=")
    store.add_column("z", model, columns="y", fingerprint="model 1")
    assert store["z"][:].tolist() == list(range(ROWS))


# Interrupted computations


def interrupted(store: shardstore.Store, at: int, **options: Any) -> Callable[[Callable[[Any], Any]], list[int]]:
    """Return what adds a column by a function that fails at a row, then again; it returns the rows computed then."""

    def run(function: Callable[[Any], Any]) -> list[int]:
        computed: list[int] = []
        fails = True

        def counted(batch: dict[str, Any]) -> Any:
            if fails and batch["y"][-1] >= at:
                raise KeyboardInterrupt if at % 2 else RuntimeError("out of luck")
            computed.extend(batch["y"].tolist())
            return function(batch)

        def add() -> None:
            store.add_column("new", counted, columns="y", fingerprint="1", **options)

        with pytest.raises((KeyboardInterrupt, shardstore.SourceError)):
            add()
        assert shardstore.open(store.path).columns == store.columns == ("x", "y")
        fails = False
        computed.clear()
        add()
        return computed

    return run


@settings(max_examples=20)
@given(
    at=st.integers(0, ROWS - 1),
    batch=st.integers(1, 20),
    codec=st.sampled_from(CODECS),
    kind=st.sampled_from(["fixed", "ragged", "utf8", "categorical"]),
)
def test_an_interrupted_column_is_gone_on_with(at: int, batch: int, codec: str, kind: str) -> None:
    words = texts(ROWS)
    functions: dict[str, Callable[[Any], Any]] = {
        "fixed": lambda b: np.stack([b["y"], b["y"] + b["y"][0]], axis=1),  # of whole batches
        "ragged": lambda b: Ragged.from_rows([np.arange(i % 4 * 5) + i for i in b["y"].tolist()], np.int64),
        "utf8": lambda b: [words[i] for i in b["y"]],
        "categorical": lambda b: [f"kind {(i * 5) % 13 // 2}" for i in b["y"]],
    }
    options: dict[str, Any] = {"codec": codec, "batch_size": batch, "shard_bytes": 64, "chunk_bytes": 16}
    if kind != "fixed":
        options["type"] = kind
    with scratch() as folder:
        store, calm = make(folder / "s"), make(folder / "calm")
        computed = interrupted(store, at, **options)(functions[kind])
        calm.add_column("new", functions[kind], columns="y", fingerprint="1", **options)
        assert shard_files(folder / "s") == shard_files(folder / "calm")
        assert store.manifest.columns["new"].field == calm.manifest.columns["new"].field
        assert store.verify(progress=False).ok
        finished = at // batch * batch // 8 * 8  # whole shards of whole batches
        if kind in ("fixed", "categorical"):
            assert computed == list(range(finished // batch * batch, ROWS))
        else:
            assert computed == list(range(computed[0], ROWS))
            # A shard of rows may wait for that of its last items: 64 bytes, not more than of a few rows.
            assert computed[0] >= (finished - 16) // batch * batch


def test_what_is_not_the_same_starts_over(store: shardstore.Store) -> None:
    fails = True
    computed: list[int] = []

    def counted(batch: dict[str, Any]) -> Array:
        if fails and batch["y"][0] >= 32:
            raise RuntimeError("out of luck")
        computed.extend(batch["y"].tolist())
        return np.asarray(batch["y"])

    def add(**options: Any) -> None:
        store.add_column("z", counted, **{"columns": "y", "batch_size": 8, "fingerprint": "1", **options})

    def begin() -> None:
        nonlocal fails
        fails = True
        with pytest.raises(
            shardstore.SourceError, match=r"rows 32 to 39.*RuntimeError: out of luck; rows 0 to 31 were kept"
        ):
            add()
        fails = False
        computed.clear()

    folder = store.path / "z"
    last = folder / "c" / "3"

    def cut() -> None:
        last.write_bytes(last.read_bytes()[:-1])

    def flip() -> None:
        data = bytearray(last.read_bytes())
        data[-10] ^= 1  # of the footer, which is what is looked at
        last.write_bytes(data)

    def spoil() -> None:
        journal = folder / "journal.json"
        journal.write_text(journal.read_text().replace('"rows":32', '"rows":40'))

    changes: list[tuple[Callable[[], object], dict[str, Any], int]] = [
        (lambda: None, {}, 32),
        (lambda: None, {"batch_size": 3}, 30),
        (cut, {}, 24),
        (flip, {}, 24),
        (last.unlink, {}, 24),
        (spoil, {}, 0),
        ((folder / "journal.json").unlink, {}, 0),
        (lambda: store.add_column("y", np.arange(ROWS) + 0, replace=True, codec="zstd"), {}, 0),
        (lambda: None, {"fingerprint": "2"}, 0),
        (lambda: None, {"type": "int32"}, 0),
        (lambda: None, {"codec": "zstd"}, 0),
        (lambda: None, {"columns": ["y", "x"]}, 0),
    ]
    for change, options, first in changes:
        begin()
        change()
        add(**options)
        assert computed == list(range(first, ROWS))
        assert store["z"][:].tolist() == list(range(ROWS))
        assert store.verify(progress=False).ok
        assert not (folder / "journal.json").exists()
        store.drop_column("z")


def test_an_array_in_the_place_of_an_interrupted_function_starts_clean(store: shardstore.Store) -> None:
    with pytest.raises(shardstore.SourceError):
        store.add_column("z", lambda b: b["y"] if b["y"][0] < 20 else 1 / 0, columns="y", batch_size=8)
    assert (store.path / "z" / "journal.json").exists()
    assert shardstore.open(store.path).verify(progress=False).ok
    store.add_column("z", np.arange(ROWS) + 7)
    assert_holds(store.select("z").files and store, {n: np.asarray(store[n]) for n in store.columns})
    assert store["z"][:].tolist() == list(range(7, ROWS + 7))
    assert not (store.path / "z" / "journal.json").exists()


def test_nobody_goes_on_with_files_that_others_have_open(
    store: shardstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed commit may leave its journal in a column's folder, and a killed drop the folder."""
    calls: list[int] = []

    def counted(batch: dict[str, Any]) -> Array:
        calls.append(len(batch["y"]))
        if len(calls) == 5:
            raise RuntimeError("out of luck")
        return np.asarray(batch["y"])

    def add() -> None:
        store.add_column("z", counted, columns="y", batch_size=8, fingerprint="1")

    with pytest.raises(shardstore.SourceError):
        add()
    journal = store.path / "z" / "journal.json"
    left = journal.read_bytes()
    add()
    journal.write_bytes(left)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        store.drop_column("z")
    assert (store.path / "z" / "c" / "0").exists()
    calls.clear()
    calls.append(0)
    with pytest.raises(shardstore.SourceError):
        add()
    assert sum(calls[:-1]) == 24  # of rows from the first on


# Killed: also `test_crashes`

RESUMED = """
import os, signal, sys
import numpy as np
import shardstore

store = shardstore.open(sys.argv[1])
computed = []

def slow(batch):
    if len(sys.argv) > 2 and batch["y"][0] >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    computed.extend(batch["y"].tolist())
    return np.sqrt(batch["y"])

store.add_column("z", slow, columns="y", batch_size=4, fingerprint="sqrt")
print(computed[0])
"""


def test_a_computation_that_was_killed_goes_on_in_another_process(store: shardstore.Store) -> None:
    with pytest.raises(AssertionError):
        run_python(RESUMED, store.path, 20)
    assert shardstore.open(store.path).columns == ("x", "y")
    with pytest.raises(AssertionError):
        run_python(RESUMED, store.path, 36)
    assert run_python(RESUMED, store.path) == "32\n"
    assert shardstore.open(store.path)["z"][:].tolist() == np.sqrt(np.arange(ROWS)).tolist()


# One writer at a time

HOLDING = """
import sys
import shardstore

store = shardstore.open(sys.argv[1])

def wait(batch):
    print("computing", flush=True)
    sys.stdin.readline()
    return batch["y"]

store.add_column("slow", wait, columns="y", fingerprint="1")
"""


def test_only_one_writer_at_a_time(store: shardstore.Store) -> None:
    import subprocess
    import sys

    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, store.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "computing\n"
        for call in (
            lambda: store.add_column("z", np.arange(ROWS)),
            lambda: store.drop_column("x"),
            lambda: store.rename_column("x", "z"),
            lambda: shardstore.Writer(store.path, mode="overwrite").__enter__(),
        ):
            assert_refused(shardstore.LockedError, call, store.path, store.path, "wait")
        assert shardstore.open(store.path)["y"][:].tolist() == store["y"][:].tolist()
        assert store.verify(progress=False).ok
        other.communicate("\n")
    assert other.returncode == 0
    assert store.add_column("z", np.arange(ROWS)).columns == ("x", "y", "slow", "z")  # of the store as it is by now


def test_the_lock_is_the_systems(store: shardstore.Store) -> None:
    descriptor = os.open(store.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert_refused(shardstore.LockedError, lambda: store.drop_column("x"), store.path, store.path)
    os.close(descriptor)
    assert_refused(
        shardstore.SourceError,
        lambda: store.add_column("z", lambda b: store.drop_column("x"), fingerprint="1"),
        store.path,
        "LockedError",
    )
    store.drop_column("x")


def test_a_store_that_was_replaced_is_not_changed(store: shardstore.Store, tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", mode="overwrite") as writer:
        writer.append({"x": np.zeros(3)})
    before = tree(tmp_path)
    for call in (
        lambda: store.add_column("z", np.zeros(41)),
        lambda: store.drop_column("x"),
        lambda: store.rename_column("x", "z"),
    ):
        assert_refused(shardstore.FormatError, call, tmp_path, "replaced", "open it again")
    assert tree(tmp_path) == before
    shutil.rmtree(tmp_path / "s")
    assert_refused(shardstore.FormatError, lambda: store.drop_column("x"), tmp_path, "no such directory")


def test_a_closed_store_is_not_changed(store: shardstore.Store) -> None:
    store.close()
    assert_refused(ValueError, lambda: store.drop_column("x"), store.path, "closed")


# Columns that go, and other names


def test_columns_are_dropped_until_the_last(store: shardstore.Store) -> None:
    y = np.asarray(store["y"])
    assert store.drop_column("x") is store
    assert_holds(store, {"y": y})
    assert {path.name for path in store.path.iterdir()} == {"zarr.json", "y"}
    assert_refused(shardstore.SchemaError, lambda: store.drop_column("y"), store.path, "'y'", "only column")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_renamed_column_is_the_same_one(
    tmp_path: Path, codec: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path / "s", codec=codec)
    store.add_column("t", texts(ROWS), codec=codec, shard_bytes=64)
    x, y = np.asarray(store["x"]), np.asarray(store["y"])
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: os.open("/nonexistent", 0))  # as where there are none
    store.rename_column("x", "a b").rename_column("t", "text").rename_column("y", "y")
    assert store.columns == ("a b", "y", "text")
    assert store["text"][:].to_list() == texts(ROWS)
    assert {path.name for path in store.path.iterdir()} == {"zarr.json", "a b", "y", "text"}
    store.drop_column("text")
    assert_holds(store, {"a b": x, "y": y})
    monkeypatch.undo()
    store.rename_column("a b", "x")
    assert_holds(shardstore.open(store.path), {"x": x, "y": y})


def test_a_damaged_column_is_not_renamed(store: shardstore.Store) -> None:
    (store.path / "x/c/2/0").unlink()
    assert_refused(shardstore.CorruptionError, lambda: store.rename_column("x", "z"), store.path, "x/c/2/0")


@settings(max_examples=10)
@given(data=st.data())
def test_any_changes_are_those_of_a_dict_of_arrays(data: st.DataObject) -> None:
    """Changes by several open stores, one after the other; each sees all once it has changed something itself."""
    with scratch() as folder:
        stores = [make(folder / "s") for _ in range(1)]
        stores += [shardstore.open(folder / "s") for _ in range(2)]
        model = {name: np.asarray(stores[0][name]) for name in stores[0].columns}
        names = st.sampled_from(["x", "y", "z", "w"])
        for step in range(data.draw(st.integers(1, 8))):
            store, name = data.draw(st.sampled_from(stores)), data.draw(names)
            action = data.draw(st.sampled_from(["add", "drop", "rename"]))
            if action == "add" and set(model) != {name}:  # the only column is not dropped first
                array = values("int32", (ROWS, 2), step)
                store.add_column(name, array, replace=name in model, codec=data.draw(st.sampled_from(CODECS)))
                model.pop(name, None)
                model[name] = array
            elif action == "drop" and name in model and len(model) > 1:
                store.drop_column(name)
                del model[name]
            elif action == "rename" and name in model:
                new = data.draw(names)
                if new != name and new in model:
                    with pytest.raises(shardstore.SchemaError):
                        store.rename_column(name, new)
                    continue
                store.rename_column(name, new)
                model = {new if key == name else key: array for key, array in model.items()}
            else:
                continue
            assert_holds(store, model)
        assert_holds(shardstore.open(folder / "s"), model)
        group: Any = zarr.open_group(folder / "s", mode="r")
        assert set(group.array_keys()) == set(model)
        for name, array in model.items():
            assert np.array_equal(group[name][:], array, equal_nan=True)


# Who has the store open meanwhile


@pytest.mark.parametrize("codec", ["raw", "zstd", "blosc:lz4"])
@pytest.mark.parametrize("touched", ["nothing", "a row", "all"])
@pytest.mark.parametrize("change", ["replace", "rename onto", "drop"])
@pytest.mark.parametrize("shardwise", [False, True])
def test_readers_get_the_old_rows_or_an_error(
    tmp_path: Path, codec: str, touched: str, change: str, shardwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shardwise:
        monkeypatch.setattr("shardstore.mapping.max_map_count", lambda: 0)
    store, old = make(tmp_path / "s", codec=codec), np.arange(ROWS)
    # Of the same sizes, byte for byte: only the manifest tells them apart.
    other = old[::-1].copy() if codec == "raw" else old
    reader, view = shardstore.open(store.path), shardstore.open(store.path).select("y").rows(slice(None, None, 2))
    pickled = pickle.dumps(view)
    column = reader["y"]
    if touched == "a row":
        assert column[3] == 3
    if touched == "all":
        assert column[:].tolist() == old.tolist()
    if change == "replace":
        store.add_column("y", other, replace=True, codec=codec, chunk_bytes=48)
    elif change == "drop":
        store.drop_column("y")
    else:
        store.add_column("z", other, codec=codec, chunk_bytes=48).drop_column("y").rename_column("z", "y")
    if change != "drop":
        assert store.manifest.columns["y"].data.nbytes.tolist() == reader.manifest.columns["y"].data.nbytes.tolist()
    for rows in ([3], [3, 30], list(range(ROWS))):
        # What is mapped, open or decoded already is read on.
        if touched == "all" or (touched == "a row" and rows == [3]):
            assert column.take(rows).tolist() == rows
        else:
            with pytest.raises(shardstore.FormatError, match=r"'y' was dropped or replaced .*; open it again"):
                column.take(rows)
    assert reader["x"][5].tolist() == store["x"][5].tolist() or np.isnan(reader["x"][5]).any()
    with pytest.raises(shardstore.FormatError, match="'y' was dropped or replaced"):
        view["y"][:]
    with pytest.raises(shardstore.FormatError, match="'y' was dropped or replaced since this was pickled"):
        pickle.loads(pickled)["y"][:]
    assert shardstore.open(store.path)["x"].shape == (ROWS, 3)


def test_other_columns_do_not_matter_to_readers(store: shardstore.Store) -> None:
    reader = shardstore.open(store.path)
    pickled = pickle.dumps(reader)
    state_of = reader.batches(4, shuffle=True, seed=1)
    passed = [batch["y"].copy() for _, batch in zip(range(3), state_of, strict=False)]
    state = json.loads(json.dumps(state_of.state_dict()))
    store.add_column("z", np.arange(ROWS) * 2).rename_column("x", "w")
    rest = [batch["y"].copy() for batch in reader.select("y").batches(4, shuffle=True, seed=1)]
    copy = pickle.loads(pickled)
    assert copy.columns == ("y",)  # of those that it had
    assert np.concatenate(rest)[:12].tolist() == np.concatenate(passed).tolist()
    resumed = shardstore.open(store.path).select("y", "z").batches(4, shuffle=True, seed=1)
    resumed.load_state_dict(state)
    batches = list(resumed)
    assert np.concatenate([batch["y"] for batch in batches]).tolist() == np.concatenate(rest)[12:].tolist()
    assert all((batch["z"] == 2 * batch["y"]).all() for batch in batches)
    store.add_column("c", np.arange(ROWS), codec="zstd")
    other = store.batches(4, shuffle=True, seed=1)  # by windows now
    with pytest.raises(shardstore.StateError, match="shuffle"):
        other.load_state_dict(state)
    kept = shardstore.open(store.path).batches(4, shuffle="full", seed=1)
    kept.load_state_dict(state)


def test_views_of_the_store_that_changes_keep_what_they_have(store: shardstore.Store) -> None:
    view = store.select("y")
    assert view["y"][0] == 0
    store.drop_column("x").add_column("x", np.zeros(ROWS))
    assert view["y"][:].tolist() == list(range(ROWS))
    assert view.files is not store.files
    assert store.select("x")["x"][:].tolist() == [0] * ROWS


def test_verify_is_of_the_store_as_it_is_now(store: shardstore.Store) -> None:
    reader = shardstore.open(store.path)
    files = reader.verify(progress=False).files
    store.add_column("z", np.arange(ROWS))
    report = reader.verify(progress=False)
    assert report.ok
    assert report.files > files
    (store.path / "z" / "c" / "0").write_bytes(b"")
    (damage,) = reader.verify(progress=False).damages
    assert damage.file == "z/c/0"
    store.drop_column("z")
    assert reader.verify(progress=False).ok
    assert reader.verify(progress=False).files == files


def test_a_damaged_store_is_damaged_to_readers_too(store: shardstore.Store) -> None:
    reader = shardstore.open(store.path)
    store.add_column("z", np.arange(ROWS))
    (store.path / "y/c/1").unlink()
    with pytest.raises(shardstore.CorruptionError, match="missing"):
        reader["y"][:]


def test_what_others_need_for_their_own_changes(store: shardstore.Store) -> None:
    """Metadata alone can be committed; readers that have the store open read on."""
    import dataclasses

    reader = shardstore.open(store.path)
    with changing(store.path, store.manifest.store_id) as change:
        entries = change.manifest.columns
        noted = dataclasses.replace(entries["y"], extra={**entries["y"].extra, "note": [1, "a"]})
        change.commit({**entries, "y": noted})
    opened = shardstore.open(store.path)
    assert opened.generation == 2
    assert opened.manifest.columns["y"].extra == {"note": [1, "a"]}
    assert reader["y"][:].tolist() == opened["y"][:].tolist() == list(range(ROWS))
    opened.rename_column("y", "w")
    assert opened.manifest.columns["w"].extra == {"note": [1, "a"], "since": 3}


def test_a_replacement_that_fails_leaves_the_old_column(store: shardstore.Store) -> None:
    before = store["y"][:].tolist()

    def fails(batch: dict[str, Any]) -> Array:
        if batch["x"][0, 0] != store["x"][0, 0]:
            raise ValueError("no more")
        return np.zeros(len(batch["x"]))

    attempts: list[Any] = [fails, (np.zeros(3) for _ in range(2)), np.full(ROWS, 0.5)]
    for rows, kind in zip(attempts, (None, None, "int8"), strict=True):
        options: Any = {"columns": "x", "batch_size": 4, "fingerprint": "f"} if rows is fails else {"type": kind}
        with pytest.raises(shardstore.ShardStoreError):
            store.add_column("y", rows, replace=True, **options)
        assert shardstore.open(store.path).columns == ("x", "y")
        assert store["y"][:].tolist() == before
    store.add_column("y", store["y"], replace=True, codec="zstd")  # its own rows
    assert store["y"][:].tolist() == before
    assert store.verify(progress=False).ok


def test_the_only_column_can_be_replaced(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append({"a": np.arange(5)})
    store = shardstore.open(tmp_path / "s")
    store.add_column("a", np.arange(5) * 2, replace=True)
    assert store["a"][:].tolist() == [0, 2, 4, 6, 8]
    store.add_column("b", np.arange(5)).rename_column("b", "_replacing_a")
    with pytest.raises(shardstore.SchemaError, match="has the name of what replaces 'a'"):
        store.add_column("a", np.arange(5), replace=True)


FINGERPRINTED = """
import functools, sys
import numpy as np
from shardstore.changes.fingerprints import function_fingerprint

@functools.cache
def cached(n):
    return n + OFFSET

class Scale:
    factor = FACTOR

    @classmethod
    def made(cls, batch):
        return batch["y"] * METHOD

    @staticmethod
    def other(n):
        return n * STATIC

bound = Scale.made

def uses_cache(batch):
    return batch["y"] + cached(1)

def uses_class(batch):
    return batch["y"] * Scale.factor + Scale.other(2)

for function in (uses_cache, uses_class, bound):
    print(function_fingerprint(function))
"""


def test_what_a_function_uses_of_its_own_module_is_part_of_its_fingerprint() -> None:
    def prints(**changed: int) -> list[str]:
        script = FINGERPRINTED
        for name, value in {"OFFSET": 1, "FACTOR": 2, "METHOD": 3, "STATIC": 4, **changed}.items():
            script = script.replace(name, str(value))
        return run_python(script).split()

    base = prints()
    assert base == prints()
    for name, differs in (("OFFSET", 0), ("FACTOR", 1), ("STATIC", 1), ("METHOD", 2)):
        found = prints(**{name: 9})
        assert found[differs] != base[differs], name
