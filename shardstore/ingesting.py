"""`ingest`: files or rows in, a new store out.

Files are copied by workers, each shard of each column by itself; rows of an iterable, and those that a transform makes,
are written block by block. Memory depends neither on the sources nor on their number.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shardstore.building import Build, Mode, check_destination, explained_errors
from shardstore.changes.appending import appended_type
from shardstore.codecs import DEFAULT_CODEC
from shardstore.column_types import ColumnType, TypeLike, parse_type
from shardstore.destinations import writing
from shardstore.errors import DestinationError, SchemaError
from shardstore.manifest import load_manifest
from shardstore.pipeline.copying import Done, Task, column_entry, column_tasks, run_tasks
from shardstore.pipeline.resuming import resumed_tasks
from shardstore.pipeline.row_streams import Handling, write_rows
from shardstore.pipeline.transforming import Transform
from shardstore.pipeline.workers import default_workers, executor_of
from shardstore.progress import byte_progress
from shardstore.schema import DEFAULT_SHARD_BYTES
from shardstore.sources.inputs import Inputs, collect_inputs
from shardstore.sources.named import Sources, each_path, held
from shardstore.sources.paths import is_directory_source, order_note
from shardstore.sources.rows import BlockSource, InputRows, Rows, RowStream, rows_or_paths
from shardstore.store import Store, open_store
from shardstore.writer import Writer

OnError = Literal["raise", "skip"]
# So many blocks more than workers are on their way, so that none waits while one is written.
LOOK_AHEAD = 2
_log = logging.getLogger("shardstore")


def ingest(
    sources: Sources | Rows,
    dest: str | os.PathLike[str],
    *,
    split: str | None = None,
    types: Mapping[str, ColumnType | TypeLike] | None = None,
    batched: bool = False,
    transform: Transform | None = None,
    block_rows: int | None = None,
    on_error: OnError = "raise",
    codec: str | Mapping[str, str] = DEFAULT_CODEC,
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
            structured array become columns, and fixed-width strings text.
            A ragged column is given by a mapping: `{"values": paths, "offsets": paths}`, `{"values": paths,
            "lengths": paths}`, `{"padded": paths, "lengths": paths}`, or `{"rows": paths}` for `.npz` files with a
            member a row; in an `.npz` by the keys `NAME.values` and `NAME.offsets`. A directory that an export wrote
            gives the columns that it was made of.
            Or rows: an iterable of dicts `{column: value}`, or a function that returns one; `shardstore.read_text` and
            `read_files` give such rows.
        dest: the store's directory. It appears whole at the end, or not at all.
        split: how to cut each array's last axis into columns, such as `"x=:-1,y=-1@int64"`; see
            `shardstore.sources.split`.
        types: by column, what its rows are where files or the first rows do not tell, such as `"bfloat16"`, `"utf8"`,
            `"ragged"` or `Categorical(["cat", "dog"])`; see `shardstore.column_types`. Values are cast if none changes.
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
        mode: `"create"` (`dest` must not exist), `"overwrite"` (replaces the store there), `"append"` (adds rows to the
            store there, in its own layout and with its own codecs) or `"resume"` (goes on with a new store whose ingest
            was interrupted: shard files that are finished are taken over if the sources they are of have not changed,
            and stay for the next attempt if this one fails. Rows of an iterable, or that a transform makes, have to
            come again from the first one on, and to be the same).
        progress: whether to draw a progress bar; None draws one on a terminal.

    Raises:
        SourceError: if a file is missing, damaged, or does not fit the others, a cast would change a value, or a row
            fails; the message names the row, and `__cause__` is what its source or the transform raised.
        SchemaError: if split, names, types, dtypes or codecs do not make columns.
        DestinationError: if `dest` cannot be used, or its disk is full.
        LockedError: if somebody else is writing to it.
    """
    destination = Path(dest)
    check_destination(destination, mode)
    skip = _skips(on_error)
    if block_rows is not None and (isinstance(block_rows, bool) or not isinstance(block_rows, int) or block_rows < 1):
        raise ValueError(f"block_rows is {block_rows}; expected at least 1")
    declared = {name: parse_type(name, given) for name, given in (types or {}).items()}
    how = _How(destination, mode, declared, codec, shard_bytes, chunk_bytes, workers, progress)
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
    inputs = _inputs(found, split, destination, {} if transform else declared, mode == "append" and not transform)
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
    types: Mapping[str, ColumnType]
    codec: str | Mapping[str, str]
    shard_bytes: int | str
    chunk_bytes: int | str | None
    workers: int | Executor | None
    progress: bool | None


def _skips(on_error: OnError) -> bool:
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'")
    return on_error == "skip"


def _inputs(
    sources: Sources, split: str | None, destination: Path, types: Mapping[str, ColumnType], appended: bool
) -> Inputs:
    sources = held(sources)  # it is looked at more than once
    inputs = collect_inputs(sources, split, types)
    if appended:
        fields = load_manifest(destination)[1].fields
        wanted = {name: appended_type(fields[name], types.get(name)) for name in inputs.parts if name in fields}
        inputs = collect_inputs(sources, split, {**types, **wanted})
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
    options: dict[str, Any] = {
        name: getattr(how, name) for name in ("codec", "shard_bytes", "chunk_bytes", "mode", "types")
    }
    with (
        executor_of(how.workers) as (executor, _),
        Writer(how.destination, **options) as writer,
        byte_progress("ingest", inputs.nbytes if inputs else None, how.progress) as advance,
    ):
        if inputs is not None:
            writer.provenance["sources"] = inputs.provenance()
        threads = how.workers if isinstance(how.workers, int) else default_workers()
        write_rows(source, writer, Handling(transform, block_rows, skip, executor, threads + LOOK_AHEAD), advance)


def _copy(inputs: Inputs, how: _How) -> None:
    """Copy the rows of files, on all workers."""
    with writing(how.destination, how.mode) as target:
        layouts = target.layouts(inputs.fields, how.codec, how.shard_bytes, how.chunk_bytes)
        starts = {name: target.start(name) for name in layouts}
        work = [
            (name, task)
            for name, layout in layouts.items()
            for task in column_tasks(target.directory, layout, inputs.parts[name], starts[name])
        ]
        tasks = [task for _, task in work]
        with (
            byte_progress("ingest", inputs.nbytes, how.progress) as advance,
            explained_errors(how.destination, target.kept),
        ):
            if isinstance(target, Build):
                tasks = resumed_tasks(target.directory, layouts, tasks, target.resumed)
            done = run_tasks(tasks, how.workers, advance)
        written: dict[str, list[tuple[Task, Done]]] = {name: [] for name in layouts}
        for (name, _), task in zip(work, tasks, strict=True):
            written[name].append((task, done[task]))
        entries = {
            name: column_entry(layout, inputs.parts[name], written[name], starts[name])
            for name, layout in layouts.items()
        }
        target.commit(target.rows + inputs.rows, entries, {"sources": inputs.provenance()})


def _check_apart(inputs: Inputs, sources: Sources, destination: Path) -> None:
    """Refuse a destination inside a source folder, and sources inside a store that would be replaced."""
    target = destination.resolve()
    for source in each_path(sources):
        folder = Path(source).resolve()
        if is_directory_source(source) and (target == folder or folder in target.parents):
            raise DestinationError(f"{destination} lies inside the source folder {source}: choose a place outside")
    for file in inputs.files:
        if target in file.resolve().parents:
            raise DestinationError(f"the source {file} lies inside {destination}, which would be replaced")
