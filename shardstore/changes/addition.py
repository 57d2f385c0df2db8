"""A column on its way into a store: written block by block, gone on with where an earlier call was interrupted."""

from __future__ import annotations

import os
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shardstore.building import explained_errors
from shardstore.changes.commits import Change
from shardstore.changes.journal import Journal, take_over
from shardstore.changes.lineage import MadeBy
from shardstore.codecs import Codec
from shardstore.column_progress import ColumnProgress
from shardstore.column_types import ColumnType, TypeLike
from shardstore.columns import NOTHING, ColumnStart, ColumnWriter
from shardstore.encoding import ColumnEncoder, contiguous
from shardstore.errors import SchemaError, SourceError
from shardstore.journals import JOURNAL_FILE
from shardstore.order import check_int
from shardstore.progress import Advance, byte_progress
from shardstore.ragged import Values
from shardstore.schema import DEFAULT_SHARD_BYTES, ColumnLayout, Field, parse_bytes, plan_layouts
from shardstore.table import Table

ColumnFunction = Callable[[dict[str, Any]], Any]
# How much is read or encoded at a time where the user says nothing.
BLOCK_NBYTES = 8 << 20
_MAX_BATCH_ROWS = 65_536


@dataclass(frozen=True)
class AddOptions:
    """How a column is added; see `Store.add_column`."""

    columns: str | Sequence[str] | None = None
    batch_size: int | None = None
    codec: str = "raw"
    type: ColumnType | TypeLike | None = None
    fingerprint: str | None = None
    replace: bool = False
    shard_bytes: int | str = DEFAULT_SHARD_BYTES
    chunk_bytes: int | str | None = None
    progress: bool | None = None

    def check(self, is_function: bool) -> None:
        """Raise `ValueError`, `TypeError` or `SchemaError` if an option makes no sense."""
        if self.batch_size is not None and check_int("batch_size", self.batch_size) < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1")
        if self.fingerprint is not None and (not isinstance(self.fingerprint, str) or not self.fingerprint):
            raise ValueError(f"fingerprint is {self.fingerprint!r}; expected a text, such as a name and a version")
        for name in ("columns", "batch_size"):
            if not is_function and getattr(self, name) is not None:
                raise ValueError(f"{name} is for a function of batches, and these are rows")
        Codec.parse(self.codec)
        parse_bytes(self.shard_bytes)
        if self.chunk_bytes is not None:
            parse_bytes(self.chunk_bytes)


def fits(field: Field, declared: ColumnType | None) -> bool:
    """Whether a column is what a declared type makes."""
    if declared is None:
        return True
    if declared.kind != field.kind:
        return False
    if declared.kind == "categorical":
        return declared.categories is None or declared.categories == field.categories
    return declared.dtype in (None, field.dtype) and declared.item_shape in (None, field.row_shape)


def check_count(name: str, found: int, rows: int) -> None:
    """Raise `SchemaError` unless a column has as many rows as the store."""
    if found != rows:
        raise SchemaError(f"column {name!r} has {found:,} rows, but the store has {rows:,}")


