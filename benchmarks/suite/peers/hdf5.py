"""HDF5 through h5py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BATCH, Dumps, Layout
from benchmarks.suite.peer import Batch, Dataset, Peer
from benchmarks.suite.peers.chunked import ChunkedRows, Columns


class H5py(Peer):
    """One file, whose datasets are contiguous."""

    name: ClassVar[str] = "h5py"
    distributions: ClassVar = ("h5py",)
    imports: ClassVar = ("h5py",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "ragged", "windows"})
    lacks: ClassVar = {"zstd": "no zstd without a plugin"}
    how: ClassVar[str] = "contiguous datasets, `dataset[rows]` with the rows sorted; documents: `vlen_dtype`"

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write a file with two datasets."""
        import h5py

        target.mkdir()
        with h5py.File(target / "rows.h5", "w") as file:
            if data.job.layout != "ragged":
                for name, rows in data.table().items():
                    file.create_dataset(name, data=rows)
                return
            file.create_dataset("y", data=data.array("y"))
            x = file.create_dataset("x", (data.job.rows,), h5py.vlen_dtype(np.uint8))
            for block in data.blocks():
                documents = np.empty(len(block["x"]), object)
                documents[:] = block["x"]
                x[block["y"][0] : block["y"][-1] + 1] = documents

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the file."""
        return (_Documents if data.job.layout == "ragged" else _Rows)(target, data)


class _Rows(ChunkedRows):
    def __init__(self, target: Path, data: Dumps) -> None:
        import h5py

        super().__init__(data.job)
        self.file = h5py.File(target / "rows.h5", "r")
        self.columns = {name: self.file[name] for name in ("x", "y")}

    def read(self, rows: slice | NDArray[np.int64]) -> Columns:
        if isinstance(rows, slice):
            return {name: column[rows] for name, column in self.columns.items()}
        ordered, places = np.unique(rows, return_inverse=True)  # h5py wants rising rows, each once
        return {name: column[ordered][places] for name, column in self.columns.items()}

    def close(self) -> None:
        self.file.close()


class _Documents(_Rows):
    def sequential(self) -> Iterator[Batch]:
        for first in range(0, self.job.rows, BATCH):
            yield self._joined(self.read(slice(first, min(first + BATCH, self.job.rows))))

    def take(self, rows: NDArray[np.int64]) -> Batch:
        return self._joined(self.read(rows))

    @staticmethod
    def _joined(columns: Columns) -> Batch:
        import torch

        offsets = np.zeros(len(columns["x"]) + 1, np.int64)
        np.cumsum([len(document) for document in columns["x"]], out=offsets[1:])
        return {
            "values": torch.from_numpy(np.concatenate(columns["x"])),
            "offsets": torch.from_numpy(offsets),
            "y": torch.from_numpy(columns["y"]),
        }


PEERS = (H5py,)
