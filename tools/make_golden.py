"""Write the golden stores that every later release must read.

    python tools/make_golden.py [NAME ...] [--overwrite]

Each is kept as `tests/golden/NAME.zip`, a store as this release writes it, and `tests/golden/NAME.json`, what was given
to the writer. They stay as they are, whatever later releases write: existing ones are only written again with
`--overwrite`, which is for stores that no release has been tested with yet. Without names, those that are missing are
written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import shardstore

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
ROWS = 11  # shards of 4 rows in chunks of 2: two whole ones, and one with an odd number of rows
STORED = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "25s")
EXTENDED = ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")
TEXTS = ("", "a", "naïve", "数据", "\U0001f600 and\nlines", "nul \0 inside", "é" * 9, "b", "", "tab\t", "end")
Columns = dict[str, Any]


def bits(dtype: Any, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Return an array of random bits: every NaN, NaT and infinity may be among its values."""
    spec = np.dtype(dtype)
    data = np.random.default_rng(seed).integers(0, 256, int(np.prod(shape)) * spec.itemsize, np.uint8)
    return (data & 1 if spec.kind == "b" else data).view(spec).reshape(shape)


def named(name: str) -> np.dtype[Any]:
    """Return a dtype of NumPy or ml_dtypes."""
    return np.dtype(getattr(ml_dtypes, name)) if name in EXTENDED else np.dtype(name)


def write(path: Path, columns: Columns, **options: Any) -> Columns:
    """Write a store with shards of 4 rows in chunks of 2, as far as the widest column's rows allow it."""
    widest = max(array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in columns.values())
    with shardstore.Writer(path, shard_bytes=4 * widest, chunk_bytes=2 * widest, **options) as writer:
        writer.append(columns)
    return columns


def is_fixed(values: Any) -> bool:
    """Whether a column is given as an array."""
    return isinstance(values, np.ndarray)


def stored(codec: str) -> Callable[[Path], Columns]:
    """Return what writes a store with a column of every stored dtype, of rows of several shapes."""
    shapes: tuple[tuple[int, ...], ...] = ((), (3,), (2, 1))

    def make(path: Path) -> Columns:
        columns = {name: bits(name, (ROWS, *shapes[i % 3]), i) for i, name in enumerate(STORED)}
        return write(path, columns, codec=codec)

    return make


def logical(path: Path) -> Columns:
    """Write a store with a column of every logical type of fixed columns, in all codecs."""
    names = [*(f"{kind}[{unit}]" for unit in UNITS for kind in ("datetime64", "timedelta64")), "S1", "S5", *EXTENDED]
    columns = {}
    for i, name in enumerate(names):
        array = bits(named(name), (ROWS,), i)
        if name.startswith(("datetime64", "timedelta64")):
            array[i % ROWS] = "NaT"
        columns[f"{i} {name.partition('[')[0]}"] = array  # not the unit: names differ in more than M and m
    codecs = ("raw", "zstd", "blosc:zstd")
    return write(path, columns, codec={name: codecs[i % 3] for i, name in enumerate(columns)})


def ragged(path: Path) -> Columns:
    """Write a store with columns of every ragged kind in every codec, and categories."""
    lengths = [0, 3, 1, 0, 20, 2, 0, 1, 1, 4, 0]
    columns: Columns = {"number": np.arange(ROWS)}
    for i, codec in enumerate(("raw", "zstd", "blosc:lz4")):
        values = bits(("uint16", "float32", "datetime64[ms]")[i], (sum(lengths), *((), (2,), ())[i]), i)
        columns[f"items {codec[:4]}"] = np.split(values, np.cumsum(lengths)[:-1])
        columns[f"text {codec[:4]}"] = list(TEXTS)
        columns[f"binary {codec[:4]}"] = [text.encode("utf-16") for text in TEXTS]
    columns["label"] = [("cat", "dog", "naïve")[i % 3] for i in range(ROWS)]
    columns["empty"] = [np.empty(0, np.int8)] * ROWS
    codecs = {name: {"zstd": "zstd", "blos": "blosc:lz4"}.get(name[-4:], "raw") for name in columns}
    types = {name: "binary" for name in columns if name.startswith("binary")}
    types |= {"label": "categorical", "empty": "ragged"}
    with shardstore.Writer(path, codec=codecs, shard_bytes=64, chunk_bytes=16, types=types) as writer:
        writer.append(columns)
    return columns


