"""Rows from any iterable: what comes out is what plain Python makes of them, whoever works and however they are cut."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import multiprocessing
import os
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import assert_holds, assert_refused, run_python, scratch, shard_files, small, tree, values, write_npy
from hypothesis import given, settings
from hypothesis import strategies as st

import shardstore
from shardstore import DestinationError, SchemaError, SourceError, Writer, ingest
from shardstore.ingesting import LOOK_AHEAD

Row = dict[str, Any]
OPTIONS: Any = small(24)

blocks = st.sampled_from([None, 1, 2, 3, 8, 100])
counts = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 41])
workers = st.sampled_from([1, 2, 5])


def row_of(number: int) -> Row:
    """Return a row that its number tells."""
    return {"x": np.array([number, number + 0.5], "f4"), "n": number, "flag": number % 2 == 0}


def columns_of(rows: Iterable[Row]) -> dict[str, np.ndarray]:
    """Return rows as columns."""
    rows = list(rows)
    empty = {"x": np.zeros((0, 2), "f4"), "n": np.zeros(0, int), "flag": np.zeros(0, bool)}
    return (
        {name: np.array([row[name] for row in rows], array.dtype) for name, array in empty.items()} if rows else empty
    )


def batches_of(sizes: Iterable[int], as_lists: bool = False) -> Iterator[Row]:
    """Yield batches of rows in a single array, which is filled anew for every batch."""
    buffer = np.zeros((100, 2), "f4")
    number = 0
    for size in sizes:
        batch = columns_of(map(row_of, range(number, number + size)))
        buffer[:size] = batch["x"]
        batch["x"] = buffer[:size]
        yield {name: list(array) for name, array in batch.items()} if as_lists and size else batch
        buffer[:] = -1
        number += size


# What comes out


@settings(max_examples=25)
@given(counts, blocks, st.sampled_from(["generator", "function", "list", "iterator", "sequence"]))
def test_rows_make_columns(rows: int, block_rows: int | None, form: str) -> None:
    class Sequence:
        def __len__(self) -> int:
            return rows

        def __getitem__(self, number: int) -> Row:
            if number >= rows:
                raise IndexError
            return row_of(number)

    all_rows = [row_of(number) for number in range(rows)]
    source: Any = {
        "generator": (row for row in all_rows),
        "function": lambda: map(row_of, range(rows)),
        "list": all_rows,
        "iterator": iter(all_rows),
        "sequence": Sequence(),
    }[form]
    with scratch() as folder:
        if not rows:
            with pytest.raises(SourceError, match=r"gave no rows, so the columns are unknown|no source files"):
                ingest(source, folder / "store")
            assert list(folder.iterdir()) == []
            return
        with ingest(source, folder / "store", block_rows=block_rows, **OPTIONS) as store:
            assert_holds(store, columns_of(all_rows))
            assert set(store.manifest.provenance) == {"tool", "created", "sources"}
            assert store.manifest.provenance["sources"] == {}
        with Writer(folder / "written", **OPTIONS) as writer:
            writer.append(columns_of(all_rows))
        assert shard_files(folder / "store") == shard_files(folder / "written")


@settings(max_examples=40)
@given(st.lists(counts, min_size=1, max_size=5), blocks, st.booleans(), st.booleans(), workers)
def test_batches_make_columns(
    sizes: list[int], block_rows: int | None, as_lists: bool, transformed: bool, threads: int
) -> None:
    def negated(block: Row) -> Row:
        return {**block, "x": -np.asarray(block["x"])}

    expected = columns_of(map(row_of, range(sum(sizes))))
    expected["x"] *= -1 if transformed else 1
    with (
        scratch() as folder,
        ingest(
            batches_of(sizes, as_lists),
            folder / "store",
            batched=True,
            transform=negated if transformed else None,
            block_rows=block_rows,
            workers=threads,
            **OPTIONS,
        ) as store,
    ):
        assert_holds(store, expected)


def copies(number: int) -> int:
    """How many rows become of a row: none, one or several."""
    return (number * 7) % 4


def multiplied(block: Row) -> Row:
    """Filter and multiply rows, change the block in place, and return lists."""
    time.sleep(random.random() / 1000)
    for x in block["x"]:
        x *= 2
    block["n"] = [number for number in block.pop("n") for _ in range(copies(number))]
    block["x"] = [
        x for x, number in zip(block["x"], block.pop("flag"), strict=True) for _ in range(copies(int(x[0]) // 2))
    ]
    return block


@settings(max_examples=40)
@given(counts.filter(bool), blocks, workers, st.booleans(), st.sampled_from(["raise", "skip"]))
def test_a_transform_of_blocks_is_as_one_of_all_rows(
    rows: int, block_rows: int | None, threads: int, batched: bool, on_error: Any
) -> None:
    numbers = [number for number in range(rows) for _ in range(copies(number))]
    expected = {"x": np.array([[2 * n, 2 * n + 1] for n in numbers], "f4").reshape(-1, 2), "n": np.array(numbers, int)}
    source = batches_of([rows // 2, rows - rows // 2]) if batched else map(row_of, range(rows))
    with (
        scratch() as folder,
        ingest(
            source,
            folder / "store",
            transform=multiplied,
            batched=batched,
            block_rows=block_rows,
            workers=threads,
            on_error=on_error,
            **OPTIONS,
        ) as store,
    ):
        if numbers:
            assert_holds(store, expected)
        else:
            assert len(store) == 0


@pytest.mark.parametrize("transform", [None, lambda block: block])
def test_a_generator_may_fill_the_same_row_again(tmp_path: Path, transform: Any) -> None:
    def rows() -> Iterator[Row]:
        row: Row = {"x": np.zeros(3), "y": [0, [0]]}
        for number in range(20):
            row["x"][:] = number
            row["y"][0] = row["y"][1][0] = number
            yield row

    def flat(block: Row) -> Row:
        return {"x": block["x"], "y": [first for first, _ in block["y"]], "z": [rest for _, rest in block["y"]]}

    with ingest(rows, tmp_path / "store", transform=flat, block_rows=7) as store:
        numbers = np.arange(20)
        assert_holds(store, {"x": np.repeat(numbers * 1.0, 3).reshape(-1, 3), "y": numbers, "z": numbers[:, None]})
    only_x = ({"x": row["x"]} for row in rows())
    with ingest(only_x, tmp_path / "plain", transform=transform) as store:
        assert_holds(store, {"x": np.repeat(numbers * 1.0, 3).reshape(-1, 3)})


def test_blocks_are_of_bounded_rows_and_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def watched(block: Row) -> Row:
        seen.append((len(block["x"]), sum(map(len, block["x"]))))
        return {"n": [len(x) for x in block["x"]]}

    lengths = [1] * 3000 + [1 << 20] * 5 + [5 << 20] * 2 + [1] * 3
    with ingest(({"x": b"a" * n} for n in lengths), tmp_path / "store", transform=watched, workers=1) as store:
        assert store["n"][:].tolist() == lengths
    assert all(rows <= 1024 and nbytes <= (2 << 20) + (5 << 20) for rows, nbytes in seen)
    assert len(seen) < 12
    seen.clear()
    batch = {"x": [b"a" * 1024] * 5000}
    ingest(iter([batch]), tmp_path / "batch", transform=watched, workers=1, batched=True).close()
    assert sum(rows for rows, _ in seen) == 5000
    assert all(nbytes <= 2 << 20 for _, nbytes in seen)
    seen.clear()
    ingest(({"x": b"a"} for _ in range(25)), tmp_path / "asked", transform=watched, workers=1, block_rows=10).close()
    assert [rows for rows, _ in seen] == [10, 10, 5]


def doubled(block: Row) -> Row:
    """A transform for processes."""
    if 13 in block["n"]:
        raise NoRowError(13, "unlucky")
    return {"n": np.asarray(block["n"]) * 2, "process": np.full(len(block["n"]), os.getpid())}


class NoRowError(Exception):
    """An exception that pickles, but does not unpickle."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"{number}: {reason}")


