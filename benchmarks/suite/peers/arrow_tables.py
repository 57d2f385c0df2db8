"""Arrow tables of a job's rows, and batches out of them: what Hugging Face datasets and Lance have in common."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.suite.jobs import BLOCK_NBYTES, Block, Dumps, Job
from benchmarks.suite.peer import Batch

if TYPE_CHECKING:
    import pyarrow

MOST_ROWS = 1_000
"""Rows of a record batch: what the writer of Hugging Face datasets takes, too."""


def tables(data: Dumps, schema: pyarrow.Schema) -> Iterator[pyarrow.Table]:
    """Yield all rows in order, as tables with the columns `x` and `y`, without a loop over rows.

    Args:
        data: the dumps.
        schema: its `x` is a fixed-size list, a list, or `large_binary` for documents.
    """
    import pyarrow

    for block in data.blocks(max(1, min(MOST_ROWS, BLOCK_NBYTES // data.job.row_nbytes))):
        y = pyarrow.array(np.asarray(block["y"]))
        yield pyarrow.Table.from_arrays([_column(block, schema.field("x").type), y], schema=schema)


def _column(block: Block, kind: pyarrow.DataType) -> pyarrow.Array:
    import pyarrow

    x = block["x"]
    if pyarrow.types.is_large_binary(kind):
        offsets = np.cumsum([0, *map(len, x)])
        buffers = [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(np.concatenate(x))]
        return pyarrow.LargeBinaryArray.from_buffers(kind, len(x), buffers)
    items = pyarrow.array(np.ascontiguousarray(x).reshape(-1))
    if pyarrow.types.is_fixed_size_list(kind):
        return pyarrow.FixedSizeListArray.from_arrays(items, type=kind)
    offsets = np.arange(len(x) + 1, dtype=np.int32) * np.int32(len(items) // len(x))
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), items, type=kind)


def allow_read_only() -> None:
    """Have torch take Arrow's buffers without a warning: the memory is the batch's own, though Arrow says read-only."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def tensors(table: pyarrow.Table, job: Job, mapped: bool) -> Batch:
    """Return a table's rows as tensors.

    Args:
        table: with the columns `x` and `y`.
        job: the job.
        mapped: whether a column of one chunk may be a view of a mapped file, and has to be copied. Columns of several
            chunks are copied when these are put together.
    """
    import torch

    x, y = table.column("x"), table.column("y")
    whole, own = x.combine_chunks(), not mapped or x.num_chunks > 1
    batch = {"y": torch.from_numpy(y.to_numpy().copy())}
    if job.layout == "ragged":
        values, offsets = _documents(whole)
        batch["values"] = torch.from_numpy(values if own else values.copy())
        batch["offsets"] = torch.from_numpy(offsets)
        return batch
    items: NDArray[Any] = whole.flatten().to_numpy(zero_copy_only=True).reshape(len(whole), *job.shape)
    batch["x"] = torch.from_numpy(items if own else items.copy())
    return batch


def _documents(column: pyarrow.LargeBinaryArray) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of documents end to end, and where they begin."""
    _, starts, contents = column.buffers()
    offsets = np.frombuffer(starts, np.int64)[column.offset : column.offset + len(column) + 1]
    return np.frombuffer(contents, np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def cut(batch: Batch, rows: int) -> Iterator[Batch]:
    """Yield batches of `rows` rows as views of a larger one."""
    for first in range(0, len(batch["y"]), rows):
        last = first + rows
        if "x" in batch:
            yield {"x": batch["x"][first:last], "y": batch["y"][first:last]}
            continue
        offsets = batch["offsets"][first : last + 1]
        values = batch["values"][offsets[0] : offsets[-1]]
        yield {"values": values, "offsets": offsets - offsets[0], "y": batch["y"][first:last]}
