"""Export: a store back to `.npy` files, with an index by which an ingest makes the same columns of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore import files
from shardstore.building import check_destination, explained_errors
from shardstore.column import Column
from shardstore.export_index import INDEX_FILE, categories_file, exported_files, index_document
from shardstore.progress import Advance, byte_progress
from shardstore.ragged import Ragged, offsets_of
from shardstore.schema import EXTENDED_DTYPES, Field
from shardstore.table import Table

_BLOCK_NBYTES = 4 << 20


def export_npy(table: Table, directory: str | os.PathLike[str], progress: bool | None = None) -> list[Path]:
    """Write each column to `DIRECTORY/COLUMN.npy`, block by block, and return the files' paths.

    A ragged column becomes `COLUMN.values.npy` and `COLUMN.offsets.npy` (int64, one more than rows; strings and bytes
    have uint8 values), a categorical one the numbers in `COLUMN.npy` and their names in `COLUMN.categories.npy`. Types
    that NumPy's files do not have (bfloat16, float8) are written as the integers of their bits. `columns.json` says
    what the files cannot; with it, an ingest of the directory makes the same columns again, bit for bit.

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
    names: list[str] = []
    with explained_errors(destination), byte_progress("export", table.nbytes, progress) as advance:
        partial = files.partial_directory(destination)
        try:
            for name in table.columns:
                names += _write_column(table[name], partial, advance)
            index = json.dumps(index_document(table.schema.values()), indent=1)
            files.write_file(partial / INDEX_FILE, index.encode())
            names.append(INDEX_FILE)
            files.publish_directory(partial, destination)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return [destination / name for name in names]


def _write_column(column: Column, directory: Path, advance: Advance) -> list[str]:
    """Write a column's files and return their names."""
    field = column.field
    names = exported_files(field)
    if field.is_ragged:
        offsets = offsets_of(column.lengths)
        blocks = (rows.values for rows in column.blocks(_BLOCK_NBYTES) if isinstance(rows, Ragged))
        _write_array(directory / names["values"], field, (int(offsets[-1]), *field.row_shape), blocks, advance)
        np.save(directory / names["offsets"], offsets)
        return list(names.values())
    rows = (block for block in column.blocks(_BLOCK_NBYTES) if isinstance(block, np.ndarray))
    _write_array(directory / names["array"], field, (len(column), *field.row_shape), rows, advance)
    if field.kind != "categorical":
        return list(names.values())
    categories = categories_file(field.name)
    np.save(directory / categories, np.array(field.categories, np.str_))
    return [*names.values(), categories]


def _write_array(
    path: Path, field: Field, shape: tuple[int, ...], blocks: Iterable[NDArray[Any]], advance: Advance
) -> None:
    # What NumPy's files cannot name is written as what carries it.
    dtype = field.stored_dtype if field.dtype.name in EXTENDED_DTYPES else field.dtype
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with path.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            advance(block.nbytes)
        file.flush()
        os.fsync(file.fileno())
