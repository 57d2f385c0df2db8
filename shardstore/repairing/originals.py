"""Shard files made again from the files that a store was made of, which the manifest names.

How the files were put together is not all in the manifest. So several ways are tried; a shard is right only if its
size and its footer's checksum are those of the manifest, and else it is not taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardstore.column_types import Categorical, ColumnType
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import SchemaError, SourceError
from shardstore.manifest import Manifest
from shardstore.pipeline.copying import Done, ShardTask, Task, column_tasks, run_tasks
from shardstore.progress import Advance
from shardstore.schema import ColumnLayout, Field
from shardstore.shardfile import ShardRecord
from shardstore.sources.inputs import DEFAULT_COLUMN, Inputs, collect_inputs
from shardstore.sources.named import Sources
from shardstore.sources.paths import Paths, find_files, natural_key

_MEMBER = re.compile(r"(.+)\[[^\[\]]*\]")


class Originals:
    """The files that a store was made of.

    Args:
        manifest: the store's.
        sources: the files, or folders with them at any depth; or by column as for an ingest.
        split: as for an ingest.
        types: as for an ingest.
    """

    def __init__(
        self, manifest: Manifest, sources: Sources, split: str | None, types: Mapping[str, ColumnType]
    ) -> None:
        self._manifest = manifest
        self._sources = sources
        self._split = split
        self._types = types

    def readings(self) -> Iterator[Inputs]:
        """Yield what the files may have been read as, likeliest first.

        Raises:
            SourceError, SchemaError: if there is no way to read them.
        """
        problems: list[SourceError | SchemaError] = []
        others: set[str] = set()
        found = False
        for collect in self._ways():
            try:
                inputs = collect()
            except (SourceError, SchemaError) as error:
                problems.append(error)
                continue
            if inputs.parts.keys() & self._manifest.columns.keys():
                found = True
                yield inputs
            others |= inputs.parts.keys()
        if not found and others:
            raise SourceError(
                f"the sources have the columns {', '.join(sorted(others))}, and the store has "
                f"{', '.join(self._manifest.columns)}: say how they are cut with split, or name the files of each "
                "column, as in the ingest"
            )
        if not found:
            raise problems[0]

    def _ways(self) -> Iterator[Callable[[], Inputs]]:
        sources, split = self._sources, self._split
        if isinstance(sources, Mapping):
            yield lambda: self._collect(sources, split)
            return
        files = recorded_files(self._manifest, sources)
        if files:
            yield lambda: self._collect(files, split)
            if split is None:
                yield lambda: self._collect(self._one_group_a_column(files), None)
                yield lambda: self._collect(files, self._likely_split(files))
        yield lambda: self._collect(sources, split)

    def _collect(self, sources: Sources, split: str | None) -> Inputs:
        inputs = collect_inputs(sources, split, self._types)
        wrong = {
            name: _type_of(entry.field)
            for name, entry in self._manifest.columns.items()
            if name in inputs.parts and name not in self._types and inputs.parts[name][0].field != entry.field
        }
        return collect_inputs(sources, split, {**self._types, **wrong}) if wrong else inputs

    def _one_group_a_column(self, files: Sequence[Path]) -> dict[str, list[Path]]:
        """Deal files to columns, as many to each: files of columns are recorded one column after the other."""
        count, left = divmod(len(files), len(self._manifest.columns))
        if left or not count:
            raise SchemaError(f"{len(files)} files cannot be those of {len(self._manifest.columns)} columns")
        return {name: list(files[i * count : (i + 1) * count]) for i, name in enumerate(self._manifest.columns)}

    def _likely_split(self, files: Sequence[Path]) -> str:
        """Return the split that cuts the last axis into the store's columns in their order, each with its dtype."""
        (part,) = collect_inputs(list(files), None, {}).parts[DEFAULT_COLUMN][:1]
        cuts, place = [], 0
        for name, entry in self._manifest.columns.items():
            field = entry.field
            scalar = len(field.row_shape) < len(part.field.row_shape)
            stop = place + (1 if scalar or not field.row_shape else field.row_shape[-1])
            cast = "" if field.dtype == part.field.dtype else f"@{'~' if field.dtype.kind == 'f' else ''}{field.dtype}"
            cuts.append(f"{name}={place if scalar else f'{place}:{stop}'}{cast}")
            place = stop
        return ",".join(cuts)


