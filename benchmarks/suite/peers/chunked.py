"""What the readers of chunked arrays have in common: none of them has batches or a shuffle of its own.

So they get what one would write for them: rows by a permutation if the chunks are raw, and if they are compressed
windows of chunks in random order, each chunk decoded once and the rows of a window mixed in memory.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Job
from benchmarks.suite.peer import Batch, Dataset

CHUNK_NBYTES = 64 << 10
READ_NBYTES = 8 << 20
"""What is read at a time where rows come in order."""
WINDOW_NBYTES = 64 << 20
MIXES = "all rows (zstd: windows of 64 MiB)"

Columns = dict[str, NDArray[Any]]


def chunk_rows(job: Job) -> int:
    """Return the rows of a chunk of `x`: about 64 KiB."""
    return max(1, min(CHUNK_NBYTES // job.row_nbytes, job.rows))


class ChunkedRows(Dataset):
    """Rows of chunked columns.

    Args:
        job: what they are.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def read(self, rows: slice | NDArray[np.int64]) -> Columns:
        """Return rows of all columns: consecutive ones, or any in any order."""

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Pick by a permutation; compressed, mix windows of chunks."""
        rng = np.random.default_rng(seed)
        if self.job.layout == "zstd":
            return cut(self._windows(rng))
        order = rng.permutation(self.job.rows)
        return (self.take(order[first : first + BATCH]) for first in range(0, len(order), BATCH))

    def sequential(self) -> Iterator[Batch]:
        """Read some megabytes at a time, and cut them."""
        chunk = chunk_rows(self.job)
        step = chunk * max(1, READ_NBYTES // (chunk * self.job.row_nbytes))
        slices = (slice(first, min(first + step, self.job.rows)) for first in range(0, self.job.rows, step))
        return cut(map(self.read, slices))

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Read rows."""
        return _tensors(self.read(rows))

    def _windows(self, rng: np.random.Generator) -> Iterator[Columns]:
        chunk = chunk_rows(self.job)
        chunks = rng.permutation(-(-self.job.rows // chunk))
        each = max(1, WINDOW_NBYTES // (chunk * self.job.row_nbytes))
        for first in range(0, len(chunks), each):
            rows = (np.sort(chunks[first : first + each])[:, None] * chunk + np.arange(chunk)).ravel()
            window = self.read(rows[rows < self.job.rows])
            order = rng.permutation(len(window["y"]))
            yield {name: array[order] for name, array in window.items()}


def cut(blocks: Iterable[Columns]) -> Iterator[Batch]:
    """Cut blocks of rows into batches; what is left of one goes with the next one."""
    rest: Columns = {}
    for block in blocks:
        joined = {name: np.concatenate([rest[name], array]) for name, array in block.items()} if rest else block
        count = len(joined["y"])
        whole = count - count % BATCH
        for first in range(0, whole, BATCH):
            yield _tensors({name: array[first : first + BATCH] for name, array in joined.items()})
        rest = {name: array[whole:] for name, array in joined.items()} if whole < count else {}
    if rest:
        yield _tensors(rest)


def _tensors(columns: Columns) -> Batch:
    import torch

    return {name: torch.from_numpy(array) for name, array in columns.items()}
