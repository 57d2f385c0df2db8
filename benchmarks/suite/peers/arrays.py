"""Arrays in RAM: all dumps loaded, and rows picked with `np.take`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer


class InRam(Peer):
    """All rows in RAM."""

    name: ClassVar[str] = "arrays in RAM"
    distributions: ClassVar = ("numpy",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows"})
    keeps_dumps: ClassVar[bool] = True
    how: ClassVar[str] = "`np.take` by a permutation; documents: slices and `np.concatenate`"

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Load the dumps."""
        job = data.job
        if job.layout == "ragged":
            return Documents(data.array("values"), data.offsets(), data.array("y"))
        return Rows(data.table(), job.rows)


class Rows(Dataset):
    """Columns of rows of one shape, as arrays that hold all of them.

    Args:
        columns: the arrays, by name.
        rows: their length.
        fancy: whether rows are picked by indexing, as one does with a memmap, instead of `np.take`.
    """

    def __init__(self, columns: dict[str, NDArray[Any]], rows: int, fancy: bool = False) -> None:
        self.columns, self.count, self.fancy = columns, rows, fancy

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Pick by a permutation."""
        order = np.random.default_rng(seed).permutation(self.count)
        return (self.take(order[first : first + BATCH]) for first in range(0, self.count, BATCH))

    def sequential(self) -> Iterator[Batch]:
        """Copy slices."""
        import torch

        for first in range(0, self.count, BATCH):
            yield {name: torch.from_numpy(a[first : first + BATCH].copy()) for name, a in self.columns.items()}

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Pick rows of each column."""
        import torch

        if self.fancy:
            return {name: torch.from_numpy(array[rows]) for name, array in self.columns.items()}
        return {name: torch.from_numpy(np.take(array, rows, axis=0)) for name, array in self.columns.items()}


class Documents(Dataset):
    """Documents end to end in one array, and where they begin: what one writes by hand.

    Args:
        values: all bytes, uint8.
        offsets: int64 `(documents + 1,)`.
        y: their numbers.
    """

    def __init__(self, values: NDArray[np.uint8], offsets: NDArray[np.int64], y: NDArray[np.int64]) -> None:
        self.values, self.offsets, self.y = values, offsets, y

    def shuffled(self, seed: int) -> Iterator[Batch]:
        """Pick by a permutation."""
        order = np.random.default_rng(seed).permutation(len(self.y))
        return (self.take(order[first : first + BATCH]) for first in range(0, len(order), BATCH))

    def sequential(self) -> Iterator[Batch]:
        """Copy one slice a batch."""
        import torch

        for first in range(0, len(self.y), BATCH):
            offsets = self.offsets[first : first + BATCH + 1]
            values = self.values[offsets[0] : offsets[-1]].copy()
            yield {
                "values": torch.from_numpy(values),
                "offsets": torch.from_numpy(offsets - offsets[0]),
                "y": torch.from_numpy(self.y[first : first + BATCH].copy()),
            }

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Slice each document, and put the slices together."""
        import torch

        starts, ends = self.offsets[rows], self.offsets[rows + 1]
        parts = [self.values[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(ends - starts, out=offsets[1:])
        return {
            "values": torch.from_numpy(np.concatenate(parts)),
            "offsets": torch.from_numpy(offsets),
            "y": torch.from_numpy(self.y[rows]),
        }


PEERS = (InRam,)
