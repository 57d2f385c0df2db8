"""`Writer`: a new store from rows that come from anywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shardstore.building import Build, Mode, building, explained_errors
from shardstore.columns import ColumnWriter, column_entry
from shardstore.errors import DestinationError, SchemaError
from shardstore.schema import DEFAULT_SHARD_BYTES, ColumnLayout, Field, plan_layouts


class Writer:
    """Writes a new store, any number of rows at a time.

    A context manager: a clean exit commits the store, an exception leaves nothing at `dest`. Memory is one chunk
    per compressed column, whatever the number of rows.

    Args:
        dest: the store's directory.
        codec: one codec for all columns, or one per column; see `shardstore.codecs`.
        shard_bytes: target size of the widest column's shard files.
        chunk_bytes: target size of a decoded chunk; by default 256 KiB raw and 64 KiB compressed.
        mode: `"create"` (`dest` must not exist) or `"overwrite"` (replaces the store there).

    Raises:
        DestinationError: if `dest` cannot be used, or its disk is full.
        SchemaError: if codecs or appended columns do not fit.

    Example:
        >>> with Writer("store") as writer:  # doctest: +SKIP
        ...     writer.append({"x": np.zeros((10, 3)), "y": np.arange(10)})
    """

    def __init__(
        self,
        dest: str | os.PathLike[str],
        *,
        codec: str | Mapping[str, str] = "raw",
        shard_bytes: int | str = DEFAULT_SHARD_BYTES,
        chunk_bytes: int | str | None = None,
        mode: Mode = "create",
    ) -> None:
        self._destination = Path(dest)
        self._options = (codec, shard_bytes, chunk_bytes)
        self._mode = mode
        self._rows = 0
        self._layouts: dict[str, ColumnLayout] = {}
        self._columns: dict[str, ColumnWriter] = {}
        self._resources = ExitStack()
        self._build: Build | None = None
        self._entered = False
        # While rows are on their way the columns differ in length; a write that fails leaves them so.
        self._torn = False

    @property
    def num_rows(self) -> int:
        """Rows appended so far."""
        return self._rows

    def append(self, rows: Mapping[str, ArrayLike]) -> None:
        """Write rows: by column, arrays of one length. The first call settles names, dtypes and row shapes.

        Raises:
            SchemaError: if columns, dtypes, row shapes or lengths differ from what is expected; nothing of the
                call is written then.
        """
        if self._build is None:
            raise ValueError("this Writer is not open: use it in a with statement")
        masked = sys.modules.get("numpy.ma")  # an import of 15 ms; without it there is no masked array
        for name, values in rows.items():
            if masked is not None and isinstance(values, masked.MaskedArray):
                raise SchemaError(f"column {name!r} is a masked array, and a store keeps no masks: fill it first")
        arrays = {name: np.asarray(values) for name, values in rows.items()}
        for name, array in arrays.items():
            if array.ndim == 0:
                raise SchemaError(f"column {name!r} is a single value; expected an array of rows")
        if len({len(array) for array in arrays.values()}) > 1:
            lengths = ", ".join(f"{name!r} has {len(array):,}" for name, array in arrays.items())
            raise SchemaError(f"all columns must have the same number of rows, but {lengths}")
        fields = [Field.of(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
        if not self._layouts:
            self._start(fields)
        self._check(fields)
        self._refuse_if_torn()
        self._torn = True
        with explained_errors(self._destination):
            for field in fields:
                block = _contiguous(arrays[field.name], field)
                self._columns[field.name].append(block)
        self._torn = False
        self._rows += len(next(iter(arrays.values())))

    def _refuse_if_torn(self) -> None:
        if self._torn:
            raise DestinationError(f"an append to {self._destination} failed half-way: start again with a new Writer")

    def _start(self, fields: list[Field]) -> None:
        assert self._build is not None
        self._layouts = plan_layouts(fields, *self._options)
        for name, layout in self._layouts.items():
            column = ColumnWriter(self._build.directory, layout)
            self._columns[name] = self._resources.enter_context(column)

    def _check(self, fields: list[Field]) -> None:
        if {field.name for field in fields} != self._layouts.keys():
            names = ", ".join(field.name for field in fields)
            raise SchemaError(f"expected the columns {', '.join(self._layouts)}, found {names or 'none'}")
        for field in fields:
            expected = self._layouts[field.name].field
            if field != expected:
                raise SchemaError(f"column {field.name!r} holds {expected}, but these rows are {field}")

    def _commit(self) -> None:
        assert self._build is not None
        self._refuse_if_torn()
        if not self._layouts:
            raise SchemaError("nothing was appended, so the store's columns are unknown")
        with explained_errors(self._destination):
            entries = {
                name: column_entry(self._layouts[name], column.finish()) for name, column in self._columns.items()
            }
        shard_rows = next(iter(self._layouts.values())).shard_rows
        self._build.commit(self._rows, shard_rows, entries, {})

    def __enter__(self) -> Self:
        if self._entered:
            raise ValueError("a Writer is for one with statement: make a new one")
        self._entered = True
        self._build = self._resources.enter_context(building(self._destination, self._mode))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._resources:
            if kind is None:
                self._commit()
        self._build = None


def _contiguous(array: NDArray[Any], field: Field) -> NDArray[Any]:
    return np.ascontiguousarray(array, field.dtype).reshape(array.shape)
