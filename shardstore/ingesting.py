"""`ingest`: convert `.npy` and `.npz` files, or rows from any iterable, into a new store.

Each shard of each column of files is one piece of work: it maps the files whose rows it needs and copies them block by
block, with checksums on the way, so memory depends neither on the files nor on their number. Rows that come from an
iterable or go through a transform are written block by block in their order.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from shardstore.blocks import BLOCK_BYTES
from shardstore.building import Mode, building, check_destination, explained_errors
from shardstore.columns import ArrayWriter, array_entry
from shardstore.errors import DestinationError, SchemaError, SourceError
from shardstore.manifest import ColumnEntry
from shardstore.progress import Advance, byte_progress
from shardstore.row_streams import Handling, write_rows
from shardstore.schema import DEFAULT_SHARD_BYTES, ArrayLayout, plan_layouts
from shardstore.shardfile import ShardRecord
from shardstore.sources.inputs import Inputs, Part, collect_inputs
from shardstore.sources.paths import Paths, is_directory_source, order_note
from shardstore.sources.rows import BlockSource, InputRows, Rows, RowStream, rows_or_paths
from shardstore.store import Store, open_store
from shardstore.transforming import Transform
from shardstore.writer import Writer

OnError = Literal["raise", "skip"]
# So many blocks more than workers are on their way, so that none waits while one is written.
LOOK_AHEAD = 2
_log = logging.getLogger("shardstore")


def ingest(
    sources: Paths | Mapping[str, Paths] | Rows,
    dest: str | os.PathLike[str],
    *,
    split: str | None = None,
    batched: bool = False,
    transform: Transform | None = None,
    block_rows: int | None = None,
    on_error: OnError = "raise",
    codec: str | Mapping[str, str] = "raw",
    shard_bytes: int | str = DEFAULT_SHARD_BYTES,
    chunk_bytes: int | str | None = None,
    workers: int | Executor | None = None,
    mode: Mode = "create",
    progress: bool | None = None,
) -> Store:
    """Convert files, or rows from any iterable, into a new store and return it, opened.

    Rows of an iterable and files with a transform are worked on in blocks: 1,024 rows, or fewer where these take 2 MiB;
    of files and large batches about 2 MiB. At most two blocks more than there are workers are in memory at a time, with
    what the transform makes of them, and an iterable is asked for no more before. Values that do not tell their size
    (images of PIL, say) count little: give `block_rows` for them. Arrays are copied as they come, so a generator may
    fill the same one again.

    Args:
        sources: a file, a glob, a directory, or a list of them: a list in the order given, a glob or directory in
            natural order (part-2 before part-10). Or by column name those of parallel files, which must agree in
            rows file by file. A plain `.npy` becomes the column `data`; the keys of an `.npz` and the fields of a
            structured array become columns. Or rows: an iterable of dicts `{column: value}`, or a function that returns
            one; `shardstore.read_text` and `read_files` give such rows.
        dest: the store's directory. It appears whole at the end, or not at all.
        split: how to cut each array's last axis into columns, such as `"x=:-1,y=-1@int64"`; see
            `shardstore.sources.split`.
        batched: whether the dicts of an iterable are batches `{column: array or list of rows}`.
        transform: called with each block, a dict from column to the list (of rows that came one by one) or array of its
            values; returns a dict of columns with any number of rows. Called by several workers at a time; the results
            are written in order. It may change what it is given.
        block_rows: the most rows of a block.
        on_error: `"raise"`, or `"skip"`: a block that fails in the transform or does not fit the columns is cut up
            until only the rows that fail by themselves are left out; the manifest's provenance counts them and keeps
            the first reasons. An exception that a generator yields as an item is a row that failed. One that it raises
            ends the ingest, since nothing can come after it.
        codec: one codec for all columns, or one per column: `"raw"`, `"zstd"`, `"zstd:9"`, `"blosc:lz4"`.
        shard_bytes: target size of the widest column's shard files.
        chunk_bytes: target size of a decoded chunk; by default 256 KiB raw and 64 KiB compressed.
        workers: a number of threads, or any `concurrent.futures.Executor`, whose workers must see the same files.
            Processes need a transform that pickles, and get it anew with every block.
        mode: `"create"` (`dest` must not exist) or `"overwrite"` (replaces the store there).
        progress: whether to draw a progress bar; None draws one on a terminal.

    Raises:
        SourceError: if a file is missing, damaged, or does not fit the others, a cast would change a value, or a row
            fails; the message names the row, and `__cause__` is what its source or the transform raised.
        SchemaError: if split, names, dtypes or codecs do not make columns.
        DestinationError: if `dest` cannot be used, or its disk is full.
    """
    destination = Path(dest)
    check_destination(destination, mode)
    skip = _skips(on_error)
    if block_rows is not None and (isinstance(block_rows, bool) or not isinstance(block_rows, int) or block_rows < 1):
        raise ValueError(f"block_rows is {block_rows}; expected at least 1")
    how = _How(destination, mode, codec, shard_bytes, chunk_bytes, workers, progress)
    found = rows_or_paths(sources, batched)
    if isinstance(found, RowStream):
        with closing(found):
            if split is not None:
                raise SchemaError("split cuts columns out of the arrays of files; the rows of an iterable name theirs")
            _write(found, transform, block_rows, skip, how)
        return open_store(destination)
    if batched:
        raise ValueError("batched=True is for an iterable of batches; these sources are files")
    if transform is None and (skip or block_rows is not None):
        raise ValueError("on_error='skip' and block_rows are for rows of an iterable, or for files with a transform")
    inputs = _inputs(found, split, destination)
    if transform is None:
        _copy(inputs, how)
    else:
        _write(InputRows(inputs), transform, block_rows, skip, how, inputs)
    return open_store(destination)


@dataclass(frozen=True)
class _How:
    """Where a store is written, in what form, and by whom: arguments of `ingest`."""

    destination: Path
    mode: Mode
    codec: str | Mapping[str, str]
    shard_bytes: int | str
    chunk_bytes: int | str | None
    workers: int | Executor | None
    progress: bool | None


def _skips(on_error: OnError) -> bool:
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
    return on_error == "skip"


def _inputs(sources: Paths | Mapping[str, Paths], split: str | None, destination: Path) -> Inputs:
    # An iterator can be gone through once only, and it is looked at twice.
    if isinstance(sources, Mapping):
        sources = {name: _held(paths) for name, paths in sources.items()}
    inputs = collect_inputs(sources, split)
    _check_apart(inputs, sources, destination)
    if (note := order_note(inputs.files)) and not isinstance(sources, Mapping):
        _log.info(note)
    return inputs


def _write(
    source: BlockSource,
    transform: Transform | None,
    block_rows: int | None,
    skip: bool,
    how: _How,
    inputs: Inputs | None = None,
) -> None:
    """Write rows block by block, through a transform if there is one; `inputs` are the files that they come from."""
    with (
        _executor(how.workers) as (executor, _),
        Writer(
            how.destination, codec=how.codec, shard_bytes=how.shard_bytes, chunk_bytes=how.chunk_bytes, mode=how.mode
        ) as writer,
        byte_progress("ingest", inputs.nbytes if inputs else None, how.progress) as advance,
    ):
        if inputs is not None:
            writer.provenance["sources"] = inputs.provenance()
        threads = how.workers if isinstance(how.workers, int) else _default_workers()
        write_rows(source, writer, Handling(transform, block_rows, skip, executor, threads + LOOK_AHEAD), advance)


def _copy(inputs: Inputs, how: _How) -> None:
    """Copy the rows of files, shard by shard."""
    layouts = plan_layouts(inputs.fields, how.codec, how.shard_bytes, how.chunk_bytes)
    with building(how.destination, how.mode) as build:
        tasks = [task for name in layouts for task in _tasks(build.directory, layouts[name].data, inputs.parts[name])]
        with byte_progress("ingest", inputs.nbytes, how.progress) as advance, explained_errors(how.destination):
            records = _run(tasks, how.workers, advance)
        entries = {
            name: ColumnEntry(
                layout.field,
                array_entry(
                    layout.data, inputs.rows, [r for t in tasks if t.layout is layout.data for r in records[t]]
                ),
            )
            for name, layout in layouts.items()
        }
        shard_rows = next(iter(layouts.values())).data.shard_rows
        build.commit(inputs.rows, shard_rows, entries, {"sources": inputs.provenance()})


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
    """

    directory: Path
    layout: ArrayLayout
    parts: tuple[Part, ...]
    start: int
    stop: int
    first_shard: int

    @property
    def nbytes(self) -> int:
        """Decoded bytes to write."""
        return (self.stop - self.start) * self.layout.field.row_nbytes

    def run(self, advance: Advance, cancelled: threading.Event | None = None) -> list[ShardRecord]:
        """Write the shards and return their records; stop early, with no record, once `cancelled` is set."""
        block_rows = max(1, BLOCK_BYTES // max(1, self.layout.field.row_nbytes))
        with ArrayWriter(self.directory, self.layout, self.first_shard) as column:
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
                        raise SourceError(f"{part.array.label}: the file became shorter while it was read") from None
                    advance(block.nbytes)
            return column.finish()


def _run_quietly(task: ShardTask) -> list[ShardRecord]:
    return task.run(lambda nbytes: None)


def _tasks(directory: Path, layout: ArrayLayout, parts: list[Part]) -> Iterator[ShardTask]:
    """Cut a column's work into one task per shard, or into a single one where the sources come as streams."""
    ends = list(accumulate(part.rows for part in parts))
    rows = ends[-1]
    if not layout.field.row_nbytes:
        return
    if any(part.array.sequential for part in parts):
        yield ShardTask(directory, layout, tuple(parts), 0, rows, 0)
        return
    first = 0  # the first part with rows in the shard; it only moves forward
    for shard in range(layout.num_shards(rows)):
        start = shard * layout.shard_rows
        stop = start + layout.rows_in_shard(shard, rows)
        while ends[first] <= start:
            first += 1
        last = first
        while ends[last] < stop:
            last += 1
        before = ends[first] - parts[first].rows
        yield ShardTask(directory, layout, tuple(parts[first : last + 1]), start - before, stop - before, shard)


def _run(
    tasks: list[ShardTask], workers: int | Executor | None, advance: Advance
) -> dict[ShardTask, list[ShardRecord]]:
    cancelled = threading.Event()
    with _executor(workers) as (executor, ours):
        futures: dict[Future[list[ShardRecord]], ShardTask] = {}
        try:
            for task in tasks:
                future = executor.submit(task.run, advance, cancelled) if ours else executor.submit(_run_quietly, task)
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


@contextmanager
def _executor(workers: int | Executor | None) -> Iterator[tuple[Executor, bool]]:
    """Give the executor to use, and whether it is one of our own threads."""
    if isinstance(workers, Executor):
        yield workers, False
        return
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise ValueError(f"workers is {workers}; expected at least 1, or an Executor")
    with ThreadPoolExecutor(workers or _default_workers(), "shardstore-ingest") as executor:
        yield executor, True


def _default_workers() -> int:
    # More threads than cores: while one waits for the disk to take a finished shard, another copies.
    return min(8, (os.cpu_count() or 1) + 2)


def _held(paths: Paths) -> Paths:
    return paths if isinstance(paths, str | os.PathLike) else list(paths)


def _check_apart(inputs: Inputs, sources: Paths | Mapping[str, Paths], destination: Path) -> None:
    """Refuse a destination inside a source folder, and sources inside a store that would be replaced."""
    target = destination.resolve()
    groups = list(sources.values()) if isinstance(sources, Mapping) else [sources]
    for group in groups:
        for source in [group] if isinstance(group, str | os.PathLike) else group:
            folder = Path(source).resolve()
            if is_directory_source(source) and (target == folder or folder in target.parents):
                raise DestinationError(f"{destination} lies inside the source folder {source}: choose a place outside")
    for file in inputs.files:
        if target in file.resolve().parents:
            raise DestinationError(f"the source {file} lies inside {destination}, which would be replaced")
