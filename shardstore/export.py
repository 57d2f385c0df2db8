"""Export: a store back to `.npy` files, one per column."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO

import numpy as np

from shardstore import files
from shardstore.building import check_destination, explained_errors
from shardstore.progress import Advance, byte_progress
from shardstore.table import Column, Table

_BLOCK_NBYTES = 4 << 20


def export_npy(table: Table, directory: str | os.PathLike[str], progress: bool | None = None) -> list[Path]:
    """Write each column to `DIRECTORY/COLUMN.npy`, block by block, and return the files' paths.

    The directory must not exist; it appears whole, or not at all.

    Args:
        table: a store or a view.
        directory: where the files go.
        progress: whether to draw a progress bar; None draws one on a terminal.

    Raises:
        DestinationError: if the directory exists or cannot be written.
    """
    destination = Path(directory)
    check_destination(destination, "create")
    with explained_errors(destination), byte_progress("export", table.nbytes, progress) as advance:
        partial = files.partial_directory(destination)
        try:
            for name in table.columns:
                with (partial / f"{name}.npy").open("xb") as file:
                    _write_column(table[name], file, advance)
            files.publish_directory(partial, destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return [destination / f"{name}.npy" for name in table.columns]


def _write_column(column: Column, file: IO[bytes], advance: Advance) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(column.dtype), "fortran_order": False, "shape": column.shape}
    np.lib.format.write_array_header_1_0(file, header)
    block_rows = max(1, _BLOCK_NBYTES // max(1, column.nbytes // max(1, len(column))))
    for start in range(0, len(column), block_rows):
        block = column[start : start + block_rows]
        file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        advance(block.nbytes)
    file.flush()
    os.fsync(file.fileno())
