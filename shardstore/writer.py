"""`Writer`: a new store from rows that come from anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shardstore.building import Build, Mode, building, explained_errors
from shardstore.column_types import ColumnType, TypeLike, parse_type
from shardstore.columns import ColumnWriter
from shardstore.encoding import ColumnEncoder, contiguous
from shardstore.errors import DestinationError, SchemaError
from shardstore.schema import DEFAULT_SHARD_BYTES, Field, plan_layouts


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
        types: by column, what its rows are where the first ones do not tell; see `shardstore.column_types`. Values are
            cast to a declared dtype if none changes.

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
        types: Mapping[str, ColumnType | TypeLike] | None = None,
    ) -> None:
        self._destination = Path(dest)
        self._options = (codec, shard_bytes, chunk_bytes)
        self._mode = mode
        # What the manifest keeps of where the rows came from: JSON values without floats.
        self.provenance: dict[str, Any] = {}
        self._rows = 0
        self._types = {name: parse_type(name, given) for name, given in (types or {}).items()}
        self._encoders: dict[str, ColumnEncoder] = {}
        self._fields: dict[str, Field] = {}
        self._shard_rows = 0
        self._columns: dict[str, ColumnWriter] = {}
        self._resources = ExitStack()
        self._build: Build | None = None
        self._entered = False
        # While rows are on their way the columns differ in length; a write that fails leaves them so.
        self._torn = False
        self._process: int | None = None

    @property
    def num_rows(self) -> int:
        """Rows appended so far."""
        return self._rows

    def append(self, rows: Mapping[str, Any]) -> None:
        """Write rows: by column, arrays of one length. The first call settles names, dtypes and row shapes.

        A column's rows may also be a `Ragged`, or a list: of strings, of bytes, or of arrays. Arrays of one shape make
        a fixed column, arrays that differ in length a ragged one; `types` settles it for good.

        Raises:
            SchemaError: if columns, dtypes, row shapes or lengths differ from what is expected; nothing of the
                call is written then.
        """
        if self._build is None:
            raise ValueError("this Writer is not open: use it in a with statement")
        self._refuse_in_child()
        if self._fields and rows.keys() != self._fields.keys():
            raise SchemaError(f"expected the columns {', '.join(self._fields)}, found {', '.join(rows) or 'none'}")
        for name in self._types:
            if name not in rows:
                raise SchemaError(f"a type is given for column {name!r}, but the columns are {', '.join(rows)}")
        encoders = self._encoders or {name: ColumnEncoder(name, self._types.get(name)) for name in rows}
        encoded = {
            name: encoders[name].encode(values, self._fields.get(name), self._rows) for name, values in rows.items()
        }
        if len({len(values) for values in encoded.values()}) > 1:
            lengths = ", ".join(f"{name!r} has {len(values):,}" for name, values in encoded.items())
            raise SchemaError(f"all columns must have the same number of rows, but {lengths}")
        fields = [encoders[name].field(values) for name, values in encoded.items()]
        if not self._fields:
            self._start(fields)
            self._encoders = encoders
        self._check(fields)
        self._refuse_if_torn()
        self._torn = True
        with explained_errors(self._destination):
            for field in fields:
                self._columns[field.name].append(contiguous(encoded[field.name], field))
        self._torn = False
        self._rows += len(next(iter(encoded.values())))

    def _refuse_if_torn(self) -> None:
        if self._torn:
            raise DestinationError(f"an append to {self._destination} failed half-way: start again with a new Writer")

    def _refuse_in_child(self) -> None:
        if os.getpid() != self._process:
            raise DestinationError(
                f"{self._destination} is being written by process {self._process}, which forked this one: write it "
                "there, and end this process, or leave the with statement by an exception"
            )

    def _start(self, fields: list[Field]) -> None:
        assert self._build is not None
        layouts = plan_layouts(fields, *self._options)
        for name, layout in layouts.items():
            column = ColumnWriter(self._build.directory, layout)
            self._columns[name] = self._resources.enter_context(column)
            self._shard_rows = (layout.ranges or layout.data).shard_rows
        self._fields = {field.name: field for field in fields}

    def _check(self, fields: list[Field]) -> None:
        for field in fields:
            expected = self._fields[field.name]
            if field != expected and field.kind != "categorical":
                hint = ""
                if field.is_ragged != expected.is_ragged or (not expected.is_ragged and field.dtype == expected.dtype):
                    hint = f'; if rows differ in length, say so: types={{"{field.name}": "ragged"}}'
                raise SchemaError(f"column {field.name!r} holds {expected}, but these rows are {field}{hint}")
            self._fields[field.name] = field

    def _commit(self) -> None:
        assert self._build is not None
        self._refuse_in_child()
        self._refuse_if_torn()
        if not self._fields:
            raise SchemaError("nothing was appended, so the store's columns are unknown")
        with explained_errors(self._destination):
            entries = {
                name: replace(column.finish(), field=self._fields[name]) for name, column in self._columns.items()
            }
        self._build.commit(self._rows, self._shard_rows, entries, self.provenance)

    def __enter__(self) -> Self:
        if self._entered:
            raise ValueError("a Writer is for one with statement: make a new one")
        self._entered = True
        self._process = os.getpid()
        self._build = self._resources.enter_context(building(self._destination, self._mode))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._resources:
            if kind is None:
                self._commit()
        self._build = None
