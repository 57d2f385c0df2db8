"""Copying files into a store: a task per shard, or one per column whose rows have to be made into what is stored."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, as_completed, wait
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from shardstore.columns import NOTHING, ArrayStart, ArrayWriter, ColumnStart, Tail
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import SourceError
from shardstore.pipeline.blocks import BLOCK_BYTES
from shardstore.pipeline.converting import ColumnTask
from shardstore.pipeline.workers import executor_of
from shardstore.progress import Advance
from shardstore.schema import ArrayLayout, ColumnLayout
from shardstore.shardfile import ShardRecord, whole_shard
from shardstore.sources.parts import Part
from shardstore.sources.ragged import InputPart, RaggedPart, RangesPart, paths_of


@dataclass(frozen=True, eq=False)
class ShardTask:
    """A run of a column's shards to write. Picklable, so that any executor can take it.

    Attributes:
        directory: the store that is being built.
        layout: the column's layout.
        parts: the parts whose rows it needs.
        start: the task's first row, counted from the first row of `parts`.
        stop: one past its last row.
        first_shard: number of the first shard to write.
        tail: the rows that this shard has already.
        resumed: whether shard files that are there were written of the same rows.
    """

    directory: Path
    layout: ArrayLayout
    parts: tuple[Part | RangesPart, ...]
    start: int
    stop: int
    first_shard: int
    tail: Tail | None = None
    resumed: bool = False

    @property
    def key(self) -> str:
        """What tells it from the other tasks of an ingest: the path of its first shard."""
        return self.layout.shard_key(self.first_shard)

    @property
    def paths(self) -> list[str]:
        """The paths within the store of the shard files that it writes."""
        shards = range(self.first_shard, self.first_shard + self.layout.num_shards(self.stop - self.start))
        return [self.layout.shard_key(shard) for shard in shards]

    @property
    def sources(self) -> set[Path]:
        """The files that it reads."""
        return paths_of(self.parts)

    @property
    def nbytes(self) -> int:
        """Decoded bytes to write."""
        return (self.stop - self.start) * self.layout.field.row_nbytes

    def run(self, advance: Advance, cancelled: threading.Event | None = None) -> list[ShardRecord]:
        """Write the shards and return their records; stop early, with no record, once `cancelled` is set."""
        block_rows = max(1, BLOCK_BYTES // max(1, self.layout.field.row_nbytes))
        if self.resumed and (record := self._finished()) is not None:
            advance(self.nbytes)
            return [record]
        with ArrayWriter(
            self.directory, self.layout, self.first_shard, self.tail, self.resumed, self.stop - self.start
        ) as column:
            first = 0
            for part in self.parts:
                start, stop = max(0, self.start - first), min(part.rows, self.stop - first)
                first += part.rows
                for block in part.read(start, stop, block_rows) if start < stop else ():
                    if cancelled is not None and cancelled.is_set():
                        return []
                    try:
                        column.append(block)
                    except OSError as error:
                        if error.errno != errno.EFAULT:
                            raise
                        raise SourceError(f"{part.label}: the file became shorter while it was read") from None
                    advance(block.nbytes)
            return column.finish()

    def _finished(self) -> ShardRecord | None:
        """Return the record of the only shard to write, if it is there."""
        rows = self.stop - self.start
        if rows > self.layout.shard_rows:
            return None
        return whole_shard(self.directory / self.layout.shard_key(self.first_shard), self.layout, rows)


Task = ShardTask | ColumnTask
# What a task has written: some shards of an array, or all of a column.
Done = list[ShardRecord] | ColumnEntry


def _run_task(task: Task, advance: Advance | None = None, cancelled: threading.Event | None = None) -> Done:
    return task.run(advance or (lambda nbytes: None), cancelled)


def column_tasks(
    directory: Path, layout: ColumnLayout, parts: Sequence[InputPart], start: ColumnStart = NOTHING
) -> list[Task]:
    """Return what there is to do for a column: copying shards where rows are stored as they are, else encoding it."""
    copied: list[Part | RangesPart] = []
    ranges: list[Part | RangesPart] = []
    items = start.data.rows
    for part in parts:
        if part.declared is not None:
            return [ColumnTask(directory, layout, tuple(parts), part.declared, start)]
        if isinstance(part, RaggedPart):
            ranges.append(RangesPart(part.ends, items))
            items += part.items.rows
            part = part.items
        copied.append(part)
    tasks: list[Task] = [*_tasks(directory, layout.data, copied, start.data)]
    return tasks if layout.ranges is None else [*tasks, *_tasks(directory, layout.ranges, ranges, start.ranges)]


def column_entry(
    layout: ColumnLayout, parts: Sequence[InputPart], done: list[tuple[Task, Done]], start: ColumnStart = NOTHING
) -> ColumnEntry:
    """Put together what a column's tasks have written behind a start."""
    records: dict[str, list[ShardRecord]] = {}
    for task, written in done:
        if isinstance(written, ColumnEntry):
            return written
        if isinstance(task, ShardTask):
            records.setdefault(task.layout.field.name, []).extend(written)

    def entry(array: ArrayLayout, start: ArrayStart, rows: int) -> ArrayEntry:
        return start.entry(array, start.rows + rows, records.get(array.field.name, []))

    rows = sum(part.rows for part in parts)
    if layout.ranges is None:
        return ColumnEntry(layout.field, entry(layout.data, start.data, rows))
    items = sum(part.items.rows for part in parts if isinstance(part, RaggedPart))
    return ColumnEntry(layout.field, entry(layout.data, start.data, items), entry(layout.ranges, start.ranges, rows))


def _tasks(
    directory: Path, layout: ArrayLayout, parts: Sequence[Part | RangesPart], behind: ArrayStart
) -> Iterator[ShardTask]:
    """Cut a column's work into one task per shard, or into a single one where the sources come as streams."""
    ends = list(accumulate((part.rows for part in parts), initial=behind.rows))[1:]
    rows, first_shard = ends[-1], len(behind.records)
    if not layout.field.row_nbytes or rows == behind.rows:
        return
    if any(part.sequential for part in parts):
        yield ShardTask(directory, layout, tuple(parts), 0, rows - behind.rows, first_shard, behind.tail)
        return
    first = 0  # the first part with rows in the shard; it only moves forward
    for shard in range(first_shard, layout.num_shards(rows)):
        start = max(behind.rows, shard * layout.shard_rows)
        stop = shard * layout.shard_rows + layout.rows_in_shard(shard, rows)
        while ends[first] <= start:
            first += 1
        last = first
        while ends[last] < stop:
            last += 1
        before = ends[first] - parts[first].rows
        tail = behind.tail if shard == first_shard else None
        yield ShardTask(directory, layout, tuple(parts[first : last + 1]), start - before, stop - before, shard, tail)


def run_tasks(tasks: list[Task], workers: int | Executor | None, advance: Advance) -> dict[Task, Done]:
    """Run tasks on workers, and return what each has written; an error in one cancels the others."""
    cancelled = threading.Event()
    with executor_of(workers) as (executor, ours):
        futures: dict[Future[Done], Task] = {}
        try:
            for task in tasks:
                future = (
                    executor.submit(_run_task, task, advance, cancelled) if ours else executor.submit(_run_task, task)
                )
                futures[future] = task
            for future in as_completed(futures):
                future.result()
                if not ours:
                    advance(futures[future].nbytes)
        finally:
            # On an error or an interrupt: nothing may write into the directory once it is being removed.
            cancelled.set()
            for future in futures:
                future.cancel()
            wait(futures)
        return {task: future.result() for future, task in futures.items()}