def test_processes_transform(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        options: Any = {"transform": doubled, "workers": pool, "block_rows": 3}
        with ingest(({"n": n} for n in range(10)), tmp_path / "store", **options) as store:
            assert store["n"][:].tolist() == list(range(0, 20, 2))
            assert os.getpid() not in store["process"][:]
        with ingest(({"n": n} for n in range(20)), tmp_path / "skip", on_error="skip", **options) as store:
            assert store["n"][:].tolist() == [2 * n for n in range(20) if n != 13]
            (example,) = store.manifest.provenance["skipped"]["examples"]
            assert (example["row"], example["reason"]) == (13, "RuntimeError: NoRowError: 13: unlucky")
        with pytest.raises(SourceError, match=r"row 13 of the generator: .*unlucky") as caught:
            ingest(({"n": n} for n in range(20)), tmp_path / "raise", **options)
        assert "in doubled" in caught.value.__cause__.__notes__[0]  # type: ignore[union-attr]
        with pytest.raises(SourceError, match="a transform that is a function of a module"):
            ingest(({"n": n} for n in range(20)), tmp_path / "raise", transform=lambda block: block, workers=pool)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["skip", "store"]


def ends(block: Row) -> Row:
    """End the process, as one without memory is ended."""
    os._exit(1)


def test_a_process_that_ends_is_no_row_to_skip(tmp_path: Path) -> None:
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        pytest.raises(SourceError, match="a worker process ended while it transformed the block of 10 rows at row 0"),
    ):
        ingest(map(row_of, range(10)), tmp_path / "store", transform=ends, workers=pool, on_error="skip")
    assert list(tmp_path.iterdir()) == []


