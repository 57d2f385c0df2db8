"""What all peers have to do: the jobs, and the raw dumps that a job begins with.

A row carries its number, so that every batch of every peer can be checked: a peer gives `y`, the number, with the rows,
and the rows' first values say it, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import common

BATCH = 256
"""Rows of a batch, for every job and peer."""
FILES = 8
"""Dumps that the rows are cut into, of very different lengths."""
BLOCK_NBYTES = 8_000_000

Layout = Literal["array", "ragged", "windows", "zstd"]
"""Rows of one shape; documents of different lengths; windows of a stream of tokens; rows of one shape, compressed."""

Block = dict[str, Any]
"""Some consecutive rows: `x`, an array `(n, *shape)` or, if ragged, a list of n arrays, and `y`, int64 `(n,)`."""


@dataclass(frozen=True)
class Job:
    """One kind of data, and what is read of it.

    Attributes:
        name: the word for it.
        title: what rows it has, for the reader of a table.
        layout: what a row is.
        rows: how many there are.
        few_rows: how many a peer gets whose ingest is slow. With 0 it gets none.
        shape: a row's shape; of a document, nothing.
        dtype: of a row's items.
        shards: files that a peer which cuts rows into files may make of them, about.
        group: the word for several jobs that differ in one number.
        modes: what is read, of `peer.MODES`.
        temperatures: `"warm"` (the files are in the page cache), `"cold"` (they are not).
        with_workers: whether it is also for peers that read with worker processes.
        only_sharded: whether it is for those peers only to which the number of files matters.
    """

    name: str
    title: str
    layout: Layout
    rows: int
    few_rows: int
    shape: tuple[int, ...]
    dtype: str
    shards: int = 100
    group: str = ""
    modes: tuple[str, ...] = ("shuffled", "sequential", "takes")
    temperatures: tuple[str, ...] = ("warm", "cold")
    with_workers: bool = False
    only_sharded: bool = False

    def of_rows(self, rows: int) -> Job:
        """Return the same job with another number of rows."""
        return replace(self, rows=rows)

    @property
    def row_nbytes(self) -> int:
        """Bytes of a row's items, without its number; of a document, about."""
        items = MEAN_LENGTH if self.layout == "ragged" else int(np.prod(self.shape))
        return items * np.dtype(self.dtype).itemsize


MEAN_LENGTH = 280
"""Bytes of a document, on average."""

NARROW = Job("narrow", "float32[8] and an int64", "array", 1_000_000, 60_000, (8,), "float32")
MEDIUM = Job("medium", "float32[128] and an int64", "array", 600_000, 60_000, (128,), "float32", with_workers=True)
_GROWING = replace(NARROW, group="growth", few_rows=0, modes=("shuffled",), temperatures=("warm",))
_SHARDED = replace(
    MEDIUM, group="shards", modes=("shuffled", "takes"), temperatures=("warm",), with_workers=False, only_sharded=True
)
GROWTH = [replace(_GROWING, name=f"growth-{n}", rows=n) for n in (100_000, 1_000_000, 10_000_000)]
SHARDS = [replace(_SHARDED, name=f"shards-{n}", shards=n) for n in (1, 10, 100, 1_000)]
JOBS: dict[str, Job] = {
    job.name: job
    for job in (
        NARROW,
        MEDIUM,
        Job("wide", "uint8[3, 224, 224] and an int64", "array", 4_000, 1_500, (3, 224, 224), "uint8", 10),
        Job("ragged", "documents of 40 to 520 bytes and an int64", "ragged", 200_000, 60_000, (), "uint8"),
        Job("windows", "256 uint16 tokens of a long stream", "windows", 200_000, 60_000, (256,), "uint16"),
        Job("zstd", "float32[128] and an int64, compressed", "zstd", 200_000, 60_000, (128,), "float32"),
        *GROWTH,
        *SHARDS,
    )
}


