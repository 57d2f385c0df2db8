"""Dumps to convert, and what must hold of every store that is made from them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardstore

Array = NDArray[Any]

NUMERIC = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
)
STORABLE = (*NUMERIC, "datetime64[ns]", "datetime64[D]", "timedelta64[s]", "S1", "S7")
CODECS = ("raw", "zstd", "zstd:9", "blosc:lz4", "blosc:zstd:1")
VERSIONS = ((1, 0), (2, 0), (3, 0))

# Stores of the tests have shards of 8 rows in chunks of 2: these counts sit on every kind of edge.
SHARD_ROWS, CHUNK_ROWS = 8, 2
LENGTHS = (0, 1, CHUNK_ROWS, CHUNK_ROWS + 1, SHARD_ROWS - 1, SHARD_ROWS, SHARD_ROWS + 1, 2 * SHARD_ROWS, 41)
ROW_SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (5,), (2, 3), (3, 1, 2))

lengths = st.sampled_from(LENGTHS)
codecs = st.sampled_from(CODECS)


def small(row_nbytes: int) -> dict[str, int]:
    """Return the options by which rows of a size come in shards of 8 and chunks of 2."""
    return {"shard_bytes": max(1, SHARD_ROWS * row_nbytes), "chunk_bytes": max(1, CHUNK_ROWS * row_nbytes)}


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory for one example."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def values(dtype: Any, shape: Sequence[int], seed: int = 0) -> Array:
    """Return an array of any bits that the dtype can have: NaNs, NaT, both zeros, extremes."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype.names is not None:
        array = np.zeros(shape, dtype)
        for i, name in enumerate(dtype.names):
            base, inner = dtype[name].subdtype or (dtype[name], ())
            array[name] = values(base, (*shape, *inner), seed + i + 1)
        return array
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    return np.frombuffer(rng.bytes(prod(shape) * dtype.itemsize), dtype).reshape(shape)


def little(array: Array) -> Array:
    """Return an array as a store keeps it: little-endian, in C order."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(array.shape)


def write_npy(path: Path, array: Array, version: tuple[int, int] | None = None) -> Path:
    """Write an `.npy` file with a header of the given version."""
    with path.open("wb") as stream:
        np.lib.format.write_array(stream, array, version)
    return path


def tree(directory: Path) -> dict[str, bytes | str | None]:
    """Return all that lies below a directory: files with their bytes, links with their targets, directories."""

    def content(path: Path) -> bytes | str | None:
        if path.is_symlink():
            return str(path.readlink())
        return path.read_bytes() if path.is_file() else None

    return {str(path.relative_to(directory)): content(path) for path in sorted(directory.rglob("*"))}


def shard_files(store: Path) -> dict[str, bytes]:
    """Return the bytes of all shard files of a store, by their path within it."""
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file() and p.suffix != ".json"}


def assert_holds(store: shardstore.Store, expected: Mapping[str, Array]) -> None:
    """Check that a store has exactly these columns, bit for bit, and that its checksums vouch for them."""
    assert store.columns == tuple(expected)
    for name, array in expected.items():
        read = np.asarray(store[name])
        assert read.dtype == array.dtype.newbyteorder("<")
        assert read.shape == array.shape
        assert read.tobytes() == little(array).tobytes()
        assert len(store) == len(array)
    assert [str(damage) for damage in store.verify(progress=False).damages] == []


def assert_refused(error: type[Exception], call: Callable[[], Any], beside: Path, *mentions: object) -> str:
    """Check that a call fails with one line that mentions all that is asked for, and changes nothing in `beside`."""
    before = tree(beside)
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error
    assert "\n" not in message
    assert [str(m) for m in mentions if str(m) not in message] == [], message
    assert tree(beside) == before
    return message


def number_in(message: str, before: str) -> int:
    """Return the number that follows some words of a message."""
    match = re.search(re.escape(before) + r"([\d,]+)", message)
    assert match is not None, message
    return int(match[1].replace(",", ""))


def run_python(script: str, *arguments: object, prefix: Sequence[str] = ()) -> str:
    """Run a script in a fresh interpreter and return what it printed; one that hangs is ended."""
    command = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