# Files


@settings(max_examples=25)
@given(st.lists(counts, min_size=1, max_size=4), blocks, st.sampled_from(["npy", "npz", "parallel", "split"]), workers)
def test_files_through_a_transform(lengths: list[int], block_rows: int | None, form: str, threads: int) -> None:
    x, y = values("f4", (sum(lengths), 3)), np.arange(sum(lengths))
    table = np.concatenate([np.arange(3 * sum(lengths)).reshape(-1, 3), y[:, None]], 1).astype("f8")
    if form == "split":
        x = table[:, :3]
    if form == "npy":
        y = np.zeros(len(x), int)

    def kept(block: Row) -> Row:
        assert all(isinstance(values, np.ndarray) for values in block.values())
        data = block.get("x", block.get("data"))
        block.setdefault("y", np.zeros(len(data), int))
        data.view("u1")[:] ^= 255  # in place: what it gets is its own
        keep = block["y"] % 3 != 1
        return {"x": data[keep][:, ::-1], "y": block["y"][keep]}

    with scratch() as folder:
        (folder / "in").mkdir()
        stops = list(itertools.accumulate(lengths))
        for i, (length, stop) in enumerate(zip(lengths, stops, strict=True)):
            rows = slice(stop - length, stop)
            if form == "npz":
                np.savez_compressed(folder / "in" / f"{i}.npz", allow_pickle=False, x=x[rows], y=y[rows])
            elif form == "split":
                write_npy(folder / "in" / f"{i}.npy", table[rows])
            else:
                write_npy(folder / "in" / f"x-{i}.npy", x[rows])
            if form == "parallel":
                write_npy(folder / "in" / f"y-{i}.npy", y[rows])
        paths: Any = f"{folder}/in/*"
        if form == "parallel":
            paths = {"x": f"{folder}/in/x-*", "y": f"{folder}/in/y-*"}
        split = "x=:-1,y=-1@int64" if form == "split" else None
        before = tree(folder)
        flipped = (x.view("u1") ^ 255).view(x.dtype)
        with ingest(
            paths,
            folder / "store",
            split=split,
            transform=kept,
            block_rows=block_rows,
            workers=threads,
            **OPTIONS,
        ) as store:
            assert_holds(store, {"x": flipped[y % 3 != 1][:, ::-1], "y": y[y % 3 != 1]})
            assert len(store.manifest.provenance["sources"]["names"]) == len(lengths) * (
                1 + (form in ("npz", "parallel"))
            )
        after = tree(folder)
        assert {name: after[name] for name in before} == before


def test_rows_of_files_that_fail_are_named_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        write_npy(tmp_path / "in" / f"{i}.npy", np.arange(10 * i, 10 * i + 10))

    def picky(block: Row) -> Row:
        if 17 in block["data"]:
            raise KeyError("unlucky")
        return {"n": block["data"]}

    assert_refused(
        SourceError,
        lambda: ingest(tmp_path / "in", tmp_path / "store", transform=picky),
        tmp_path,
        f"row 17 of the input ({tmp_path / 'in' / '1.npy'}, row 7): KeyError: 'unlucky'",
    )
    with ingest(tmp_path / "in", tmp_path / "store", transform=picky, on_error="skip") as store:
        assert store["n"][:].tolist() == [n for n in range(30) if n != 17]
        assert store.manifest.provenance["skipped"]["rows"] == 1
        assert store.manifest.provenance["sources"]["shapes"] == [[10]] * 3


