"""Zarr: one store of version 3, read by zarr-python, by zarrs, and by TensorStore."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import Dumps, Layout
from benchmarks.suite.peer import Dataset, Peer
from benchmarks.suite.peers.chunked import CHUNK_NBYTES, MIXES, ChunkedRows, Columns, chunk_rows

CACHE_NBYTES = 256 << 20
"""What TensorStore may keep of decoded chunks."""


class ZarrPython(Peer):
    """zarr-python as it is installed."""

    name: ClassVar[str] = "zarr-python"
    distributions: ClassVar[tuple[str, ...]] = ("zarr",)
    imports: ClassVar[tuple[str, ...]] = ("zarr",)
    layouts: ClassVar[frozenset[Layout]] = frozenset({"array", "windows", "zstd"})
    mixes: ClassVar[str] = MIXES
    how: ClassVar[str] = "`array.oindex[rows]`, chunks of 64 KiB in a file each"

    def ingest(self, data: Dumps, target: Path) -> None:
        """Write a group of two arrays, some megabytes at a time."""
        import zarr.codecs

        job = data.job
        group = zarr.create_group(store=target)
        compressors = zarr.codecs.ZstdCodec(level=3) if job.layout == "zstd" else None
        chunk = chunk_rows(job)
        x = group.create_array(
            "x", shape=(job.rows, *job.shape), chunks=(chunk, *job.shape), dtype=job.dtype, compressors=compressors
        )
        many = min(job.rows, CHUNK_NBYTES // 8)
        y = group.create_array("y", shape=(job.rows,), chunks=(many,), dtype="int64", compressors=compressors)
        for name, array in data.table().items():
            {"x": x, "y": y}[name][:] = array

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the group."""
        return _Zarr(target, data)


class _Zarr(ChunkedRows):
    def __init__(self, target: Path, data: Dumps) -> None:
        import zarr

        super().__init__(data.job)
        group = zarr.open_group(target, mode="r")
        self.columns: dict[str, Any] = {name: group[name] for name in ("x", "y")}

    def read(self, rows: slice | NDArray[np.int64]) -> Columns:
        if isinstance(rows, slice):
            return {name: column[rows] for name, column in self.columns.items()}
        return {name: column.oindex[rows] for name, column in self.columns.items()}


class Zarrs(ZarrPython):
    """The same with the codec pipeline of zarrs, in Rust."""

    name: ClassVar[str] = "zarrs"
    distributions: ClassVar[tuple[str, ...]] = ("zarr", "zarrs")
    imports: ClassVar[tuple[str, ...]] = ("zarr", "zarrs")
    stored_as: ClassVar[str | None] = "zarr-python"
    how: ClassVar[str] = '`zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})` and the same'

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open the group with the other pipeline."""
        import zarr

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        return _Zarr(target, data)


class TensorStore(ZarrPython):
    """TensorStore on the same store."""

    name: ClassVar[str] = "TensorStore"
    distributions: ClassVar[tuple[str, ...]] = ("tensorstore",)
    imports: ClassVar[tuple[str, ...]] = ("tensorstore",)
    stored_as: ClassVar[str | None] = "zarr-python"
    how: ClassVar[str] = "`x[rows].read()` of both columns at once, a cache of 256 MiB, checked when opened"

    def open(self, target: Path, data: Dumps) -> Dataset:
        """Open both arrays."""
        return _TensorStore(target, data)


class _TensorStore(ChunkedRows):
    def __init__(self, target: Path, data: Dumps) -> None:
        import tensorstore

        super().__init__(data.job)
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_NBYTES}})
        opening = {
            name: tensorstore.open(
                {
                    "driver": "zarr3",
                    "kvstore": {"driver": "file", "path": str(target / name)},
                    # Nobody writes meanwhile: a file's time need not be looked at with every read.
                    "recheck_cached_data": "open",
                },
                read=True,
                context=context,
            )
            for name in ("x", "y")
        }
        self.columns = {name: future.result() for name, future in opening.items()}

    def read(self, rows: slice | NDArray[np.int64]) -> Columns:
        reading = {name: column[rows].read() for name, column in self.columns.items()}
        return {name: np.asarray(future.result()) for name, future in reading.items()}


PEERS = (ZarrPython, Zarrs, TensorStore)
