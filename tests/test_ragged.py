"""Ragged columns against lists of arrays: written, read by every index, streamed in every order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import scratch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import random_array

import shardstore
from shardstore.ragged import Blobs, Ragged, Strings, place_parts

CODECS = ("raw", "zstd", "blosc:lz4")
DTYPES = ("uint8", "uint16", "float32", "int64", "complex128", "datetime64[s]", "S3", "bfloat16", "float8_e4m3fn")
# Stores of these tests have shards of about 8 rows, and of 16 items in chunks of 4.
lengths = st.lists(st.sampled_from([0, 0, 1, 2, 3, 4, 5, 15, 16, 17, 40]), max_size=25)


def rows_of(counts: list[int], dtype: str, item_shape: tuple[int, ...] = (), seed: int = 0) -> list[NDArray[Any]]:
    """Return a list of arrays of random bits."""
    spec = shardstore.schema.dtype_named(dtype)
    values = random_array(np.dtype(f"V{spec.itemsize}"), (sum(counts), *item_shape), seed).view(spec)
    return np.split(values, np.cumsum(counts)[:-1]) if counts else []


def same(found: Any, expected: list[NDArray[Any]]) -> bool:
    """Whether a `Ragged` holds exactly these rows, bit for bit."""
    assert isinstance(found, Ragged)
    assert found.offsets[0] == 0
    assert found.offsets[-1] == len(found.values)
    assert len(found) == len(expected)
    return all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(found, expected, strict=True)
    )


def write(path: Path, rows: list[NDArray[Any]], dtype: str, shape: tuple[int, ...], codec: str, cut: int = 1) -> Path:
    """Write a store of the rows, of a column `n` of their numbers, and of a compressed one."""
    spec = shardstore.schema.dtype_named(dtype)
    item_nbytes = spec.itemsize * int(np.prod(shape, dtype=int))
    ragged = f"ragged[{dtype}{''.join(f', {n}' for n in shape)}]"
    codecs = {"r": codec}
    options: Any = {"shard_bytes": 16 * item_nbytes, "chunk_bytes": 4 * item_nbytes, "codec": codecs}
    with shardstore.Writer(path, types={"r": ragged, "n": "int64"}, **options) as writer:
        for start in range(0, max(1, len(rows)), max(1, len(rows) // cut)):
            part = rows[start : start + max(1, len(rows) // cut)]
            writer.append({"r": part, "n": np.arange(start, start + len(part))})
    return path


@given(lengths, st.sampled_from(DTYPES), st.sampled_from([(), (3,), (2, 1)]), st.sampled_from(CODECS), st.data())
def test_rows_come_back_by_every_index(
    counts: list[int], dtype: str, shape: tuple[int, ...], codec: str, data: st.DataObject
) -> None:
    rows = rows_of(counts, dtype, shape)
    with scratch() as folder:
        path = write(folder / "s", rows, dtype, shape, codec, data.draw(st.integers(1, 3)))
        store = shardstore.open(path)
        assert store.verify(progress=False).ok
        column = store["r"]
        assert store.schema["r"].kind == "ragged"
        assert column.shape == (len(rows), None, *shape)
        assert column.lengths.tolist() == counts
        assert same(column[:], rows)
        bound = st.integers(-len(rows) - 1, len(rows) + 1) | st.none()
        index = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 2, -1, -3])))
        assert same(column[index], rows[index])
        picked = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=9)) if rows else []
        assert same(column[picked], [rows[i] for i in picked])
        assert same(store.take(picked)["r"], [rows[i] for i in picked])
        assert same(store.rows(index)["r"][:], rows[index])
        for i in picked:
            assert column[i].tobytes() == rows[i].tobytes()
            assert column[i].shape == rows[i].shape


@given(lengths, st.sampled_from(CODECS), st.sampled_from([False, "full", "window"]), st.integers(1, 7), st.data())
def test_streams_give_every_row_once(
    counts: list[int], codec: str, shuffle: Any, batch_size: int, data: st.DataObject
) -> None:
    rows = rows_of(counts, "uint16")
    lanes = data.draw(st.sampled_from([1, 2, 3])) if shuffle == "window" else 1
    window = data.draw(st.sampled_from([1, 100, 10_000]))
    with scratch() as folder:
        store = shardstore.open(write(folder / "s", rows, "uint16", (), codec))
        view = data.draw(st.sampled_from([store, store.rows(slice(1, None)), store.rows(slice(None, None, -1))]))
        options: Any = {"shuffle": shuffle, "lanes": lanes, "window_bytes": window}
        seen = []
        for batch in view.batches(batch_size, with_rows=True, **options):
            assert batch["n"].tolist() == batch["rows"].tolist()
            assert same(batch["r"], [rows[i] for i in batch["n"]])
            seen += batch["n"].tolist()
        assert sorted(seen) == sorted(view["n"][:].tolist())
        if not shuffle:
            assert seen == view["n"][:].tolist()


@pytest.mark.parametrize("codec", CODECS)
def test_a_row_longer_than_a_shard_and_empty_rows_at_both_ends(tmp_path: Path, codec: str) -> None:
    rows = rows_of([0, 0, 1000, 0, 1, 0], "int32")
    store = shardstore.open(write(tmp_path / "s", rows, "int32", (), codec))
    assert len(store.manifest.columns["r"].data.nbytes) == 63
    assert same(store["r"][:], rows)
    assert same(store["r"][[2, 2, 5]], [rows[2], rows[2], rows[5]])


def test_slices_and_rows_of_raw_columns_are_views_of_the_map(tmp_path: Path) -> None:
    rows = rows_of(list(range(100)), "float32")
    with shardstore.Writer(tmp_path / "s", shard_bytes=4096 * 4) as writer:
        writer.append({"r": rows})
    store = shardstore.open(tmp_path / "s")
    whole = store["r"][:].values
    assert not whole.flags.writeable
    assert np.shares_memory(store["r"][3:9].values, whole)
    assert np.shares_memory(store["r"][99], whole)
    gathered = store["r"][[3, 4]]
    assert gathered.values.flags.writeable
    assert np.shares_memory(gathered[1], gathered.values)


@given(lengths, st.sampled_from(["right", "left"]), st.none() | st.integers(0, 20), st.sampled_from([(), (2,)]))
def test_padding_is_that_of_row_by_row(
    counts: list[int], side: Any, length: int | None, shape: tuple[int, ...]
) -> None:
    rows = rows_of(counts, "int16", shape)
    ragged = Ragged.from_rows(rows, np.int16, shape)
    padded, kept = ragged.to_padded(-7, length, side)
    width = max(counts, default=0) if length is None else length
    assert padded.shape == (len(rows), width, *shape)
    assert padded.dtype == np.int16
    assert kept.tolist() == [min(count, width) for count in counts]
    for i, row in enumerate(rows):
        expected = np.full((width, *shape), -7, np.int16)
        if side == "right":
            expected[: len(row)] = row[:width]
        elif width:
            expected[max(0, width - len(row)) :] = row[-width:]
        assert padded[i].tolist() == expected.tolist()


@given(lengths, st.lists(st.integers(0, 24), min_size=1), st.data())
def test_ragged_indexes_like_a_list(counts: list[int], picks: list[int], data: st.DataObject) -> None:
    rows = rows_of(counts, "uint8")
    ragged = Ragged.from_rows(rows, np.uint8)
    assert ragged.to_list() == [row.tolist() for row in rows]
    assert same(Ragged.from_lengths(ragged.values, counts), rows)
    bound = st.integers(-30, 30) | st.none()
    index = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 2, -1])))
    assert same(ragged[index], rows[index])
    chosen = [i for i in picks if i < len(rows)]
    assert same(ragged[chosen], [rows[i] for i in chosen])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    parts = [(slice(a, b), ragged[a:b]) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    assert same(place_parts(parts), rows)
    order = np.array(data.draw(st.permutations(range(len(rows)))), np.int64)
    halves = np.split(order, cuts)
    assert same(place_parts([(half, ragged[half]) for half in halves]), rows)


def test_equal_runs_are_gathered_like_any_others() -> None:
    values = np.arange(10_000, dtype=np.uint16)
    for length, step, first in ((64, 64, 0), (64, 64, 5), (96, 32, 7), (100, 1, 0), (33, 11, 2)):
        starts = first + step * np.random.default_rng(0).integers(0, (10_000 - length - first) // step, 50)
        ragged = Ragged(values, [0, 10_000])
        assert len(ragged) == 1
        joined = shardstore.ragged.join_runs(values, starts, starts + length)
        assert joined.tolist() == [i for start in starts.tolist() for i in range(start, start + length)]


text = st.text(st.characters(codec="utf-8"), max_size=12)


@given(st.lists(text, max_size=20), st.sampled_from(CODECS), st.sampled_from(["list", "array", "StringDType", "bytes"]))
def test_strings_come_back(strings: list[str], codec: str, form: str) -> None:
    strings = [string.rstrip("\0") for string in strings]  # NumPy's fixed-width strings cannot end in one
    given_as: Any = {
        "list": strings,
        "array": np.array(strings, np.str_),
        "StringDType": np.array(strings, np.dtypes.StringDType()),
        "bytes": [string.encode() for string in strings],
    }[form]
    with scratch() as folder:
        options: Any = {"types": {"t": "utf8"}, "shard_bytes": 64, "chunk_bytes": 8, "codec": codec}
        with shardstore.Writer(folder / "s", **options) as writer:
            writer.append({"t": given_as})
        column = shardstore.open(folder / "s")["t"]
        assert isinstance(column[:], Strings)
        assert column[:].to_list() == strings
        assert list(column) == strings
        assert np.asarray(column).tolist() == strings
        assert [column[i] for i in range(len(strings))] == strings
        assert column[::-1].to_list() == strings[::-1]


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=20))
def test_bytes_come_back(rows: list[bytes]) -> None:
    with scratch() as folder:
        with shardstore.Writer(folder / "s") as writer:
            writer.append({"b": rows})
        column = shardstore.open(folder / "s")["b"]
        assert isinstance(column[:], Blobs)
        assert column[:].to_list() == rows == [column[i] for i in range(len(rows))]


@given(st.lists(st.lists(st.sampled_from(["cat", "dog", "Ünicorn", ""]), max_size=5), min_size=1, max_size=4))
def test_categories_are_numbered_as_they_come_or_as_declared(blocks: list[list[str]]) -> None:
    flat = [name for block in blocks for name in block]
    declared = shardstore.Categorical(["", "dog", "Ünicorn", "cat", "never"])
    with scratch() as folder:
        with shardstore.Writer(folder / "s", types={"a": "categorical", "b": declared}) as writer:
            for block in blocks:
                writer.append({"a": block, "b": block})
        store = shardstore.open(folder / "s")
        assert store["a"].categories == tuple(dict.fromkeys(flat))
        assert store["b"].categories == declared.categories
        assert store["a"].dtype == np.int32
        assert store["b"].dtype == np.uint8
        for name in ("a", "b"):
            assert store[name].decode(store[name][:]).tolist() == flat


def test_arrays_of_another_dtype_become_the_declared_one(tmp_path: Path) -> None:
    rows = [np.arange(3), np.arange(2, dtype=np.float32), [4, 5]]
    with shardstore.Writer(tmp_path / "s", types={"r": "ragged[uint8]"}) as writer:
        writer.append({"r": rows})
    assert shardstore.open(tmp_path / "s")["r"][:].to_list() == [[0, 1, 2], [0, 1], [4, 5]]


@pytest.mark.parametrize("form", ["arrays", "ragged"])
def test_arrays_of_uint16_are_the_bits_of_bfloat16(tmp_path: Path, form: str) -> None:
    rows = rows_of([3, 0, 4], "uint16")
    with shardstore.Writer(tmp_path / "s", types={"r": "ragged[bfloat16]"}) as writer:
        writer.append({"r": Ragged.from_rows(rows) if form == "ragged" else rows})
    assert [row.tobytes() for row in shardstore.open(tmp_path / "s")["r"]] == [row.tobytes() for row in rows]


BAD: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "lengths that do not sum up": (lambda: Ragged.from_lengths(np.arange(5), [2, 2]), {}, ["sum up to 4", "5 items"]),
    "a negative length": (lambda: Ragged.from_lengths(np.arange(5), [6, -1]), {}, ["row 1: a length of -1"]),
    "offsets that decrease": (lambda: Ragged(np.arange(5), [0, 3, 2, 5]), {}, ["offset 2 is 2, behind 3"]),
    "offsets that do not begin at 0": (lambda: Ragged(np.arange(5), [1, 5]), {}, ["from 0 to the 5 items"]),
    "offsets that end too early": (lambda: Ragged(np.arange(5), [0, 4]), {}, ["from 0 to the 5 items"]),
    "offsets of floats": (lambda: Ragged(np.arange(5), [0.0, 5.0]), {}, ["offsets must be integers, found float64"]),
    "no offsets": (lambda: Ragged(np.arange(0), []), {}, ["one entry more"]),
    "invalid utf8": (lambda: [b"good", b"bad\xff"], {"c": "utf8"}, ["'c', row 3", "not UTF-8", "byte 3"]),
    "a character cut in two": (
        lambda: Ragged(np.frombuffer("é".encode(), np.uint8), [0, 1, 2]),
        {"c": "utf8"},
        ["'c', row 2", "not UTF-8"],
    ),
    "a lone surrogate": (lambda: ["a", "\ud800"], {}, ["'c', row 3", "surrogates"]),
    "a number among strings": (lambda: ["a", 7], {"c": "utf8"}, ["'c', row 3", "expected a string, found a int"]),
    "an unknown category": (
        lambda: ["cat", "cow"],
        {"c": shardstore.Categorical(["cat", "dog"])},
        ["'c', row 3", "unknown category 'cow'", "'cat', 'dog'"],
    ),
    "the number of no category": (
        lambda: [0, 2],
        {"c": shardstore.Categorical(["cat", "dog"])},
        ["'c', row 3", "2 is the number of no category"],
    ),
    "single values": (lambda: [1, 2], {"c": "ragged"}, ["'c'", "row 0: a single value"]),
    "items of another shape": (
        lambda: [[[1, 2]], [[1, 2, 3]]],
        {"c": "ragged"},
        ["items of shape (3,), expected (2,)"],
    ),
    "another dtype": (lambda: [np.ones(2, np.int8), np.ones(1)], {"c": "ragged"}, ["row 1: dtype float64"]),
    "a value that a declared dtype does not have": (
        lambda: [[1, 300], []],
        {"c": "ragged[uint8]"},
        ["row 0: the value 300 would change"],
    ),
    "an array's value that a declared dtype does not have": (
        lambda: [np.array([1]), np.array([1, 300])],
        {"c": "ragged[uint8]"},
        ["row 1: the value 300 would change"],
    ),
    "a Ragged's value that a declared dtype does not have": (
        lambda: Ragged.from_lengths(np.array([1, 2, 300]), [1, 0, 2]),
        {"c": "ragged[uint8]"},
        ["'c', row 2: the value 300 would change"],
    ),
    "objects": (lambda: np.array([[1], None], object), {}, ["object"]),
    "no type": (lambda: [1, 2], {"c": "int7"}, ["the type of column 'c' is 'int7'"]),
    "a missing label": (lambda: ["cat", float("nan")], {"c": "categorical"}, ["'c', row 1", "found nan, a float"]),
    "a number among labels": (lambda: ["cat", 1], {"c": "categorical"}, ["'c', row 1", "found 1, a int"]),
    "a label that is no text": (lambda: ["cat", "\ud800"], {"c": "categorical"}, ["'c', row 1", "surrogates"]),
    "too large for bfloat16": (lambda: [1e300], {"c": "bfloat16"}, ["1e+300 is too large for bfloat16"]),
    "too large for float8": (lambda: [[1.0], [1e5]], {"c": "ragged[float8_e4m3fn]"}, ["100000.0 is too large"]),
    "complex numbers as bfloat16": (lambda: [1 + 2j], {"c": "bfloat16"}, ["complex128 cannot be cast to bfloat16"]),
    "integers that no dtype has together": (
        lambda: [[-1, 2**63 + 1]],
        {"c": "ragged"},
        ["9223372036854775809 would change in float64"],
    ),
    "an integer beside floats that would change": (
        lambda: [2**53 + 1, 2.5],
        {"c": "float64"},
        ["9007199254740993 would change in float64"],
    ),
    "a masked row": (lambda: [np.ma.masked_array([1, 2], [0, 1])], {"c": "ragged"}, ["masked"]),
    "a type for no column": (lambda: [1, 2], {"d": "int8"}, ["a type is given for column 'd'"]),
}


@pytest.mark.parametrize(("make", "types", "mentions"), BAD.values(), ids=BAD)
def test_bad_input_is_named_and_nothing_is_written(
    tmp_path: Path, make: Any, types: dict[str, Any], mentions: list[str]
) -> None:
    good: dict[str, Any] = {"utf8": ["x", "y"], "ragged": [[1], [1, 2]]}

    def attempt() -> None:
        with shardstore.Writer(tmp_path / "s", types=types) as writer:
            kind = types.get("c")
            if kind == "utf8" or not types:
                writer.append({"c": good["utf8"]})
            elif isinstance(kind, shardstore.Categorical):
                writer.append({"c": ["dog", "dog"]})
            writer.append({"c": make()})

    with pytest.raises((shardstore.SchemaError, ValueError)) as caught:
        attempt()
    assert [mention for mention in mentions if mention not in str(caught.value)] == [], str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["uint64", "ragged[uint64]", None])
def test_integers_of_lists_stay_what_they_are(tmp_path: Path, kind: str | None) -> None:
    """NumPy makes floats of integers beyond 2**63 beside smaller ones."""
    hashes = [1, 2**63 + 12345, 2**63 + 1, 2**64 - 1]
    given = [hashes, hashes[:1]] if kind == "ragged[uint64]" else hashes
    with shardstore.Writer(tmp_path / "s", types={} if kind is None else {"h": kind}) as writer:
        writer.append({"h": given})
    column = shardstore.open(tmp_path / "s")["h"]
    assert column.dtype == np.uint64
    assert (column[0] if kind == "ragged[uint64]" else column[:]).tolist() == hashes


def test_categories_are_a_list_of_texts() -> None:
    for bad, message in (("abc", "one string"), (["\ud800"], "surrogates"), (["a", "a"], "twice"), ([1], "a int")):
        with pytest.raises(shardstore.SchemaError, match=message):
            shardstore.Categorical(bad)  # type: ignore[arg-type]


def test_integers_are_not_filled_up_with_what_they_cannot_be() -> None:
    ragged = Ragged([1, 2, 3], [0, 1, 3])
    for fill in (np.nan, 1.9, float("inf")):
        with pytest.raises(ValueError, match="which is no int64"):
            ragged.to_padded(fill)
    assert ragged.to_padded(-1.0)[0].tolist() == [[1, -1], [2, 3]]


def test_rows_of_one_length_then_of_others_are_told_how_to_be_ragged(tmp_path: Path) -> None:
    def attempt() -> None:
        with shardstore.Writer(tmp_path / "s") as writer:
            writer.append({"r": [[1, 2], [3, 4]]})
            writer.append({"r": [[1, 2], [3]]})

    with pytest.raises(shardstore.SchemaError, match=r'types=\{"r": "ragged"\}'):
        attempt()


@pytest.mark.parametrize("kind", ["start", "stop", "order"])
def test_ranges_outside_the_items_are_damage(tmp_path: Path, kind: str) -> None:
    """A bit flipped in a raw file is not found by reading it, but it must not read other memory."""
    store = shardstore.open(write(tmp_path / "s", rows_of([3, 4], "int32"), "int32", (), "raw"))
    path = tmp_path / "s/r/ranges/c/0/0"
    data = bytearray(path.read_bytes())
    ranges = np.frombuffer(data, np.int64, 4)
    ranges[{"start": 0, "stop": 3, "order": 2}[kind]] = {"start": -1, "stop": 8, "order": 8}[kind]
    path.write_bytes(data)
    with pytest.raises(shardstore.CorruptionError, match=r"row \d: its range .* is not within the 7 items"):
        store["r"][[0, 1]]
    assert not store.verify(progress=False).ok


def test_a_window_shuffle_decodes_about_every_chunk_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows do not begin where chunks do, so that the chunks at the ends of a section are decoded for both sides."""
    monkeypatch.setattr(shardstore.access, "CHUNK_CACHE_NBYTES", 1)
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 100, 20_000)
    values = rng.integers(0, 100, counts.sum(), np.uint8)
    with shardstore.Writer(tmp_path / "s", codec="zstd", shard_bytes="256KiB", chunk_bytes="4KiB") as writer:
        writer.append({"r": shardstore.Ragged.from_lengths(values, counts)})
    store = shardstore.open(tmp_path / "s")
    chunks = -(-len(values) // store.manifest.columns["r"].data.layout.chunk_rows)
    seen = sum(len(batch["r"]) for batch in store.batches(64, shuffle="window", window_bytes="256KiB"))
    assert seen == 20_000
    assert chunks <= store.chunks_decoded < 1.15 * chunks