# Errors


def failing_rows(rows: int, bad: set[int], how: str) -> Iterator[Any]:
    """Yield rows of which some are bad."""
    for number in range(rows):
        if number not in bad:
            yield {"n": number}
        else:
            yield {
                "transform": {"n": -1},
                "exception": OSError("lost"),
                "no dict": [number],
                "another column": {"m": number},
                "a column too many": {"n": number, "m": 0},
                "another shape": {"n": [number, number]},
            }[how]


HOW = ["transform", "exception", "no dict", "another column", "a column too many", "another shape"]


def careful(block: Row) -> Row:
    """Transform numbers, but not all."""
    if any(number == -1 for number in block["n"]):
        raise ValueError("a number that is none")
    return {"n": [number if isinstance(number, list) else 3 * number for number in block["n"]]}


@settings(max_examples=60)
@given(
    st.integers(1, 41),
    st.sets(st.integers(1, 40), min_size=1, max_size=6),
    st.sampled_from(HOW),
    blocks,
    workers,
    st.booleans(),
)
def test_the_first_bad_row_is_named_or_all_of_them_are_skipped(
    rows: int, bad: set[int], how: str, block_rows: int | None, threads: int, transformed: bool
) -> None:
    bad &= set(range(rows))
    transformed |= how == "transform"
    options: Any = {
        "block_rows": block_rows,
        "workers": threads,
        "transform": careful if transformed else None,
        **OPTIONS,
    }
    with scratch() as folder:
        if bad:
            message = assert_refused(
                SourceError,
                lambda: ingest(failing_rows(rows, bad, how), folder / "store", **options),
                folder,
                f"row {min(bad)} of failing_rows(): ",
            )
            assert "\n" not in message
        with ingest(failing_rows(rows, bad, how), folder / "store", on_error="skip", **options) as store:
            good = [number for number in range(rows) if number not in bad]
            assert_holds(store, {"n": np.array(good) * (3 if transformed else 1)})
            skipped = store.manifest.provenance["skipped"]
            assert skipped["rows"] == len(bad)
            assert [example["row"] for example in skipped["examples"]] == sorted(bad)
        json.loads((folder / "store" / "zarr.json").read_bytes(), parse_float=pytest.fail)


@given(st.integers(0, 20), blocks, st.booleans(), st.sampled_from(["raise", "skip"]))
@settings(max_examples=25)
def test_what_a_generator_raises_ends_the_ingest(
    at: int, block_rows: int | None, transformed: bool, on_error: Any
) -> None:
    cause = ValueError("no such\nrecord")

    def broken() -> Iterator[Row]:
        yield from map(row_of, range(at))
        raise cause

    with scratch() as folder:
        message = assert_refused(
            SourceError,
            lambda: ingest(
                broken,
                folder / "store",
                block_rows=block_rows,
                transform=(lambda block: block) if transformed else None,
                on_error=on_error,
            ),
            folder,
            f"row {at} of broken(): ValueError: no such record",
        )
        assert ("cannot be skipped" in message) == (on_error == "skip")
        with pytest.raises(SourceError) as caught:
            ingest(broken(), folder / "store")
        assert caught.value.__cause__ is cause


def test_an_earlier_row_that_fails_comes_before_a_later_error_of_the_generator(tmp_path: Path) -> None:
    def broken() -> Iterator[Row]:
        yield {"n": 1}
        yield {"n": -1}
        yield {"n": 1}
        raise OSError("the disk is gone")

    with pytest.raises(SourceError, match=r"row 1 of broken\(\): ValueError: a number that is none"):
        ingest(broken(), tmp_path / "store", transform=careful)


def test_only_the_first_reasons_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = (ValueError(f"no {n} " + "x" * 1000) if n % 2 else {"n": n} for n in range(200))
    with caplog.at_level(logging.INFO, "shardstore"), ingest(rows, tmp_path / "store", on_error="skip") as store:
        skipped = store.manifest.provenance["skipped"]
        assert skipped["rows"] == 100
        assert [example["row"] for example in skipped["examples"]] == list(range(1, 40, 2))
        assert all(len(example["reason"]) < 400 for example in skipped["examples"])
        assert len(store) == 100
    (message,) = caplog.messages
    assert message.startswith("skipped 100 of 200 rows; row 1 of the generator: ValueError: no 1 x")


