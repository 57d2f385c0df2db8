"""Columns whose rows have to be made into what is stored: text, categories, casts, padded rows; one task a column."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from pathlib import Path

from shardstore.column_types import ColumnType
from shardstore.columns import NOTHING, ColumnStart, ColumnWriter
from shardstore.encoding import ColumnEncoder, contiguous
from shardstore.entries import ColumnEntry
from shardstore.errors import SchemaError, SourceError
from shardstore.pipeline.blocks import BLOCK_BYTES
from shardstore.progress import Advance
from shardstore.schema import ColumnLayout
from shardstore.sources.ragged import InputPart, paths_of

# Rows of few bytes have costs of their own.
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class ColumnTask:
    """All of a column to write, through an encoder. Picklable, so that any executor can take it.

    Attributes:
        directory: the store that is being built.
        layout: the column's layout.
        parts: what its rows come from.
        declared: what they are to be.
        start: what there is of the column already.
        resumed: whether shard files that are there were written of the same rows.
    """

    directory: Path
    layout: ColumnLayout
    parts: tuple[InputPart, ...]
    declared: ColumnType
    start: ColumnStart = NOTHING
    resumed: bool = False

    @property
    def key(self) -> str:
        """What tells it from the other tasks of an ingest: the column's folder."""
        return self.layout.field.name

    @property
    def paths(self) -> list[str]:
        """The paths within the store of the shard files that it has written."""
        files = (path for path in (self.directory / self.key).rglob("[!.]*") if path.is_file())
        return [path.relative_to(self.directory).as_posix() for path in files]

    @property
    def sources(self) -> set[Path]:
        """The files that it reads."""
        return paths_of(self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(part.nbytes for part in self.parts)

    def run(self, advance: Advance, cancelled: threading.Event | None = None) -> ColumnEntry:
        """Write the column, block by block, and return its entry.

        Raises:
            SourceError: for the first row that cannot be of the column; it names the file and the row there.
            CancelledError: once `cancelled` is set.
        """
        field = self.layout.field
        encoder = ColumnEncoder(field.name, self.declared, field.categories)
        with ColumnWriter(self.directory, self.layout, self.start, self.resumed) as column:
            for part in self.parts:
                first_row = 0
                for rows in part.blocks(_BLOCK_ROWS, BLOCK_BYTES):
                    if cancelled is not None and cancelled.is_set():
                        raise CancelledError
                    try:
                        encoded = encoder.encode(rows, None, first_row)
                    except SchemaError as error:
                        raise SourceError(f"{part.label}: {error}") from None
                    column.append(contiguous(encoded, field))
                    first_row += len(rows)
                    advance(rows.nbytes)
            entry = column.finish()
        # Categories that nobody listed are known only now.
        return replace(entry, field=replace(field, categories=encoder.categories))
