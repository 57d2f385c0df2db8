"""`Writer`: rows that come from anywhere into a new store, or behind those of an existing one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shardstore.building import Build, Mode, explained_errors
from shardstore.changes.appending import Growth, appended_type
from shardstore.codecs import DEFAULT_CODEC
from shardstore.column_progress import ColumnProgress, read_progress, start_over, take_over, write_progress
from shardstore.column_types import ColumnType, TypeLike, parse_type
from shardstore.columns import ColumnStart, ColumnWriter
from shardstore.destinations import Target, writing
from shardstore.encoding import ColumnEncoder, contiguous
from shardstore.errors import DestinationError, SchemaError
from shardstore.ragged import Values
from shardstore.schema import DEFAULT_SHARD_BYTES, Field


class Writer:
    """Writes a store, any number of rows at a time.

    A context manager: a clean exit commits the rows, an exception leaves `dest` as it was. Memory is one chunk
    per compressed column, whatever the number of rows.

    Args:
        dest: the store's directory.
        codec: one codec for all columns, or one per column; see `shardstore.codecs`.
        shard_bytes: target size of the widest column's shard files.
        chunk_bytes: target size of a decoded chunk; by default 256 KiB raw and 64 KiB compressed.
        mode: `"create"` (`dest` must not exist), `"overwrite"` (replaces the store there), `"append"` (adds rows to the
            store there, in its own layout and with its own codecs; nobody else can change it meanwhile) or `"resume"`
            (goes on with a new store whose writer was interrupted, behind its last whole shard: `num_rows` says which
            row is the next one to append. What is finished stays for the next attempt if this one fails).
        types: by column, what its rows are where the first ones do not tell; see `shardstore.column_types`. Values are
            cast to a declared dtype if none changes.

    Raises:
        DestinationError: if `dest` cannot be used, or its disk is full.
        LockedError: if somebody else is writing to it.
        SchemaError: if codecs or appended columns do not fit.

    Example:
        >>> with Writer("store") as writer:  # doctest: +SKIP
        ...     writer.append({"x": np.zeros((10, 3)), "y": np.arange(10)})
    """

    def __init__(
        self,
        dest: str | os.PathLike[str],
        *,
        codec: str | Mapping[str, str] = DEFAULT_CODEC,
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
        self._columns: dict[str, ColumnWriter] = {}
        self._resources = ExitStack()
        self._target: Target | None = None
        # What an interrupted writer has finished of a new store, by column.
        self.taken_over: dict[str, ColumnProgress] = {}
        # By ragged column, how many items the rows of each finished shard of rows end with.
        self._items_at: dict[str, list[int]] = {}
        self._entered = False
        # While rows are on their way the columns differ in length; a write that fails leaves them so.
        self._torn = False
        self._process: int | None = None

    @property
    def directory(self) -> Path:
        """Where shard files are written."""
        assert self._target is not None
        return self._target.directory

    @property
    def num_rows(self) -> int:
        """How many rows the store would have if this ended now: those that were there, and those appended."""
        return self._rows

    def append(self, rows: Mapping[str, Any]) -> None:
        """Write rows: by column, arrays of one length. The first call settles names, dtypes and row shapes.

        A column's rows may also be a `Ragged`, or a list: of strings, of bytes, or of arrays. Arrays of one shape make
        a fixed column, arrays that differ in length a ragged one; `types` settles it for good.

        Raises:
            SchemaError: if columns, dtypes, row shapes or lengths differ from what is expected; nothing of the
                call is written then.
        """
        if self._target is None:
            raise ValueError("this Writer is not open: use it in a with statement")
        self._refuse_in_child()
        known = {name: len(encoder.categories) for name, encoder in self._encoders.items()}
        try:
            encoded = self._checked(rows)
        except BaseException:
            for name, count in known.items():
                self._encoders[name].forget(count)
            raise
        self._refuse_if_torn()
        self._torn = True
        with explained_errors(self._destination, self._target.kept):
            self._write({name: contiguous(values, self._fields[name]) for name, values in encoded.items()})
        self._torn = False

    def _checked(self, rows: Mapping[str, Any]) -> dict[str, Values]:
        """Return rows as they are stored, once it is sure that they fit; the first ones settle the columns."""
        encoders, encoded = self.encode(rows)
        if len({len(values) for values in encoded.values()}) > 1:
            lengths = ", ".join(f"{name!r} has {len(values):,}" for name, values in encoded.items())
            raise SchemaError(f"all columns must have the same number of rows, but {lengths}")
        fields = [encoders[name].field(values) for name, values in encoded.items()]
        if not self._fields:
            self._begin(fields)
            self._encoders = encoders
        self._check(fields)
        return encoded

    def encode(
        self, rows: Mapping[str, Any], first_row: int | None = None
    ) -> tuple[dict[str, ColumnEncoder], dict[str, Values]]:
        """Return rows as they are stored, and what has made them so; the number of the first one is for messages."""
        if self._fields and rows.keys() != self._fields.keys():
            raise SchemaError(f"expected the columns {', '.join(self._fields)}, found {', '.join(rows) or 'none'}")
        for name in self._types:
            if name not in rows:
                raise SchemaError(f"a type is given for column {name!r}, but the columns are {', '.join(rows)}")
        encoders = self._encoders or {name: ColumnEncoder(name, self._types.get(name)) for name in rows}
        first = self._rows if first_row is None else first_row
        return encoders, {
            name: encoders[name].encode(values, self._fields.get(name), first) for name, values in rows.items()
        }

    def _refuse_if_torn(self) -> None:
        if self._torn:
            raise DestinationError(f"an append to {self._destination} failed half-way: start again with a new Writer")

    def _refuse_in_child(self) -> None:
        if os.getpid() != self._process:
            raise DestinationError(
                f"{self._destination} is being written by process {self._process}, which forked this one: write it "
                "there, and end this process, or leave the with statement by an exception"
            )

    def _begin(self, fields: Iterable[Field], starts: Mapping[str, ColumnStart] | None = None) -> None:
        """Settle the columns, and begin to write them: where they start, or behind what there is of them."""
        assert self._target is not None
        layouts = self._target.layouts(fields, *self._options)
        for name, layout in layouts.items():
            start = self._target.start(name) if starts is None else starts[name]
            self._columns[name] = self._resources.enter_context(ColumnWriter(self._target.directory, layout, start))
        self._fields = {name: layout.field for name, layout in layouts.items()}

    def _write(self, rows: Mapping[str, Values]) -> None:
        """Write rows up to the end of one shard after the other."""
        assert self._target is not None
        start, count, shard_rows = 0, len(next(iter(rows.values()))), self._target.shard_rows
        while start < count:
            stop = min(count, start + shard_rows - self._rows % shard_rows)
            for name, column in self._columns.items():
                column.append(rows[name][start:stop])
            self._rows += stop - start
            start = stop
            if self._rows % shard_rows == 0:
                self._note()

    def _note(self) -> None:
        """Write down what is finished of a new store, at the end of a shard of rows."""
        assert self._target is not None
        for name, column in self._columns.items():
            if self._fields[name].is_ragged:
                self._items_at.setdefault(name, []).append(column.items)
        shards = self._rows // self._target.shard_rows
        # Of many shards not each time: a journal names all of them.
        if isinstance(self._target, Build) and shards % max(1, shards // 100) == 0:
            columns = {
                name: ColumnProgress(
                    replace(column.whole_shards(), field=self._fields[name]), tuple(self._items_at.get(name, ()))
                )
                for name, column in self._columns.items()
            }
            write_progress(self._target.directory, columns)

    def _resume(self, directory: Path) -> None:
        """Go on behind what an interrupted writer has finished; raise `SchemaError` if it was one of other layouts."""
        assert self._target is not None
        found = read_progress(directory)
        fields = [progress.entry.field for progress in found.values()]
        layouts = {name: progress.layout for name, progress in found.items()}
        if not fields or layouts != self._target.layouts(fields, *self._options):
            raise SchemaError(
                f"what is finished of {self._destination} was written in other columns, sizes or codecs than are asked "
                'for now: resume it with the same arguments, or begin a new one with mode="create"'
            )
        progress, shards = take_over(directory, found)
        if not shards:
            start_over(directory)
            return
        self._rows = shards * self._target.shard_rows
        self.taken_over = progress
        self._begin(fields, {name: column.start(directory, shards) for name, column in progress.items()})
        self._items_at = {name: list(column.items_at[:shards]) for name, column in progress.items() if column.items_at}
        self._encoders = {
            field.name: ColumnEncoder(field.name, self._types.get(field.name), field.categories) for field in fields
        }

    def _check(self, fields: list[Field]) -> None:
        for field in fields:
            expected = self._fields[field.name]
            is_right = field == expected
            if field.kind == expected.kind == "categorical":
                is_right = field.dtype == expected.dtype and field.row_shape == expected.row_shape
            if not is_right:
                hint = ""
                if field.is_ragged != expected.is_ragged or (not expected.is_ragged and field.dtype == expected.dtype):
                    hint = f'; if rows differ in length, say so: types={{"{field.name}": "ragged"}}'
                raise SchemaError(f"column {field.name!r} holds {expected}, but these rows are {field}{hint}")
            self._fields[field.name] = field

    def _commit(self) -> None:
        assert self._target is not None
        self._refuse_in_child()
        self._refuse_if_torn()
        if not self._fields:
            raise SchemaError("nothing was appended, so the store's columns are unknown")
        with explained_errors(self._destination, self._target.kept):
            entries = {
                name: replace(column.finish(), field=self._fields[name]) for name, column in self._columns.items()
            }
        self._target.commit(self._rows, entries, self.provenance)

    def __enter__(self) -> Self:
        if self._entered:
            raise ValueError("a Writer is for one with statement: make a new one")
        self._entered = True
        self._process = os.getpid()
        self._target = target = self._resources.enter_context(writing(self._destination, self._mode))
        with ExitStack() as undo:
            undo.push(self._resources)  # what is open is closed again if this fails
            if isinstance(target, Growth):
                self._rows = target.rows
                for name in self._types:
                    if name not in target.fields:
                        raise SchemaError(
                            f"a type is given for column {name!r}, but the columns are {', '.join(target.fields)}"
                        )
                self._types = {
                    name: appended_type(field, self._types.get(name)) for name, field in target.fields.items()
                }
                self._encoders = {
                    name: ColumnEncoder(name, self._types[name], field.categories)
                    for name, field in target.fields.items()
                }
                self._begin(target.fields.values())
            elif target.resumed:
                self._resume(target.directory)
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with self._resources:
                self._commit()
        else:
            self._resources.__exit__(kind, error, trace)
        self._target = None