def zero_rows(path: Path) -> Columns:
    """Write a store without rows."""
    columns: Columns = {"x": np.empty((0, 3), np.float32), "when": np.empty(0, "datetime64[s]")}
    return write(path, columns, codec={"x": "raw", "when": "zstd"})


def no_bytes(path: Path) -> Columns:
    """Write a store with a column whose rows have no bytes."""
    return write(path, {"x": np.arange(ROWS, dtype=np.int16), "nothing": np.empty((ROWS, 0, 2), np.float64)})


def changed(path: Path) -> Columns:
    """Write a store that was changed: columns were computed, renamed, replaced and dropped, statistics kept."""
    given = {"x": bits("int32", (ROWS, 2), 1), "old": bits("float64", (ROWS,), 2), "gone": np.arange(ROWS)}
    write(path, given, codec="zstd")
    with shardstore.open(path) as store:
        store.add_column("sum", lambda batch: batch["x"].astype(np.int64).sum(1), columns="x", fingerprint="sum 1")
        store.add_column("text", list(TEXTS), codec="blosc:lz4")
        store.add_column("twice", lambda batch: batch["gone"] * 2, columns="gone", fingerprint="twice 1")
        store.add_column(
            "twice", lambda batch: batch["gone"] * 2.0, columns="gone", fingerprint="twice 2", replace=True
        )
        store.rename_column("old", "new")
        store.compute_stats(["x", "sum", "text"])
        store.drop_column("gone")
    return {
        "x": given["x"],
        "new": given["old"],
        "sum": given["x"].astype(np.int64).sum(1),
        "text": list(TEXTS),
        "twice": np.arange(ROWS) * 2.0,
    }


def ingested(path: Path) -> Columns:
    """Write a store from files, whose provenance it keeps."""
    x = bits("float32", (ROWS, 3), 5)
    with tempfile.TemporaryDirectory() as folder:
        for i, part in enumerate(np.split(x, [4, 5])):
            np.save(Path(folder, f"part-{i}.npy"), part)
        shardstore.ingest(f"{folder}/part-*.npy", path, split="x=:-1,y=-1", shard_bytes=32, chunk_bytes=16)
    return {"x": x[:, :-1], "y": x[:, -1]}


def grown(path: Path) -> Columns:
    """Write a store whose rows came in three appends, to whole shards and short ones, with a column added between."""
    number, lengths = bits("int16", (ROWS, 3), 6), [i * 3 % 7 for i in range(ROWS)]
    columns: Columns = {
        "raw": number,
        "zstd": bits("float64", (ROWS, 2), 7),
        "items": np.split(bits("uint16", (sum(lengths),), 8), np.cumsum(lengths)[:-1]),
        "text": list(TEXTS),
        "label": [("cat", "dog", "cat", "eel", "dog")[i % 5] for i in range(ROWS)],
    }
    codecs = {"raw": "raw", "zstd": "zstd", "items": "zstd", "text": "raw", "label": "blosc:lz4"}
    types = {"items": "ragged[uint16]", "text": "utf8", "label": shardstore.Categorical(["cat", "dog", "eel"])}
    sizes = {"codec": codecs, "shard_bytes": 64, "chunk_bytes": 32, "types": types}
    ends = (0, 5, 6, 8, ROWS)
    for start, stop in pairwise(ends):
        options: dict[str, Any] = {"mode": "append"} if start else sizes
        with shardstore.Writer(path, **options) as writer:
            writer.append({name: values[start:stop] for name, values in columns.items()})
    return columns


