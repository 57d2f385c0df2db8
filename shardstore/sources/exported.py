"""Directories that an export wrote, taken for the columns that they hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shardstore.column_types import ColumnType
from shardstore.errors import SourceError
from shardstore.export_index import INDEX_FILE, ExportedColumn, categories_file, read_index
from shardstore.sources.named import NamedColumn
from shardstore.sources.paths import Paths, find_files


@dataclass(frozen=True)
class Exported:
    """The columns of one or more exports, their rows one after the other.

    Attributes:
        columns: the files of each column.
        types: what its rows were.
    """

    columns: list[NamedColumn]
    types: Mapping[str, ColumnType]


def find_exported(sources: Paths) -> Exported | None:
    """Return the columns of exports if the sources are directories of such, else None.

    Raises:
        SourceError: if an index is damaged, or is not about the directory's files; if exports disagree about their
            columns, or come with other sources.
    """
    paths = [Path(source) for source in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    indices = {path: _index(path) for path in paths}
    if all(index is None for index in indices.values()):
        return None
    first = next(path for path, index in indices.items() if index is not None)
    columns = indices[first] or []
    for path, index in indices.items():
        if index is None:
            raise SourceError(f"{first} is an export with columns of its own, and {path} is none: ingest them apart")
        if index != columns:
            raise SourceError(
                f"exports disagree about their columns: compare {first / INDEX_FILE} and {path / INDEX_FILE}"
            )
        _check_complete(path, index)
    files = [
        NamedColumn(column.name, {role: [path / name for path in paths] for role, name in column.files.items()})
        for column in columns
    ]
    return Exported(files, {column.name: column.type for column in columns})


def _index(path: Path) -> list[ExportedColumn] | None:
    try:
        is_directory = path.is_dir()
    except OSError:
        return None  # who looks for files there says why
    return read_index(path) if is_directory else None


def _check_complete(directory: Path, index: list[ExportedColumn]) -> None:
    """Raise `SourceError` unless the directory has the files of the index, and no others that hold rows."""
    named = {name for column in index for name in column.files.values()}
    named_too = {categories_file(column.name) for column in index if column.type.kind == "categorical"}
    there = {path.name for path in find_files(directory)}
    if missing := sorted(named - there):
        raise SourceError(f"{directory / missing[0]}: no such file, but {directory / INDEX_FILE} names it")
    if more := sorted(there - named - named_too):
        raise SourceError(
            f"{directory / more[0]}: {INDEX_FILE} beside it is about an export that does not have this file; remove "
            "one of the two"
        )