def test_with_no_row_left_there_is_no_store(tmp_path: Path) -> None:
    for rows in ([{"n": -1}] * 30, [KeyError("k")] * 30):
        assert_refused(
            SourceError,
            lambda rows=rows: ingest(iter(rows), tmp_path / "store", transform=careful, on_error="skip"),
            tmp_path,
            "all 30 rows were skipped; row 0 of the list_iterator: ",
        )


def test_nothing_skipped_is_said_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ingest(map(row_of, range(5)), tmp_path / "store", on_error="skip") as store:
        assert store.manifest.provenance["skipped"] == {"rows": 0, "examples": []}
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (lambda block: None, "must be a dict from column to rows, found a NoneType"),
        (lambda block: block["n"], "must be a dict from column to rows, found a list"),
        (lambda block: {}, "has no columns"),
        (lambda block: {"n": [1], "m": [1, 2]}, "the same number of rows, but 'n' has 1, 'm' has 2"),
        (lambda block: {"n": 5}, "a single value in column 'n'"),
        (lambda block: {"n": "one"}, "a single value in column 'n'"),
        (lambda block: {"n": np.array(5)}, "a single value in column 'n'"),
        (lambda block: {"n": [1]} if block["n"][0] < 4 else {"m": [1]}, "expected the columns n, found m"),
        (lambda block: {"n": [1]} if block["n"][0] < 4 else {"m": []}, "expected the columns n, found m"),
        (lambda block: {"n": [1]} if block["n"][0] < 4 else {"n": [1.5]}, "holds int64, but these rows are float64"),
        (lambda block: {"n": np.array([object()])}, "cannot be stored"),
    ],
)
def test_what_is_no_result_of_a_transform(tmp_path: Path, result: Callable[[Row], Any], reason: str) -> None:
    assert_refused(
        SourceError,
        lambda: ingest(({"n": n} for n in range(8)), tmp_path / "store", transform=result, block_rows=2),
        tmp_path,
        " of the generator: ",
        reason,
    )


def test_a_block_that_fails_though_its_rows_do_not(tmp_path: Path) -> None:
    def few(block: Row) -> Row:
        if len(block["n"]) > 2:
            raise RuntimeError("too many")
        return {"n": block["n"]}

    message = r"^rows 0 to 9 of the generator: RuntimeError: too many$"
    with pytest.raises(SourceError, match=message):
        ingest(({"n": n} for n in range(10)), tmp_path / "store", transform=lambda b: few(b) if len(b["n"]) > 9 else b)
    with ingest(({"n": n} for n in range(10)), tmp_path / "store", transform=few, on_error="skip") as store:
        assert store["n"][:].tolist() == list(range(10))
        assert store.manifest.provenance["skipped"]["rows"] == 0


def test_a_transform_that_changed_a_block_before_it_failed(tmp_path: Path) -> None:
    def in_place(block: Row) -> Row:
        block["x"] *= 2
        block["tags"][0].append(1)
        if 7 in block["x"] // 2:
            raise ValueError("seven")
        return {"x": block["x"], "tags": [len(tags) for tags in block["tags"]]}

    batch = {"x": np.arange(10), "tags": [[] for _ in range(10)]}
    with ingest([batch], tmp_path / "store", batched=True, transform=in_place, on_error="skip") as store:
        assert store["x"][:].tolist() == [2 * n for n in range(10) if n != 7]
        assert store["tags"][:].max() == 1
    assert batch["x"].tolist() == list(range(10))


def test_rows_that_name_their_places(tmp_path: Path) -> None:
    class Records:
        name = "records.bin"

        def __iter__(self) -> Iterator[Row]:
            return ({"n": -1 if n == 5 else n} for n in range(9))

        def describe_row(self, number: int) -> str:
            return f"byte {4 * number}"

    with pytest.raises(SourceError, match=r"^row 5 of records.bin \(byte 20\): ValueError: a number that is none$"):
        ingest(Records(), tmp_path / "store", transform=careful)
    rows = ({"n": -1 if n == 5 else n, "path": Path("some") / "file"} for n in range(9))
    with pytest.raises(SourceError, match=r"^row 5 of the generator \(some.file\): ValueError: a number that is none$"):
        ingest(rows, tmp_path / "store", transform=careful)


