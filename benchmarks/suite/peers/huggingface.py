"""Hugging Face datasets: a memory-mapped Arrow file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Job, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer
from benchmarks.suite.peers.arrow_tables import allow_read_only, tables, tensors

if TYPE_CHECKING:
    import datasets

FILE = "data.arrow"


class HuggingFace(Peer):
    """A dataset in Arrow's format.

    Its torch format makes tensors row by row, and was 10 times slower here than its Arrow format, of which a batch is
    one column that NumPy and torch can view.
    """

    name: ClassVar[str] = "Hugging Face datasets"
    distributions: ClassVar = ("datasets", "pyarrow")
    imports: ClassVar = ("datasets",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows"})
    lacks: ClassVar = {"zstd": "its Arrow files are not compressed"}
    how: ClassVar[str] = '`ds.with_format("arrow")[rows]` of a permutation, `.iter(256)`; columns to NumPy to torch'

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write tables of 1,000 rows with the writer that `Dataset.from_generator` has, too."""
        import datasets
        from datasets.arrow_writer import ArrowWriter

        target.mkdir()
        job = data.job
        x: Any = datasets.Value("large_binary")
        if job.layout != "ragged":
            # A flat list: its types for arrays of several axes are decoded row by row.
            x = datasets.Sequence(datasets.Value(job.dtype), length=int(np.prod(job.shape)))
        features = datasets.Features({"x": x, "y": datasets.Value("int64")})
        with ArrowWriter(path=str(target / FILE), features=features) as writer:
            for table in tables(data, features.arrow_schema):
                writer.write_table(table)
            writer.finalize()

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Map the file. Nothing of it goes to a cache, and nothing to the network."""
        import datasets

        allow_read_only()
        datasets.disable_progress_bars()
        datasets.config.HF_HUB_OFFLINE = True
        datasets.config.HF_DATASETS_CACHE = target / "cache"
        dataset = datasets.Dataset.from_file(str(target / FILE))
        return _Arrow(dataset.with_format("arrow"), data.job)


class _Arrow(Dataset):
    def __init__(self, dataset: datasets.Dataset, job: Job) -> None:
        self.dataset, self.job = dataset, job

    def shuffled(self, seed: int) -> Iterator[Batch]:
        # Faster than `shuffle`, which puts a table of row numbers before the rows.
        order = np.random.default_rng(seed).permutation(self.job.rows)
        return (self.take(order[first : first + BATCH]) for first in range(0, len(order), BATCH))

    def sequential(self) -> Iterator[Batch]:
        return (tensors(table, self.job, mapped=True) for table in self.dataset.iter(BATCH))

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return tensors(self.dataset[rows], self.job, mapped=True)


PEERS = (HuggingFace,)
