"""Streams of rows into a `Writer`: block by block, in order, and what becomes of rows that fail."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from shardstore.errors import DestinationError, RowError, SchemaError, SourceError
from shardstore.pipeline.blocks import BadRow, Block, Columns, place_of, reason_of
from shardstore.pipeline.replaying import Replay
from shardstore.pipeline.transforming import BlockTransform, Done, Failed, Piece, Transform, in_order
from shardstore.progress import Advance
from shardstore.ragged import Values
from shardstore.sources.rows import BlockSource
from shardstore.writer import Writer

MAX_EXAMPLES = 20
_log = logging.getLogger("shardstore")


@dataclass(frozen=True)
class Handling:
    """How the rows of a stream are worked on.

    Attributes:
        transform: called with each block, or None.
        block_rows: the most rows of a block; None for about 2 MiB.
        skip: whether rows that fail are left out; else the first one ends the ingest.
        executor: where transforms run.
        ahead: how many blocks may be with the executor.
    """

    transform: Transform | None
    block_rows: int | None
    skip: bool
    executor: Executor
    ahead: int


@dataclass
class Skipped:
    """Rows that were left out: how many, and of the first few what and why."""

    rows: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, number: int, where: str | None, reason: str) -> None:
        """Count a row."""
        self.rows += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append({"row": number, "where": _json_text(where or ""), "reason": _json_text(reason)})

    def provenance(self) -> dict[str, Any]:
        """Return what the manifest keeps."""
        return {"rows": self.rows, "examples": sorted(self.examples, key=lambda example: example["row"])}


def write_rows(source: BlockSource, writer: Writer, handling: Handling, advance: Advance) -> None:
    """Write all rows of a source, transformed, in order, and note in the writer what was skipped.

    Raises:
        SourceError: for the first row that fails, or if all are skipped.
    """
    sink = _Sink(source, writer, handling)
    with closing(_transformed(source, handling)) as blocks:
        for block, pieces in blocks:
            if isinstance(block, BadRow):
                sink.refuse(block)
            else:
                sink.write(block, pieces)
                advance(block.nbytes)
    sink.finish()


def _transformed(source: BlockSource, handling: Handling) -> Generator[tuple[Block | BadRow, list[Piece]], None, None]:
    blocks = source.blocks(handling.block_rows, skip=handling.skip, copy=handling.transform is not None)
    work = _work(handling)
    if work is not None:
        yield from in_order(handling.executor, work, blocks, handling.ahead)
        return
    for block in blocks:
        yield block, [] if isinstance(block, BadRow) else _untouched(block)


def _work(handling: Handling) -> BlockTransform | None:
    if handling.transform is None:
        return None
    return BlockTransform(handling.transform, handling.skip, os.getpid())


def _untouched(block: Block) -> list[Piece]:
    return [Done(0, block.rows, block.columns)]


class _Sink:
    """Appends what became of blocks to a writer, and deals with what failed."""

    def __init__(self, source: BlockSource, writer: Writer, handling: Handling) -> None:
        self._source = source
        self._writer = writer
        self._handling = handling
        self._skipped = Skipped()
        self._seen = 0
        self._names: list[str] = []
        self._empty: Columns | None = None
        # What is there already of an ingest that is resumed.
        self._replay: Replay | None = None
        if writer.taken_over:
            self._replay = Replay(writer.directory, writer.taken_over, writer.num_rows)
            self._names = list(writer.taken_over)

    def write(self, block: Block, pieces: list[Piece]) -> None:
        """Append a block's pieces."""
        self._seen += block.rows
        self._write(block, pieces)

    def refuse(self, bad: BadRow) -> None:
        """Count a row that the source could not give, or raise its error."""
        self._seen += 1
        where = bad.error.where if isinstance(bad.error, RowError) else self._source.describe_row(bad.number)
        reason = bad.error.reason if isinstance(bad.error, RowError) else reason_of(bad.error)
        if self._handling.skip and not bad.final:
            self._skipped.add(bad.number, where, reason)
            return
        if self._handling.skip:
            reason += "; nothing can come after it, so it cannot be skipped (to go on, yield the exception as an item)"
        raise SourceError(f"{self._label(bad.number, where)}: {reason}") from bad.error

    def _write(self, block: Block, pieces: list[Piece]) -> None:
        for piece in pieces:
            part = block.part(piece.start, piece.stop)
            error = piece.error if isinstance(piece, Failed) else self._append(piece.columns)
            if error is None:
                continue
            if isinstance(piece, Done) and part.rows > 1:
                for half in part.halves():
                    self._write(half, self._again(half))
                if self._handling.skip:
                    continue
            self._fail(part, error)

    def _again(self, block: Block) -> list[Piece]:
        """Transform a part of a block whose result could not be appended."""
        work = _work(self._handling)
        if work is None:
            return _untouched(block)
        with closing(in_order(self._handling.executor, work, [block], 1)) as done:
            return next(done)[1]

    def _append(self, columns: Columns) -> Exception | None:
        """Append columns; return what the writer has against them."""
        if self._names and columns.keys() != set(self._names):
            return SchemaError(f"expected the columns {', '.join(self._names)}, found {', '.join(map(str, columns))}")
        if not len(next(iter(columns.values()))):
            # A list without values has no type: were it the first, it would settle a wrong one.
            self._empty = self._empty or columns
            return None
        try:
            encoded = {} if self._replay is None else self._writer.encode(columns, self._replay.next)[1]
            if not encoded:
                self._writer.append(columns)
        except (DestinationError, OSError, MemoryError):
            raise
        except Exception as error:  # whatever an array made of a user's objects may raise
            return error
        if self._replay is not None and encoded:
            return self._append_rest(self._replay, columns, encoded)
        self._names = list(columns)
        return None

    def _append_rest(self, replay: Replay, columns: Columns, encoded: Mapping[str, Values]) -> Exception | None:
        """Compare the rows that are there already, and append those behind them."""
        there = min(replay.left, len(next(iter(encoded.values()))))
        replay.check({name: values[:there] for name, values in encoded.items()})
        if not replay.left:
            replay.close()
            self._replay = None
        rest = {name: values[there:] for name, values in columns.items()}
        return self._append(rest) if len(next(iter(rest.values()))) else None

    def _fail(self, part: Block, error: Exception) -> None:
        """Count a row that failed, or raise its error."""
        number = part.numbers[0] if part.rows else 0
        where = None
        if part.rows:
            where = place_of(part.columns, 0) or self._source.describe_row(number)
        reason = reason_of(error)
        if self._handling.skip and part.rows:
            self._skipped.add(number, where, reason)
            return
        raise SourceError(f"{self._label(number, where, part)}: {reason}") from error

    def _label(self, number: int, where: str | None, part: Block | None = None) -> str:
        rows = f"row {number:,}"
        if part is not None and part.rows > 1:
            rows = f"rows {number:,} to {part.numbers[-1]:,}"
        return f"{rows} of {self._source.name}" + (f" ({where})" if where else "")

    def finish(self) -> None:
        """Settle the columns of a store without rows, and note what was skipped."""
        skipped = self._skipped
        if self._replay is not None:
            left, self._replay = self._replay.left, None
            raise SourceError(
                f"{self._source.name} ended {left:,} rows before those that the interrupted ingest has written; an "
                'ingest is resumed with the same rows, so begin a new one with mode="create"'
            )
        if skipped.rows and skipped.rows == self._seen:
            first = skipped.provenance()["examples"][0]
            where = self._label(first["row"], first["where"])
            raise SourceError(f"all {skipped.rows:,} rows were skipped; {where}: {first['reason']}")
        if not self._names and self._empty is not None:
            self._writer.append(self._empty)
        if self._handling.skip:
            self._writer.provenance["skipped"] = skipped.provenance()
        if skipped.rows:
            first = skipped.examples[0]
            _log.warning(
                "skipped %s of %s rows; %s: %s",
                f"{skipped.rows:,}",
                f"{self._seen:,}",
                self._label(first["row"], first["where"]),
                first["reason"],
            )


def _json_text(text: str) -> str:
    # JSON has no way to write the bytes of a name that is not UTF-8.
    return text.encode("utf-8", "replace").decode()