@dataclass(frozen=True)
class Dumps:
    """The raw `.npy` dumps of a job: what every peer's ingest reads.

    Rows of one shape are the files `x-K.npy` and, row by row beside them, `y-K.npy`. Documents are `values-K.npy`, end
    to end, `offsets-K.npy`, one number more than rows, and `y-K.npy`. Tokens are `tokens-0.npy`, documents of 30 to
    3,000 of them end to end, with their `offsets-0.npy`.

    Attributes:
        job: what they are of.
        directory: where they are.
    """

    job: Job
    directory: Path

    def paths(self, name: str) -> list[Path]:
        """Return the files of one name (`"x"`, `"y"`, `"values"`, `"offsets"` or `"tokens"`), in the order of rows."""
        return sorted(self.directory.glob(f"{name}-*.npy"), key=lambda path: int(path.stem.rpartition("-")[2]))

    def array(self, name: str) -> NDArray[Any]:
        """Return all files of one name (but offsets), end to end in memory, which holds them once."""
        parts = [np.load(path, mmap_mode="r") for path in self.paths(name)]
        whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
        return np.concatenate(parts, out=whole)

    def table(self) -> dict[str, NDArray[Any]]:
        """Return all rows in memory as `x` `(rows, *shape)` and `y`, for every layout but documents."""
        if self.job.layout == "windows":
            x = self.array("tokens")[: self.job.rows * self.job.shape[0]].reshape(-1, *self.job.shape)
            return {"x": x, "y": np.arange(self.job.rows)}
        return {"x": self.array("x"), "y": self.array("y")}

    def offsets(self) -> NDArray[np.int64]:
        """Return where the documents of all files begin and end, int64 `(documents + 1,)`."""
        parts = [np.load(path) for path in self.paths("offsets")]
        starts = np.cumsum([0, *(part[-1] for part in parts)])
        return np.concatenate([[0], *(part[1:] + start for part, start in zip(parts, starts, strict=False))])

    def blocks(self, rows: int | None = None) -> Iterator[Block]:
        """Yield all rows in order, `rows` at a time (by default some megabytes), whatever their layout.

        Arrays are views of the files' maps. This is what a peer ingests that takes rows one by one.
        """
        rows = rows or max(1, BLOCK_NBYTES // self.job.row_nbytes)
        if self.job.layout == "windows":
            (path,) = self.paths("tokens")
            table = np.load(path, mmap_mode="r")[: self.job.rows * self.job.shape[0]].reshape(-1, *self.job.shape)
            for first in range(0, self.job.rows, rows):
                part = table[first : first + rows]
                yield {"x": part, "y": np.arange(first, first + len(part))}
            return
        for number, path in enumerate(self.paths("y")):
            numbers = np.load(path, mmap_mode="r")
            if self.job.layout == "ragged":
                values = np.load(self.directory / f"values-{number}.npy", mmap_mode="r")
                offsets = np.load(self.directory / f"offsets-{number}.npy")
            else:
                array = np.load(self.directory / f"x-{number}.npy", mmap_mode="r")
            for first in range(0, len(numbers), rows):
                last = min(first + rows, len(numbers))
                if self.job.layout == "ragged":
                    ends = offsets[first : last + 1].tolist()
                    x = [values[start:end] for start, end in pairwise(ends)]
                else:
                    x = array[first:last]
                yield {"x": x, "y": numbers[first:last]}


def make_dumps(job: Job, directory: Path) -> Dumps:
    """Write a job's dumps; the same ones each time."""
    directory.mkdir(parents=True)
    dumps = Dumps(job, directory)
    rng = np.random.default_rng(0)
    if job.layout == "windows":
        tokens = rng.integers(0, 50_000, job.rows * job.shape[0], np.uint16)
        numbered = tokens.reshape(job.rows, -1)
        numbered[:, :2] = np.arange(job.rows, dtype="<u4").view("<u2").reshape(-1, 2)
        lengths = rng.integers(30, 3_000, len(tokens) // 1_500 + 1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        offsets = np.append(offsets[offsets < len(tokens)], len(tokens))
        np.save(directory / "tokens-0.npy", tokens)
        np.save(directory / "offsets-0.npy", offsets)
        return dumps
    first = 0
    for number, count in enumerate(common.uneven_counts(job.rows, min(FILES, job.rows))):
        y = np.arange(first, first + count)
        np.save(directory / f"y-{number}.npy", y)
        if job.layout == "ragged":
            lengths = rng.integers(40, 2 * MEAN_LENGTH - 39, count)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            values = rng.integers(32, 127, offsets[-1], np.uint8)
            values[offsets[:-1, None] + np.arange(4)] = y.astype("<u4").view(np.uint8).reshape(-1, 4)
            np.save(directory / f"values-{number}.npy", values)
            np.save(directory / f"offsets-{number}.npy", offsets)
        else:
            np.save(directory / f"x-{number}.npy", _rows(job, y, rng))
        first += count
    return dumps


def _rows(job: Job, y: NDArray[np.int64], rng: np.random.Generator) -> NDArray[Any]:
    """Return rows of one shape that begin with their numbers `y`."""
    if job.dtype == "uint8":
        x = rng.integers(0, 256, (len(y), *job.shape), np.uint8)
        x.reshape(len(y), -1)[:, :4] = y.astype("<u4").view(np.uint8).reshape(-1, 4)
        return x
    if job.layout == "zstd":  # values of a coarse grid, as sensors give them: they compress about 3 times
        x = (rng.integers(0, 1_000, (len(y), *job.shape)) / np.float32(8)).astype(np.float32)
    else:
        x = rng.random((len(y), *job.shape), np.float32)
    x[:, 0] = y  # exact up to 2**24
    return x


def row_numbers(job: Job, x: NDArray[Any] | list[NDArray[Any]]) -> NDArray[np.int64]:
    """Return the numbers that rows begin with.

    Args:
        job: the job.
        x: rows, `(n, *shape)`; of documents a list.
    """
    if job.layout == "ragged":
        x = np.stack([row[:4] for row in x])
    table = np.asarray(x).reshape(len(x), -1)
    if job.dtype == "float32":
        return table[:, 0].astype(np.int64)
    items = 4 // np.dtype(job.dtype).itemsize
    return np.ascontiguousarray(table[:, :items]).view("<u4")[:, 0].astype(np.int64)