class Addition:
    """A column on its way into a store."""

    def __init__(
        self,
        change: Change,
        table: Table,
        name: str,
        options: AddOptions,
        declared: ColumnType | None,
        made_by: MadeBy | None,
        resumable: bool,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._change = change
        self._table = table
        self._name = name
        self._options = options
        self._declared = declared
        self._made_by = made_by
        self._extra = dict(extra or {})
        self._resumable = resumable and made_by is not None
        self._total = change.manifest.rows
        self._encoder = ColumnEncoder(name, declared)
        self._field: Field | None = None
        self._writer: ColumnWriter | None = None
        self._items_at: list[int] = []
        # How many rows a later call would not have to compute again.
        self._kept = 0
        # Whether what lies in the column's folder is of this or an earlier attempt.
        self._owns_folder = False
        self._process = os.getpid()

    def run(self, values: Any) -> None:
        """Write all rows and commit them; or leave nothing but what a later call goes on with."""
        try:
            if self._resumable:
                self._resume()
            if self._writer is None:
                self._change.free_folder(self._name)
            self._owns_folder = True
            if self._resumable:
                with self._progress() as advance:
                    self._write_all(self._computed(values, advance))
            else:
                self._write_all(self._given(values))
            with self._written():
                self._commit()
        except BaseException as error:
            if self._writer is not None:
                self._writer.__exit__(None, None, None)
            is_missing = self._change.settled and self._name not in self._change.manifest.columns
            is_useless = is_missing and (not self._kept or isinstance(error, SchemaError))
            if self._owns_folder and is_useless and os.getpid() == self._process:  # not a child that the rows forked
                shutil.rmtree(self._change.folder(self._name), ignore_errors=True)
            raise

    def _resume(self) -> None:
        """Take over what an interrupted call of the same function has finished."""
        journal = Journal.read(self._change.folder(self._name))
        if journal is None or journal.made_by != self._made_by:
            return
        progress = journal.progress
        field = progress.entry.field
        if not fits(field, self._declared):
            return
        if field.name != self._name or progress.layout != self._layout(field):
            return
        start = take_over(self._change.path, progress)
        rows_of = start.ranges if field.is_ragged else start.data
        if not rows_of.rows:
            return
        self._field = field
        self._encoder = ColumnEncoder(self._name, self._declared, field.categories)
        self._items_at = list(progress.items_at[: len(start.ranges.records)])
        self._kept = rows_of.rows
        self._open(field, start)

    def _progress(self) -> AbstractContextManager[Advance]:
        total = self._total - (0 if self._writer is None else self._writer.rows)
        row_nbytes = self._table.select(*self._sources()).row_nbytes
        return byte_progress(f"add {self._name}", total * row_nbytes, self._options.progress)

    def _sources(self) -> tuple[str, ...]:
        assert self._made_by is not None
        return self._made_by.columns

    def _computed(self, function: ColumnFunction, advance: Advance) -> Iterator[Any]:
        """Yield what the function makes of each batch, without the rows that are there already."""
        table = self._table.select(*self._sources())
        done = 0 if self._writer is None else self._writer.rows
        if done == self._total and (done or self._declared is not None):
            return
        size = self._options.batch_size or min(_MAX_BATCH_ROWS, max(1, BLOCK_NBYTES // max(1, table.row_nbytes)))
        # The same batches as without an interruption, so that functions of whole batches give the same rows.
        for start in range(done // size * size, max(1, self._total), size):
            stop = min(start + size, self._total)
            batch = table.take(np.arange(start, stop))
            with self._explained(f"the function failed on rows {start:,} to {stop - 1:,}"):
                result = function(batch)
            self._check_batch(result, start, stop)
            yield result[done - start :] if start < done else result
            advance((stop - max(start, done)) * table.row_nbytes)

    def _check_batch(self, result: Any, start: int, stop: int) -> None:
        try:
            found = len(result)
        except TypeError:
            raise SchemaError(
                f"the function of column {self._name!r} returned a {type(result).__name__} for rows {start:,} to "
                f"{stop - 1:,}; expected {stop - start:,} rows: an array, a list or a Ragged"
            ) from None
        if isinstance(result, str | bytes | Mapping) or found != stop - start:
            raise SchemaError(
                f"the function of column {self._name!r} returned a {type(result).__name__} of length {found:,} for "
                f"rows {start:,} to {stop - 1:,}; expected {stop - start:,} rows"
            )

    def _given(self, blocks: Iterable[Any]) -> Iterator[Any]:
        iterator = iter(blocks)
        end = object()
        while True:
            with self._explained(f"the rows from {0 if self._writer is None else self._writer.rows:,} on failed"):
                block = next(iterator, end)
            if block is end:
                return
            yield block

    def _explained(self, what: str) -> _Explained:
        return _Explained(f"column {self._name!r}: {what}", self._kept)

    def _write_all(self, blocks: Iterator[Any]) -> None:
        for block in blocks:
            self._append(block)
        if self._field is None and self._declared is not None:
            self._append([])
        if self._field is None:
            raise SchemaError(
                f"column {self._name!r}: no block of rows came, so its type is unknown; say it with type="
            )
        assert self._writer is not None
        check_count(self._name, self._writer.rows, self._total)

    def _append(self, block: Any) -> None:
        row = 0 if self._writer is None else self._writer.rows
        encoded = self._encoder.encode(block, self._field, row)
        field = self._encoder.field(encoded)
        if self._writer is None:
            self._open(field, NOTHING)
        elif field != self._field and field.kind != "categorical":
            raise SchemaError(
                f"column {self._name!r} holds {self._field}, but the rows from {row:,} on are {field}; if rows differ "
                'in length, say so: type="ragged"'
            )
        self._field = field
        if row + len(encoded) > self._total:
            raise SchemaError(f"column {self._name!r} has more rows than the {self._total:,} of the store")
        with self._written():
            self._write(contiguous(encoded, field))

    def _written(self) -> AbstractContextManager[None]:
        """Explain what the system says while something is written."""
        kept = "nothing was kept of the attempt"
        if self._kept:
            kept = f"rows 0 to {self._kept - 1:,} of {self._name!r} were kept: add it again to go on behind them"
        return explained_errors(self._change.path, kept)

    def _write(self, rows: Values) -> None:
        """Write rows up to the end of one shard after the other."""
        assert self._writer is not None
        shard_rows = self._change.manifest.shard_rows
        start = 0
        while start < len(rows):
            stop = min(len(rows), start + shard_rows - self._writer.rows % shard_rows)
            self._writer.append(rows[start:stop])
            start = stop
            if self._writer.rows % shard_rows == 0:
                self._note()

    def _note(self) -> None:
        """Write down that one more shard of rows is finished."""
        assert self._writer is not None
        assert self._field is not None
        if not self._resumable or not self._field.row_nbytes:
            return
        assert self._made_by is not None
        entry = replace(self._writer.whole_shards(), field=self._field)
        shards = self._writer.rows // self._change.manifest.shard_rows
        if self._field.is_ragged:
            self._items_at.append(self._writer.items)
            shards = bisect_right(self._items_at, entry.data.rows)
        Journal(self._made_by, ColumnProgress(entry, tuple(self._items_at))).write(self._change.folder(self._name))
        self._kept = shards * self._change.manifest.shard_rows

    def _open(self, field: Field, start: ColumnStart) -> None:
        self._writer = ColumnWriter(self._change.path, self._layout(field), start)

    def _layout(self, field: Field) -> ColumnLayout:
        """Return how the column is cut: beside those that the store has, whose chunks it should suit."""
        others = self._change.manifest.columns.values()
        codecs = {entry.field.name: str(entry.data.layout.codec) for entry in others}
        layouts = plan_layouts(
            [*(entry.field for entry in others), field],
            {**codecs, self._name: self._options.codec},
            self._options.shard_bytes,
            self._options.chunk_bytes,
            self._change.manifest.shard_rows,
        )
        return layouts[self._name]

    def _commit(self) -> None:
        assert self._writer is not None
        assert self._field is not None
        entry = replace(
            self._writer.finish(),
            field=self._field,
            extra=self._extra if self._made_by is None else {**self._extra, **self._made_by.to_extra()},
        )
        folder = self._change.folder(self._name)
        folder.mkdir(exist_ok=True)  # which rows without bytes have not made
        self._change.commit({**self._change.manifest.columns, self._name: entry}, [self._name])
        (folder / JOURNAL_FILE).unlink(missing_ok=True)


class _Explained:
    """Turns what a user's code raises into a `SourceError` that says where, and what was kept."""

    def __init__(self, where: str, kept: int) -> None:
        self._where = where
        self._kept = kept

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return  # Ctrl-C stays what it is
        kept = "nothing was kept of the attempt"
        if self._kept:
            kept = (
                f"rows 0 to {self._kept - 1:,} were kept: the same call, with the same fingerprint, goes on behind them"
            )
        text = " ".join(str(error).split())
        raise SourceError(f"{self._where}: {type(error).__name__}: {text}; {kept}") from error