def bad_batches(batch: Any) -> Iterator[Any]:
    """Yield a good and a bad batch."""
    yield {"x": np.zeros(3), "y": [1, 2, 3]}
    yield batch


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ([1], "a batch must be a dict"),
        ({}, "a batch has no columns"),
        ({"x": [1], "y": [1, 2]}, "all columns of a batch must have the same number of rows, but 'x' has 1, 'y' has 2"),
        ({"x": 5, "y": 5}, "single value"),
    ],
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_batches_that_are_none(tmp_path: Path, batch: Any, reason: str, on_error: Any) -> None:
    assert_refused(
        SourceError,
        lambda: ingest(bad_batches(batch), tmp_path / "store", batched=True, on_error=on_error),
        tmp_path,
        "row 3 of bad_batches(): ",
        reason,
    )


def test_arguments_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = write_npy(tmp_path / "in" / "x.npy", np.arange(3))
    before = tree(tmp_path)
    rows = map(row_of, range(3))
    cases: list[tuple[type[Exception], Any, dict[str, Any], str]] = [
        (ValueError, path, {"on_error": "skip"}, "with a transform"),
        (ValueError, path, {"block_rows": 5}, "with a transform"),
        (ValueError, rows, {"block_rows": 0}, "block_rows is 0"),
        (ValueError, rows, {"on_error": "ignore"}, "on_error is 'ignore'"),
        (ValueError, rows, {"workers": 0}, "workers is 0"),
        (ValueError, path, {"batched": True}, "these sources are files"),
        (SchemaError, rows, {"split": "x=0"}, "split cuts columns out of the arrays of files"),
        (TypeError, 5, {}, "sources is 5; expected paths, or rows"),
        (SourceError, [1, 2], {}, "row 0 of the list: expected a row as a dict from column to value, found an int"),
        (SourceError, [{}], {}, "found one without columns"),
        (SourceError, lambda: 1 / 0, {}, "ZeroDivisionError"),
        (SourceError, iter([path, 5]), {"batched": True}, "a batch must be a dict"),
        (DestinationError, rows, {"mode": "create", "dest": path}, "exists already"),
    ]
    for error, sources, options, reason in cases:
        with pytest.raises(error, match=reason):
            ingest(sources, **{"dest": tmp_path / "store", **options})
    assert tree(tmp_path) == before


# Resources


class Source:
    """A generator of rows that knows how far it was consumed and whether it was closed."""

    def __init__(self, rows: int | None, error: BaseException | None = None) -> None:
        self.rows = rows
        self.error = error
        self.given = 0
        self.closed = False

    def __call__(self) -> Iterator[Row]:
        try:
            for number in itertools.count() if self.rows is None else range(self.rows):
                self.given = number + 1
                yield {"n": number}
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


@pytest.mark.parametrize("threads", [1, 3])
def test_a_generator_is_not_drained_ahead(tmp_path: Path, threads: int) -> None:
    ahead = threads + LOOK_AHEAD
    reached = threading.Event()
    first_done = threading.Event()
    begun: list[int] = []

    def rows() -> Iterator[Row]:
        for number in range(20 * ahead):
            if number == 2 * ahead:
                assert first_done.is_set(), "a block more was asked for before the first one was written"
            if number == 2 * ahead - 1:
                reached.set()
            yield {"n": number}

    def waiting(block: Row) -> Row:
        begun.append(block["n"][0])
        if block["n"][0] == 0:
            assert reached.wait(60), "fewer blocks were asked for than may be on their way"
            time.sleep(0.05)  # for a block too many, if one came
            first_done.set()
        return block

    with ingest(rows, tmp_path / "store", transform=waiting, workers=threads, block_rows=2) as store:
        assert store["n"][:].tolist() == list(range(20 * ahead))
    assert sorted(begun) == list(range(0, 20 * ahead, 2))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, GeneratorExit])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_interrupts_are_no_rows_to_skip(tmp_path: Path, error: type[BaseException], on_error: Any) -> None:
    def interrupted(block: Row) -> Row:
        if 5 in block["n"]:
            raise error
        return block

    source = Source(None)
    with pytest.raises(error):
        ingest(source, tmp_path / "store", transform=interrupted, workers=2, on_error=on_error, block_rows=3)
    assert source.closed
    source = Source(5, error())
    with pytest.raises(error):
        ingest(source, tmp_path / "store", workers=2, on_error=on_error, block_rows=3)
    assert list(tmp_path.iterdir()) == []


