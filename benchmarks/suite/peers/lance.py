"""Lance: columns in fragments, read by row number or by a scanner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Job, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer
from benchmarks.suite.peers.arrow_tables import allow_read_only, cut, tables, tensors

if TYPE_CHECKING:
    import lance
    import pyarrow

TAKEN_NBYTES = 8_000_000
"""Bytes that the shuffled epoch takes at once: several batches a call are faster than one, up to some megabytes."""
TAKEN_BATCHES = 16


class Lance(Peer):
    """A dataset in Lance's format."""

    name: ClassVar[str] = "Lance"
    distributions: ClassVar = ("pylance", "pyarrow")
    imports: ClassVar = ("lance",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows", "zstd"})
    how: ClassVar[str] = "`ds.take(rows)` of a permutation, up to 16 batches a call; `ds.scanner(batch_size=256)`"
    sharded: ClassVar[bool] = True

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write fragments of the job's number."""
        import lance
        import pyarrow

        schema = _schema(data.job)
        batches = (batch for table in tables(data, schema) for batch in table.to_batches())
        reader = pyarrow.RecordBatchReader.from_batches(schema, batches)
        lance.write_dataset(reader, str(target), max_rows_per_file=max(1, -(-data.job.rows // data.job.shards)))

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the dataset."""
        import lance

        allow_read_only()
        return _Fragments(lance.dataset(str(target)), data.job)


def _schema(job: Job) -> pyarrow.Schema:
    import pyarrow

    x: pyarrow.DataType = pyarrow.large_binary()
    metadata = {"lance-encoding:compression": "zstd"} if job.layout == "zstd" else None
    if job.layout != "ragged":
        items = pyarrow.field("item", pyarrow.from_numpy_dtype(np.dtype(job.dtype)), metadata=metadata)
        # Fixed-size lists stay uncompressed whatever the metadata say; others do not.
        x = pyarrow.list_(items) if metadata else pyarrow.list_(items, int(np.prod(job.shape)))
    return pyarrow.schema([pyarrow.field("x", x, metadata=metadata), pyarrow.field("y", pyarrow.int64())])


class _Fragments(Dataset):
    def __init__(self, dataset: lance.LanceDataset, job: Job) -> None:
        self.dataset, self.job = dataset, job

    def shuffled(self, seed: int) -> Iterator[Batch]:
        order = np.random.default_rng(seed).permutation(self.job.rows)
        batches = max(1, min(TAKEN_BATCHES, TAKEN_NBYTES // (BATCH * self.job.row_nbytes)))
        for first in range(0, len(order), batches * BATCH):
            yield from cut(self.take(order[first : first + batches * BATCH]), BATCH)

    def sequential(self) -> Iterator[Batch]:
        # Strict: without it the last batch of each fragment is a short one.
        found = self.dataset.scanner(batch_size=BATCH, strict_batch_size=True).to_batches()
        return (self._tensors(batch) for batch in found)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return tensors(self.dataset.take(rows), self.job, mapped=False)

    def _tensors(self, batch: Any) -> Batch:
        import pyarrow

        return tensors(pyarrow.Table.from_batches([batch]), self.job, mapped=False)


PEERS = (Lance,)