def pending(path: Path) -> Columns:
    """Write a store whose last append was killed after its commit, before the successors got their names."""
    columns = grown(path)
    more = {name: values[:1] for name, values in columns.items()}

    def append() -> None:
        with shardstore.Writer(path, mode="append") as writer:
            writer.append(more)

    # Under another name a successor is still being written.
    killed(append, lambda event, arguments: event == "os.rename" and re.search(r"\.tail-\d+$", str(arguments[0])))
    return {
        name: np.concatenate([values, more[name]]) if is_fixed(values) else [*values, *more[name]]
        for name, values in columns.items()
    }


def interrupted(path: Path) -> Columns:
    """Write a store to which a column was being added, and one that was to take its place, both killed on their way."""
    columns = stored("raw")(path)

    def add() -> None:
        with shardstore.open(path) as store:
            store.add_column(
                "later", lambda batch: batch["int8"] * 2, columns="int8", fingerprint="twice", batch_size=4
            )

    killed(add, lambda event, arguments: event == "os.rename" and str(arguments[1]).endswith("later/c/2/0"))

    def replace() -> None:
        with shardstore.Writer(path, mode="overwrite", shard_bytes=64) as writer:
            writer.append({"x": np.arange(100.0)})

    killed(replace, lambda event, arguments: event == "os.rename" and str(arguments[1]).endswith("x/c/9"))
    return columns


def killed(change: Callable[[], None], moment: Callable[[str, tuple[Any, ...]], Any]) -> None:
    """Run a change in a process that is killed when the interpreter is about to do something."""

    def at(event: str, arguments: tuple[Any, ...]) -> None:
        if moment(event, arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            sys.addaudithook(at)
            change()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
        raise RuntimeError("the change was not killed: it no longer does what it was to be killed at")


STORES: dict[str, Callable[[Path], Columns]] = {
    **{f"stored-{name}": stored(codec) for name, codec in (("raw", "raw"), ("zstd", "zstd"), ("blosc", "blosc:lz4"))},
    "logical": logical,
    "ragged": ragged,
    "zero-rows": zero_rows,
    "no-bytes": no_bytes,
    "changed": changed,
    "ingested": ingested,
    "grown": grown,
    "pending": pending,
    "interrupted": interrupted,
}


def described(values: Any) -> Any:
    """Return a column's rows as plain JSON values: an array as its dtype, shape and bytes."""
    if is_fixed(values):
        dtype = values.dtype.newbyteorder("<")
        return {"dtype": str(dtype), "shape": list(values.shape), "bytes": values.astype(dtype).tobytes().hex()}
    return [{"binary": row.hex()} if isinstance(row, bytes) else described_row(row) for row in values]


def described_row(row: Any) -> Any:
    """Return a row of a ragged column, or the name of a category."""
    return described(row) if is_fixed(row) else row


def keep(name: str, folder: Path) -> None:
    """Write one golden store and what it holds."""
    with tempfile.TemporaryDirectory() as scratch:
        columns = STORES[name](Path(scratch, "store"))
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(Path(scratch).rglob("*")):
                if path.is_file():
                    archive.writestr(
                        zipfile.ZipInfo(path.relative_to(scratch).as_posix()), path.read_bytes(), zipfile.ZIP_DEFLATED
                    )
    lines = (f"{json.dumps(column)}: {json.dumps(described(values))}" for column, values in columns.items())
    (folder / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the golden stores that are asked for, or those that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(STORES)}")
    parser.add_argument("--overwrite", action="store_true", help="write existing ones again")
    parser.add_argument("--to", type=Path, default=GOLDEN, help="the folder")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(STORES):
        parser.error(f"no golden store {', '.join(sorted(unknown))}; there are {', '.join(STORES)}")
    there = {name for name in STORES if (options.to / f"{name}.zip").exists()}
    if not options.overwrite and (kept := there & set(options.names)):
        parser.error(f"{', '.join(sorted(kept))}: written already; golden stores stay as they are (--overwrite)")
    for name in options.names or [name for name in STORES if options.overwrite or name not in there]:
        keep(name, options.to)
        nbytes = (options.to / f"{name}.zip").stat().st_size + (options.to / f"{name}.json").stat().st_size
        print(f"{name}: {nbytes:,} bytes")


if __name__ == "__main__":
    main()