def recorded_files(manifest: Manifest, given: Paths) -> list[Path]:
    """Return the files that the manifest's provenance names, in its order, from among given files and folders.

    Nothing if it names none, or one is not there with its size.
    """
    places = [given] if isinstance(given, str | os.PathLike) else list(given)
    pool: dict[tuple[str, int], list[Path]] = {}
    for file in sorted(_all_files(places), key=natural_key):
        pool.setdefault((file.name, file.stat().st_size), []).append(file)
    files: list[Path] = []
    members: set[str] = set()
    for name, size in _recorded(manifest):
        member = _MEMBER.fullmatch(name)
        if member is not None and files and files[-1].name == member[1] and name not in members:
            members.add(name)  # one more array of the same archive
            continue
        found = pool.get((name, size)) or (pool.get((member[1], size)) if member is not None else None)
        if not found:
            return []
        # A file that was given twice is recorded twice.
        files.append(found.pop(0) if len(found) > 1 else found[0])
        members = {name}
    return files


def _recorded(manifest: Manifest) -> list[tuple[str, int]]:
    """Return name and size of each file that the rows came from, as far as the manifest says so."""
    origin: Any = manifest.provenance.get("sources")
    names, sizes = (origin.get(key, ()) if isinstance(origin, dict) else () for key in ("names", "sizes"))
    pairs = zip(names, sizes, strict=False)
    return [(name, size) for name, size in pairs if isinstance(name, str) and isinstance(size, int)]


def _all_files(places: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    for place in places:
        if Path(place).is_dir():
            yield from (path for path in Path(place).rglob("*") if path.is_file())
        else:
            yield from find_files(place)


def _type_of(field: Field) -> ColumnType:
    if field.kind == "categorical":
        return Categorical(field.categories)
    if field.is_ragged:
        return ColumnType(field.kind, field.dtype, field.row_shape)
    return ColumnType(field.kind, field.dtype)


def remake(
    entry: ColumnEntry, inputs: Inputs, wanted: Mapping[str, set[int]], folder: Path, advance: Advance
) -> Iterator[tuple[ArrayEntry, int]]:
    """Make shard files of a column again, in a folder of their own, and yield those that are what the manifest says.

    Args:
        entry: the column.
        inputs: what its rows come from.
        wanted: by array, the numbers of the shards; others may be made with them.
        folder: where the files go, as in a store.
        advance: called with bytes that were done.

    Raises:
        SourceError: if a source cannot be read.
    """
    parts = inputs.parts[entry.field.name]
    if parts[0].field != entry.field and parts[0].declared is None:
        return
    arrays = {array.layout.field.name: array for array in entry.arrays}
    layout = ColumnLayout(entry.field, entry.data.layout, None if entry.ranges is None else entry.ranges.layout)
    tasks = [task for task in column_tasks(folder, layout, parts) if _makes(task, wanted)]
    for task, done in run_tasks(tasks, None, advance).items():
        for name, shard, record in _records(task, done):
            array = arrays[name]
            if shard in wanted.get(name, ()) and record == array.record(shard):
                yield array, shard


def _makes(task: Task, wanted: Mapping[str, set[int]]) -> bool:
    if not isinstance(task, ShardTask):
        return True
    shards = range(task.first_shard, task.first_shard + task.layout.num_shards(task.stop - task.start))
    return any(shard in shards for shard in wanted.get(task.layout.field.name, ()))


def _records(task: Task, done: Done) -> Iterator[tuple[str, int, ShardRecord]]:
    if isinstance(done, ColumnEntry):
        for array in done.arrays:
            for shard in range(len(array.nbytes)):
                yield array.layout.field.name, shard, array.record(shard)
    elif isinstance(task, ShardTask):
        for i, record in enumerate(done):
            yield task.layout.field.name, task.first_shard + i, record


def provenance_text(manifest: Manifest) -> str:
    """Say which files a store was made of."""
    names = [f"{name} ({size:,} bytes)" for name, size in _recorded(manifest)]
    if not names:
        return "the manifest does not say which files the rows came from"
    shown = ", ".join(names[:5])
    return f"the rows came from {shown}{f' and {len(names) - 5:,} more' if len(names) > 5 else ''}"
