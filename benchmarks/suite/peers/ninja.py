"""mmap_ninja: memory-mapped arrays, and ragged ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer
from benchmarks.suite.peers.arrays import Rows

FLUSHED = 4_096
"""Documents between two flushes while they are written."""


class MmapNinja(Peer):
    """Memory-mapped files."""

    name: ClassVar[str] = "mmap_ninja"
    distributions: ClassVar = ("mmap-ninja",)
    imports: ClassVar = ("mmap_ninja",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows"})
    how: ClassVar[str] = "`np_open_existing(path)[rows]` by a permutation; documents: `RaggedMmap[rows]`, put together"

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write the rows."""
        import mmap_ninja

        target.mkdir()
        if data.job.layout != "ragged":
            for name, rows in data.table().items():
                mmap_ninja.np_from_ndarray(target / name, rows)
            return
        documents = (document for block in data.blocks() for document in block["x"])
        mmap_ninja.RaggedMmap.from_generator(target / "x", documents, FLUSHED)
        mmap_ninja.np_from_ndarray(target / "y", data.array("y"))

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Map the files."""
        import mmap_ninja

        y = mmap_ninja.np_open_existing(target / "y")
        if data.job.layout == "ragged":
            return _Documents(mmap_ninja.RaggedMmap(target / "x"), y)
        return Rows({"x": mmap_ninja.np_open_existing(target / "x"), "y": y}, data.job.rows, fancy=True)


class _Documents(Dataset):
    def __init__(self, documents: Any, y: NDArray[np.int64]) -> None:
        self.documents, self.y = documents, y

    def shuffled(self, seed: int) -> Iterator[Batch]:
        order = np.random.default_rng(seed).permutation(len(self.y))
        return (self.take(order[first : first + BATCH]) for first in range(0, len(order), BATCH))

    def sequential(self) -> Iterator[Batch]:
        rows = np.arange(len(self.y))
        return (self.take(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH))

    def take(self, rows: NDArray[np.int64]) -> Batch:
        import torch

        parts = self.documents[rows]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return {
            "values": torch.from_numpy(np.concatenate(parts)),
            "offsets": torch.from_numpy(offsets),
            "y": torch.from_numpy(self.y[rows]),
        }


PEERS = (MmapNinja,)
