"""Types of columns of files: text, categories, and casts that keep every value."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from dumps import CHUNK_ROWS, SHARD_ROWS, assert_refused, scratch, shard_files, values, write_npy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstore
from shardstore import Categorical, SchemaError, SourceError, ingest
from shardstore.ragged import Strings

OPTIONS: Any = {"shard_bytes": 128, "chunk_bytes": 32}
# NumPy's fixed-width strings cannot end in a zero.
text = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda s: s.rstrip("\0"))
row_counts = st.sampled_from([0, 1, CHUNK_ROWS, SHARD_ROWS, SHARD_ROWS + 1, 17])
texts = st.lists(row_counts.flatmap(lambda n: st.lists(text, min_size=n, max_size=n)), min_size=1, max_size=3)


def written(path: Path, column: Any, kind: Any) -> dict[str, bytes]:
    """Return the shard files of a store of one column that a `Writer` wrote."""
    with shardstore.Writer(path, types={"data": kind}, **OPTIONS) as writer:
        writer.append({"data": column})
    return shard_files(path)


def save(folder: Path, arrays: list[NDArray[Any]]) -> str:
    """Save arrays as files that belong to one column; return the glob of them."""
    for k, array in enumerate(arrays):
        write_npy(folder / f"part-{k}.npy", array)
    return f"{folder}/part-*.npy"


# Text


@settings(max_examples=40)
@given(texts, st.sampled_from("<>"), st.sampled_from(["U", "S"]), st.sampled_from(["plain", "structured", "npz"]))
def test_fixed_width_strings_become_text_whatever_their_widths(
    files: list[list[str]], endian: str, kind: str, form: str
) -> None:
    flat = [string for strings in files for string in strings]
    arrays = [np.array(strings, np.str_) for strings in files]
    arrays = [array.astype(array.dtype.newbyteorder(endian)) for array in arrays]
    if kind == "S":
        arrays = [np.array([string.encode() for string in strings], np.bytes_) for strings in files]
    with scratch() as folder:
        if form == "npz":
            for k, array in enumerate(arrays):
                np.savez(folder / f"part-{k}.npz", data=array)
            sources = f"{folder}/part-*.npz"
        elif form == "structured":
            sources = save(folder, [array.view([("data", array.dtype)]) for array in arrays])
        else:
            sources = save(folder, arrays)
        types = {"data": "utf8"} if kind == "S" else None
        with ingest(sources, folder / "s", types=types, **OPTIONS) as store:
            assert store.schema["data"].kind == "utf8"
            assert isinstance(store["data"][:], Strings)
            assert store["data"][:].to_list() == flat
            assert store.verify(progress=False).ok
        assert shard_files(folder / "s") == written(folder / "w", flat, "utf8")


@given(texts, st.sampled_from(["utf8", "binary"]), st.sampled_from(["offsets", "lengths"]))
@settings(max_examples=25)
def test_bytes_end_to_end_become_text_or_stay_bytes(files: list[list[str]], kind: str, role: str) -> None:
    flat = [string for strings in files for string in strings]
    with scratch() as folder:
        for k, strings in enumerate(files):
            rows = Strings.from_strings(strings)
            np.save(folder / f"values-{k}.npy", rows.values)
            np.save(folder / f"{role}-{k}.npy", getattr(rows, role))
        sources = {"data": {name: f"{folder}/{name}-*.npy" for name in ("values", role)}}
        with ingest(sources, folder / "s", types={"data": kind}, **OPTIONS) as store:
            assert store.schema["data"].kind == kind
            assert store["data"][:].to_list() == ([s.encode() for s in flat] if kind == "binary" else flat)
        expected = [s.encode() for s in flat]
        assert shard_files(folder / "s") == written(folder / "w", expected, kind)


def test_fixed_width_bytes_stay_what_they_are_and_become_bytes_when_told(tmp_path: Path) -> None:
    array = np.array([b"cat", b"", b"\xff\0x"])
    sources = save(tmp_path, [array])
    assert ingest(sources, tmp_path / "s")["data"].dtype == "S3"
    assert ingest(sources, tmp_path / "b", types={"data": "binary"})["data"][:].to_list() == array.tolist()


def test_a_split_cuts_columns_of_text_from_an_array_of_it(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([["a", "bc"], ["déf", ""]]))
    store = ingest(tmp_path / "in.npy", tmp_path / "s", split="x=0,y=1", types={"y": "categorical"})
    assert store["x"][:].to_list() == ["a", "déf"]
    assert store["y"].decode(store["y"][:]).tolist() == ["bc", ""]


# Categories


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.sampled_from(["cat", "dog", "Ünicorn", ""]), max_size=20), min_size=1, max_size=3),
    st.sampled_from(["U", "S", "codes"]),
    st.booleans(),
)
def test_categories_are_numbered_as_they_come_or_as_declared(files: list[list[str]], form: str, is_open: bool) -> None:
    declared = Categorical(["", "dog", "Ünicorn", "cat", "never"])
    is_open = is_open and form != "codes"
    flat = [name for names in files for name in names]
    to_array: dict[str, Callable[[list[str]], NDArray[Any]]] = {
        "U": lambda names: np.array(names, np.str_),
        "S": lambda names: np.array([name.encode() for name in names], np.bytes_),
        "codes": lambda names: np.array([declared.categories.index(name) for name in names], ">i8"),
    }
    with scratch() as folder:
        sources = save(folder, [to_array[form](names) for names in files])
        types: Any = {"data": "categorical" if is_open else declared}
        with ingest(sources, folder / "s", types=types, **OPTIONS) as store:
            column = store["data"]
            assert column.categories == (tuple(dict.fromkeys(flat)) if is_open else declared.categories)
            assert column.dtype == (np.int32 if is_open else np.uint8)
            assert column.decode(column[:]).tolist() == flat


def test_categories_of_rows_of_any_shape(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.array([["b", "a"], ["a", "c"]]))
    store = ingest(tmp_path / "in.npy", tmp_path / "s", types={"data": "categorical"})
    assert store["data"].shape == (2, 2)
    assert store["data"][:].tolist() == [[0, 1], [1, 2]]
    assert store["data"].categories == ("b", "a", "c")


def test_categories_come_in_order_through_other_processes(tmp_path: Path) -> None:
    names = [f"name {i % 700}" for i in range(5000)]
    np.savez(tmp_path / "in.npz", data=np.array(names), n=np.arange(5000))
    with ProcessPoolExecutor(1, get_context("fork")) as workers:
        store = ingest(tmp_path / "in.npz", tmp_path / "s", types={"data": "categorical"}, workers=workers)
    assert store["data"].categories == tuple(dict.fromkeys(names))
    assert store["data"].decode(store["data"][:]).tolist() == names


# Casts


@pytest.mark.parametrize("kept_as", [">u2", "<u2", "V2"])
def test_bits_of_bfloat16(tmp_path: Path, kept_as: str) -> None:
    array = values("u2", (17, 3)).astype("<u2")
    stored = array.view("V2") if kept_as == "V2" else array.astype(kept_as)
    store = ingest(save(tmp_path, [stored[:9], stored[9:]]), tmp_path / "s", types={"data": "bfloat16"}, **OPTIONS)
    assert store["data"].dtype == ml_dtypes.bfloat16
    assert store["data"].shape == (17, 3)
    assert store["data"][:].view("<u2").tolist() == array.tolist()


def test_numbers_become_bfloat16_by_rounding(tmp_path: Path) -> None:
    array = np.array([1.0, 3.14159, -1e30, np.inf], np.float32)
    store = ingest(save(tmp_path, [array]), tmp_path / "s", types={"data": "bfloat16"})
    assert store["data"][:].tolist() == array.astype(ml_dtypes.bfloat16).tolist()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.arange(40, dtype=">f8").reshape(20, 2), "int16"),
        (np.arange(40, dtype="<u8"), "float32"),
        (np.array(["2020-01-01", "NaT", "1969-12-31"], "M8[D]"), "datetime64[s]"),
        (np.array([b"ab", b"", b"abcd"]), "S7"),
        (np.array([b"ab", b"", b"abcd"], "S9"), "S4"),
        (np.asfortranarray(np.arange(60, dtype=np.int16).reshape(20, 3)), "uint8"),
        (np.zeros((0, 3)), "uint8"),
    ],
)
def test_casts_keep_every_value(tmp_path: Path, source: NDArray[Any], target: str) -> None:
    half = len(source) // 2
    # A file that is of the type already goes with those that are not.
    sources = save(tmp_path, [source[:half], source[half:].astype(target)])
    store = ingest(sources, tmp_path / "s", types={"data": target}, **OPTIONS)
    assert store["data"].dtype == np.dtype(target)
    assert (store["data"][:] == source)[~np.isnat(source) if source.dtype.kind == "M" else ...].all()
    assert shard_files(tmp_path / "s") == written(tmp_path / "w", source.astype(target), target)


@pytest.mark.parametrize("target", ["ragged[uint8, 2]", "ragged[int64, 2]", "ragged[bfloat16, 2]", "ragged"])
def test_items_of_ragged_rows_are_cast(tmp_path: Path, target: str) -> None:
    np.save(tmp_path / "v.npy", np.arange(20, dtype=np.float32).reshape(10, 2))
    np.save(tmp_path / "l.npy", np.array([3, 0, 7]))
    files = {"values": tmp_path / "v.npy", "lengths": tmp_path / "l.npy"}
    store = ingest({"r": files}, tmp_path / "s", types={"r": target})
    expected = np.arange(20).reshape(10, 2)
    assert store["r"][:].to_list() == [expected[:3].tolist(), [], expected[3:].tolist()]
    assert str(store.schema["r"]) == f"ragged {'float32' if target == 'ragged' else target[7:-4]}[2]"


def test_an_array_of_equal_rows_becomes_ragged_when_told(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int32).reshape(4, 3, 2)
    store = ingest(save(tmp_path, [array[:1], array[1:]]), tmp_path / "s", types={"data": "ragged"})
    assert store["data"][:].to_list() == array.tolist()
    assert store.schema["data"].row_shape == (2,)


def test_a_type_that_a_column_has_changes_nothing(tmp_path: Path) -> None:
    array = values("float32", (20, 3))
    sources = save(tmp_path, [array])
    ingest(sources, tmp_path / "s", types={"data": "float32"}, **OPTIONS).close()
    ingest(sources, tmp_path / "t", **OPTIONS).close()
    assert shard_files(tmp_path / "s") == shard_files(tmp_path / "t")


# What cannot be


def ragged(folder: Path, items: Any, lengths: list[int]) -> Any:
    """Save rows as the second of two pairs of files, the first of which is right."""
    for name, array in (("v-0", items[:0]), ("l-0", np.zeros(3, int)), ("v-1", items), ("l-1", np.array(lengths))):
        np.save(folder / f"{name}.npy", array)
    return {"data": {"values": f"{folder}/v-*.npy", "lengths": f"{folder}/l-*.npy"}}


def after(first: NDArray[Any], second: NDArray[Any]) -> Callable[[Path], str]:
    return lambda folder: save(folder, [first, second])


NAMES = np.array(["cat", "dog"] * 4)
REFUSED: dict[str, tuple[Callable[[Path], Any], Any, type[Exception], list[str]]] = {
    "an unknown category": (
        after(NAMES, np.array(["cat", "dog", "cow"])),
        Categorical(["cat", "dog"]),
        SourceError,
        ["part-1.npy", "'data', row 2", "unknown category 'cow'", "'cat', 'dog'"],
    ),
    "the number of no category": (
        after(np.zeros(8, int), np.array([0, 1, 1, 2])),
        Categorical(["cat", "dog"]),
        SourceError,
        ["part-1.npy", "'data', row 3", "2 is the number of no category", "there are 2"],
    ),
    "a negative number of a category": (
        after(np.zeros(8, int), np.array([[0, 1], [1, -1]])[:, 1]),
        Categorical(["cat", "dog"]),
        SourceError,
        ["part-1.npy", "'data', row 1", "-1 is the number of no category"],
    ),
    "numbers without names": (
        after(np.zeros(8, int), np.zeros(1, int)),
        "categorical",
        SourceError,
        ["part-0.npy", "'data'", "categories are strings, found int64"],
    ),
    "bytes that are not utf8": (
        after(np.array([b"good"]), np.array([b"good", b"bad\xff"])),
        "utf8",
        SourceError,
        ["part-1.npy", "'data', row 1", "not UTF-8", "byte 3"],
    ),
    "values that are not utf8": (
        lambda f: ragged(f, np.frombuffer(b"goodbad\xff", np.uint8), [4, 0, 4]),
        "utf8",
        SourceError,
        ["v-1.npy", "'data', row 2", "not UTF-8", "byte 3"],
    ),
    "a character cut in two": (
        lambda f: ragged(f, np.frombuffer("aé".encode(), np.uint8), [2, 1]),
        "utf8",
        SourceError,
        ["v-1.npy", "'data', row 0", "not UTF-8"],
    ),
    "a lone surrogate": (
        after(NAMES, np.array(["a", "\ud800"])),
        None,
        SourceError,
        ["part-1.npy", "'data', row 1", "U+D800 is no character"],
    ),
    "categories with a lone surrogate": (
        after(NAMES, np.array([["a", "b"], ["c", "d\udfff"]])[:, 1]),
        "categorical",
        SourceError,
        ["part-1.npy", "'data', row 1", "U+DFFF is no character"],
    ),
    "no character": (
        after(NAMES, np.array([97, 0, 98, 0x110000], "<u4").view("<U2")),
        None,
        SourceError,
        ["part-1.npy", "'data', row 1", "U+110000 is no character"],
    ),
    "a number for text": (after(np.zeros(8), np.zeros(1)), "utf8", SourceError, ["part-0.npy", "row 0", "string"]),
    "a number for bytes": (after(np.zeros(8), np.zeros(1)), "binary", SourceError, ["part-0.npy", "row 0", "bytes"]),
    "text for a number": (
        after(NAMES, NAMES),
        "float32",
        SchemaError,
        ["part-0.npy", "<U3 cannot be cast to float32"],
    ),
    "values that are text of other items": (
        lambda f: ragged(f, np.arange(8, dtype=np.int32), [8]),
        "utf8",
        SchemaError,
        ["v-0.npy", "declared utf8, so uint8; found int32"],
    ),
    "a value that changes": (
        after(np.zeros((8, 2)), np.array([[1, 2], [3, 4.5]])),
        "int16",
        SourceError,
        ["part-1.npy", "'data', row 1", "the value 4.5 would change in int16"],
    ),
    "bytes that are too long": (
        after(np.array([b"abc", b"ab"]), np.array([b"a", b"abcd"])),
        "S3",
        SourceError,
        ["part-1.npy", "'data', row 1", "would change"],
    ),
    "a time that is too fine": (
        after(np.zeros(3, "M8[s]"), np.array([0, 1000, 1500], "M8[ms]")),
        "datetime64[s]",
        SourceError,
        ["part-1.npy", "'data', row 2", "would change"],
    ),
    "an item that changes": (
        lambda f: ragged(f, np.array([1, 2, 3, 256, 4], np.int32), [2, 0, 2, 1]),
        "ragged[uint8]",
        SourceError,
        ["v-1.npy", "'data', row 2", "the value 256 would change in uint8"],
    ),
    "a fixed type for ragged rows": (
        lambda f: ragged(f, np.arange(5), [5]),
        "int8",
        SchemaError,
        ["v-0.npy", "'data' is ragged, but it is declared int8", "ragged[int8]"],
    ),
    "categories for ragged rows": (
        lambda f: ragged(f, np.arange(5), [5]),
        "categorical",
        SchemaError,
        ["v-0.npy", "'data' is ragged, but it is declared categorical"],
    ),
    "items of another shape": (
        lambda f: ragged(f, np.zeros((5, 2)), [5]),
        "ragged[float64, 3]",
        SchemaError,
        ["v-0.npy", "items of shape (2,), declared are (3,)"],
    ),
    "single values for ragged rows": (
        after(np.zeros(3), np.zeros(3)),
        "ragged",
        SchemaError,
        ["part-0.npy", "'data' has single values", '{"values": ..., "offsets": ...}'],
    ),
    "no type": (after(np.zeros(3), np.zeros(3)), "int7", SchemaError, ["the type of column 'data' is 'int7'"]),
    "text beside numbers": (
        after(NAMES, np.zeros(3)),
        None,
        SourceError,
        ["'data'", "part-0.npy has <U3", "part-1.npy has float64"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_named_with_file_and_row_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    make, kind, error, mentions = REFUSED[name]
    sources = make(tmp_path)
    types = None if kind is None else {"data": kind}
    assert_refused(error, lambda: ingest(sources, tmp_path / "s", types=types), tmp_path, *mentions)


def test_a_type_for_no_column(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", np.zeros(3))
    for sources in (tmp_path / "in.npy", {"data": tmp_path / "in.npy"}):
        assert_refused(
            SchemaError,
            lambda s=sources: ingest(s, tmp_path / "s", types={"label": "categorical"}),
            tmp_path,
            "a type is given for column 'label', but the columns are data",
        )


@pytest.mark.parametrize("kind", ["category", "text"])
def test_a_bad_row_behind_many_blocks_has_its_number(tmp_path: Path, kind: str) -> None:
    names = np.full(200_000, b"cat")
    names[150_001] = b"\xff\xff\xff" if kind == "text" else b"cow"
    np.save(tmp_path / "in.npy", names)
    types: Any = {"data": "utf8" if kind == "text" else Categorical(["cat"])}
    for workers in (1, 2):
        assert_refused(
            SourceError,
            lambda n=workers: ingest(tmp_path / "in.npy", tmp_path / "s", types=types, workers=n),
            tmp_path,
            "in.npy",
            "row 150,001",
        )