def test_an_error_closes_the_generator_and_leaves_the_executor(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for transform in (careful, None):
            source = Source(None)
            rows = (({"n": [1, 2]} if row["n"] == 50 else row) for row in source())
            with pytest.raises(SourceError, match="row 50 of the generator"):
                ingest(rows, tmp_path / "store", transform=transform, workers=pool, block_rows=4)
            assert rows.gi_frame is None
            assert source.given <= 51 + 4 * 20
        assert pool.submit(int, "5").result() == 5
    assert list(tmp_path.iterdir()) == []


def test_what_is_under_way_has_ended_when_an_error_is_raised(tmp_path: Path) -> None:
    running: set[int] = set()
    lock = threading.Lock()

    def slow(block: Row) -> Row:
        with lock:
            running.add(block["n"][0])
        try:
            time.sleep(random.random() / 1000)
            if block["n"][0] == 10:
                raise ValueError
            return block
        finally:
            with lock:
                running.discard(block["n"][0])

    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            with pytest.raises(SourceError, match="row 10 of "):
                ingest(Source(None), tmp_path / "store", transform=slow, workers=pool, block_rows=1)
            assert not running


class OneAtATime(Executor):
    """An executor that runs what it is given first, and leaves the rest in its queue for long."""

    def __init__(self) -> None:
        self.queue: list[Future[Any]] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = QueuedFuture()
        self.queue.append(future)
        if len(self.queue) == 1:
            future.set_result(function(*args, **kwargs))
        return future


class QueuedFuture(Future[Any]):
    """A future that is told at once that it was cancelled."""

    def cancel(self) -> bool:
        return super().cancel() and not self.set_running_or_notify_cancel()


def test_what_waits_for_a_worker_is_cancelled_on_an_error(tmp_path: Path) -> None:
    executor = OneAtATime()
    rows = ({"n": n - 1} for n in range(1000))
    with pytest.raises(SourceError, match="row 0 of "):
        ingest(rows, tmp_path / "store", transform=careful, workers=executor, block_rows=1)
    assert len(executor.queue) > 1
    assert all(future.cancelled() for future in executor.queue[1:])


LIMIT = """
import resource, sys
import numpy as np
import shardstore

resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
rows = ({"x": np.full(1 << 16, n, np.uint8)} for n in range(100))
try:
    shardstore.ingest(rows, sys.argv[1], transform=lambda block: block, on_error="skip")
except shardstore.DestinationError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_disk_that_takes_no_more_is_no_row_to_skip(tmp_path: Path) -> None:
    assert f"cannot write {tmp_path / 'store'}" in run_python(LIMIT, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["rows", "batches", "transform", "skip"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, form: str) -> None:
    def rows() -> Iterator[Row]:
        for number in range(1600):
            yield {"x": np.full((1 << 16) - 8, number % 256, "u1"), "n": number}

    def batches() -> Iterator[Row]:
        for number in range(100):
            yield {"x": np.full((16, (1 << 16) - 8), number, "u1"), "n": np.full(16, number)}

    def inverted(block: Row) -> Row:
        if form == "skip" and any(n % 100 == 7 for n in block["n"]):
            raise ValueError("a bad row")
        return {"x": [255 - x for x in block["x"]], "n": block["n"]}

    gc.collect()
    gc.disable()  # what is let go of must not wait for the collector
    tracemalloc.start()
    try:
        with ingest(
            batches if form == "batches" else rows,
            tmp_path / "store",
            batched=form == "batches",
            transform=inverted if form in ("transform", "skip") else None,
            on_error="skip" if form == "skip" else "raise",
            workers=2,
        ) as store:
            assert len(store) == 1600 - 16 * (form == "skip")
        # Of 100 MiB: four blocks of 2 MiB and their results, and copies of two that are worked on.
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_progress_bar_of_unknown_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingest(map(row_of, range(50)), tmp_path / "store", progress=True, block_rows=5).close()
    assert "ingest" in capsys.readouterr().err


def test_overwriting_keeps_the_old_store_if_a_row_fails(tmp_path: Path) -> None:
    ingest(map(row_of, range(5)), tmp_path / "store").close()
    before = tree(tmp_path)
    with pytest.raises(SourceError):
        ingest(failing_rows(9, {7}, "exception"), tmp_path / "store", mode="overwrite")
    assert tree(tmp_path) == before
    with ingest(({"m": n} for n in range(3)), tmp_path / "store", mode="overwrite") as store:
        assert_holds(store, {"m": np.arange(3)})
    with shardstore.open(tmp_path / "store") as store:
        assert len(store) == 3
