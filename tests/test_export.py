"""Exports: what NumPy reads from them, and that an ingest makes the same store of them, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import CHUNK_ROWS, SHARD_ROWS, STORABLE, assert_refused, codecs, scratch, shard_files, values
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import Categorical, SchemaError, SourceError, ingest
from shardstore.export import export_npy
from shardstore.ragged import Blobs, Ragged, Strings
from shardstore.schema import EXTENDED_DTYPES, dtype_named

OPTIONS: Any = {"shard_bytes": 128, "chunk_bytes": 32}
KINDS = ("fixed", "ragged", "utf8", "binary", "categorical", "open categorical")
ROWS = (0, 1, CHUNK_ROWS, SHARD_ROWS, SHARD_ROWS + 1, 21)
NAMES = ["dog", "cat\0", "", "\u2028", "Ünicorn 𝄞"]


def some_rows(kind: str, dtype: str, shape: tuple[int, ...], rows: int) -> tuple[Any, Any]:
    """Return rows of a column of some kind, and the type to declare."""
    spec = dtype_named(dtype)
    if kind == "fixed":
        return values(f"V{spec.itemsize}", (rows, *shape)).view(spec), spec
    lengths = np.random.default_rng(rows).choice([0, 1, 2, 3, 17], rows)
    if kind == "ragged":
        items = values(f"V{spec.itemsize}", (int(lengths.sum()), *shape)).view(spec)
        return Ragged.from_lengths(items, lengths), f"ragged[{str(spec).lstrip('|')}{''.join(f', {n}' for n in shape)}]"
    if kind == "utf8":
        return ["aé𝄞\0"[: n % 5] * n for n in lengths], "utf8"
    if kind == "binary":
        return [values("u1", (n,)).tobytes() for n in lengths], "binary"
    if kind == "categorical":
        return values("u1", (rows, *shape)) % len(NAMES), Categorical(NAMES)
    return np.array(["dog", "cat", "Ü"])[values("u1", (rows, *shape)) % 3], "categorical"


columns = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from([d for d in STORABLE if d != "bool"] + [*EXTENDED_DTYPES]),
    st.sampled_from([(), (3,), (2, 1), (0,)]),
)


@settings(max_examples=60)
@given(st.lists(columns, min_size=1, max_size=3), st.sampled_from(ROWS), codecs)
def test_an_ingest_of_an_export_makes_the_same_store(columns: list[Any], rows: int, codec: str) -> None:
    made = {f"z{9 - i}": some_rows(*column, rows) for i, column in enumerate(columns)}
    with scratch() as folder:
        types = {name: kind for name, (_, kind) in made.items()}
        with shardstore.Writer(folder / "s", types=types, codec=codec, **OPTIONS) as writer:
            writer.append({name: column for name, (column, _) in made.items()})
        with shardstore.open(folder / "s") as store:
            files = export_npy(store, folder / "out", progress=False)
            assert sorted(files) == sorted((folder / "out").iterdir())
            with ingest(folder / "out", folder / "again", codec=codec, **OPTIONS) as again:
                assert again.schema == store.schema
                assert again.columns == store.columns
                assert len(again) == len(store)
                assert again.verify(progress=False).ok
        assert shard_files(folder / "again") == shard_files(folder / "s")


def all_kinds(path: Path, rows: int = 21, first: int = 0) -> shardstore.Store:
    """Write a store with a column of every kind."""
    made = {kind.replace(" ", "-"): some_rows(kind, "bfloat16", (), rows) for kind in KINDS}
    types = {name: kind for name, (_, kind) in made.items()} | {"n": "int64"}
    with shardstore.Writer(path, types=types, **OPTIONS) as writer:
        writer.append({name: column for name, (column, _) in made.items()} | {"n": np.arange(first, first + rows)})
    return shardstore.open(path)


def test_other_programs_read_it_with_numpy(tmp_path: Path) -> None:
    store = all_kinds(tmp_path / "s")
    export_npy(store, tmp_path / "out", progress=False)

    def load(name: str) -> Any:
        return np.load(tmp_path / "out" / f"{name}.npy")

    assert load("n").tolist() == list(range(21))
    assert load("fixed").tobytes() == store["fixed"][:].tobytes()
    assert load("fixed").dtype == np.uint16
    assert Ragged(load("ragged.values"), load("ragged.offsets")).lengths.tolist() == store["ragged"].lengths.tolist()
    assert load("ragged.values").tobytes() == store["ragged"][:].values.tobytes()
    assert Strings(load("utf8.values"), load("utf8.offsets")).to_list() == store["utf8"][:].to_list()
    assert Blobs(load("binary.values"), load("binary.offsets")).to_list() == store["binary"][:].to_list()
    names = load("open-categorical.categories")[load("open-categorical")]
    assert names.tolist() == store["open-categorical"].decode(store["open-categorical"][:]).tolist()


def test_a_view_is_exported_as_what_it_shows(tmp_path: Path) -> None:
    view = all_kinds(tmp_path / "s").select("utf8", "ragged", "n").rows([5, 3, 3, -1])
    export_npy(view, tmp_path / "out", progress=False)
    again = ingest(tmp_path / "out", tmp_path / "again")
    assert again.columns == ("utf8", "ragged", "n")
    assert again["n"][:].tolist() == [5, 3, 3, 20]
    assert again["utf8"][:].to_list() == view["utf8"][:].to_list()
    assert again["ragged"][:].values.tobytes() == view["ragged"][:].values.tobytes()


def test_several_exports_come_one_after_the_other(tmp_path: Path) -> None:
    for k, rows in enumerate((21, 0, 8)):
        store = all_kinds(tmp_path / f"s-{k}", rows, 100 * k)
        # Names that come as they come differ from store to store.
        view = store.select(*(name for name in store.columns if name != "open-categorical"))
        export_npy(view, tmp_path / f"out-{k}", progress=False)
    again = ingest([tmp_path / f"out-{k}" for k in (2, 1, 0, 2)], tmp_path / "again", **OPTIONS)
    assert again["n"][:].tolist() == [*range(200, 208), *range(21), *range(200, 208)]
    stores = [shardstore.open(tmp_path / f"s-{k}") for k in (2, 0, 2)]
    for name in ("utf8", "binary", "ragged"):
        expected = np.concatenate([store[name][:].values.view(np.uint8) for store in stores])
        assert again[name][:].values.tobytes() == expected.tobytes()
        assert again[name].lengths.tolist() == [n for store in stores for n in store[name].lengths]


def test_types_and_codecs_of_the_user_come_first(tmp_path: Path) -> None:
    export_npy(all_kinds(tmp_path / "s"), tmp_path / "out", progress=False)
    types = {"categorical": "uint8", "utf8": "binary", "n": "int16"}
    again = ingest(tmp_path / "out", tmp_path / "again", types=types, codec={"n": "zstd"})
    assert again.schema["categorical"].kind == "fixed"
    assert again.schema["utf8"].kind == "binary"
    assert again["n"].dtype == np.int16
    assert again["fixed"].dtype == "bfloat16"


@pytest.mark.parametrize("content", [None, b'{"x": "int64"}', b'["x", "y"]', b"7"])
def test_directories_with_no_index_or_of_somebody_else_are_files_as_before(tmp_path: Path, content: Any) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, rows in (("x", 2), ("y", 3)):
        np.save(folder / f"{name}.npy", np.arange(rows))
    if content is not None:
        (folder / "columns.json").write_bytes(content)
    store = ingest(folder, tmp_path / "s")
    assert store.columns == ("data",)
    assert store["data"][:].tolist() == [0, 1, 0, 1, 2]


def edit(change: Callable[[Any], None]) -> Callable[[Path], Any]:
    def apply(folder: Path) -> Any:
        path = folder / "out/columns.json"
        document = json.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document))
        return folder / "out"

    return apply


def with_file(name: str, array: Any) -> Callable[[Path], Any]:
    def apply(folder: Path) -> Any:
        np.save(folder / "out" / name, array)
        return folder / "out"

    return apply


def without(name: str) -> Callable[[Path], Any]:
    def apply(folder: Path) -> Any:
        (folder / "out" / name).unlink()
        return folder / "out"

    return apply


def truncated(folder: Path) -> Any:
    path = folder / "out/columns.json"
    path.write_bytes(path.read_bytes()[:-20])
    return folder / "out"


def beside_others(folder: Path) -> Any:
    np.save(folder / "other.npy", np.arange(3))
    return [folder / "out", folder / "other.npy"]


def beside_another(folder: Path) -> Any:
    shutil.copytree(folder / "out", folder / "more")
    edit(lambda index: index["columns"].reverse())(folder)
    return [folder / "out", folder / "more"]


DAMAGES: dict[str, tuple[Callable[[Path], Any], type[Exception], list[str]]] = {
    "a truncated index": (truncated, SourceError, ["out/columns.json: damaged index of an export"]),
    "a later version": (edit(lambda i: i.update(shardstore_export=2)), SourceError, ["columns.json", "version 2"]),
    "no columns": (edit(lambda i: i.pop("columns")), SourceError, ["out/columns.json: damaged"]),
    "an unknown kind": (edit(lambda i: i["columns"][0].update(kind="odd")), SourceError, ["columns.json: damaged"]),
    "an unknown dtype": (edit(lambda i: i["columns"][0].update(dtype="odd")), SourceError, ["columns.json: damaged"]),
    "files elsewhere": (
        edit(lambda i: i["columns"][0].update(files={"array": "../x.npy"})),
        SourceError,
        ["columns.json: damaged"],
    ),
    "unknown arrays": (
        edit(lambda i: i["columns"][0].update(files={"values": "x.npy"})),
        SourceError,
        ["columns.json: damaged"],
    ),
    "a missing file": (without("ragged.offsets.npy"), SourceError, ["out/ragged.offsets.npy: no such file"]),
    "a file more": (with_file("more.npy", np.zeros(3)), SourceError, ["out/more.npy", "columns.json"]),
    "a file of other rows": (
        with_file("n.npy", np.zeros(3, int)),
        SourceError,
        ["agree in rows", "out/fixed.npy has 21", "out/n.npy has 3"],
    ),
    "an unknown category": (
        with_file("categorical.npy", np.full(21, 7, np.uint8)),
        SourceError,
        ["out/categorical.npy", "row 0", "7 is the number of no category"],
    ),
    "text that is none": (
        lambda f: with_file("utf8.values.npy", np.full_like(np.load(f / "out/utf8.values.npy"), 255))(f),
        SourceError,
        ["out/utf8.values.npy", "'utf8', row", "not UTF-8"],
    ),
    "other sources beside it": (beside_others, SourceError, ["out is an export", "other.npy is none"]),
    "another export beside it": (beside_another, SourceError, ["disagree", "out/columns.json", "more/columns.json"]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_export_that_was_changed_is_refused(tmp_path: Path, name: str) -> None:
    change, error, mentions = DAMAGES[name]
    export_npy(all_kinds(tmp_path / "store"), tmp_path / "out", progress=False)
    sources = change(tmp_path)
    assert_refused(error, lambda: ingest(sources, tmp_path / "s"), tmp_path, *mentions)


def test_an_export_is_not_split_and_not_written_into(tmp_path: Path) -> None:
    export_npy(all_kinds(tmp_path / "store"), tmp_path / "out", progress=False)
    out = tmp_path / "out"
    assert_refused(SchemaError, lambda: ingest(out, tmp_path / "s", split="x=:"), tmp_path, "an export has its own")
    assert_refused(shardstore.DestinationError, lambda: ingest(out, out / "s"), tmp_path, "lies inside")
    with shardstore.open(tmp_path / "store") as store:
        assert_refused(shardstore.DestinationError, lambda: export_npy(store, out), tmp_path, "exists already")
