"""The index of an export, `columns.json`: which files hold which column, and what they cannot say of it themselves."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardstore.column_bodies import shown
from shardstore.column_types import ColumnType
from shardstore.errors import SourceError
from shardstore.files import MOST_METADATA_BYTES
from shardstore.schema import Field, dtype_named

INDEX_FILE = "columns.json"
_MARK = "shardstore_export"
_VERSION = 1


@dataclass(frozen=True)
class ExportedColumn:
    """One column of an export.

    Attributes:
        name: the column's name.
        files: names of the files that hold its rows, by what their arrays are: `array`, or `values` and `offsets`.
        type: what the rows were.
    """

    name: str
    files: Mapping[str, str]
    type: ColumnType


def exported_files(field: Field) -> dict[str, str]:
    """Return the names of the files that hold a column's rows, by what their arrays are."""
    if field.is_ragged:
        return {role: f"{field.name}.{role}.npy" for role in ("values", "offsets")}
    return {"array": f"{field.name}.npy"}


def categories_file(name: str) -> str:
    """Return the name of the file that repeats a categorical column's names for other programs."""
    return f"{name}.categories.npy"


def index_document(fields: Iterable[Field]) -> dict[str, Any]:
    """Return what an export's index says."""
    columns = []
    for field in fields:
        column: dict[str, Any] = {"name": field.name, "kind": field.kind, "dtype": str(field.dtype)}
        if field.kind == "categorical":
            column["categories"] = list(field.categories)
        columns.append(column | {"files": exported_files(field)})
    return {_MARK: _VERSION, "columns": columns}


def read_index(directory: Path) -> list[ExportedColumn] | None:
    """Return the columns of an export, or None if the directory is none.

    Raises:
        SourceError: if the index is damaged or of a later version.
    """
    path = directory / INDEX_FILE
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_METADATA_BYTES:
            raise SourceError(f"{path}: expected a file of at most {MOST_METADATA_BYTES:,} bytes")
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error}") from None
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or _MARK not in document:
            return None  # somebody else's
        if document[_MARK] != _VERSION:
            raise SourceError(
                f"{path}: the export has version {document[_MARK]!r}; this release reads {_VERSION}: "
                "install a newer shardstore"
            )
        return [_read_column(column) for column in document["columns"]]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise SourceError(
            f"{path}: damaged index of an export ({shown(error, 300)}); remove it to take the files for what they are"
        ) from None


def _read_column(body: Any) -> ExportedColumn:
    kind, name, dtype = body["kind"], body["name"], body["dtype"]
    if kind not in ("fixed", "ragged", "utf8", "binary", "categorical"):
        raise ValueError(f"kind {kind!r}")
    if not isinstance(dtype, str) or not isinstance(name, str):
        raise ValueError(f"name {name!r}, dtype {dtype!r}")
    categories = _texts(body["categories"]) if kind == "categorical" else None
    files = dict(body["files"])
    if set(files) not in ({"array"}, {"values", "offsets"}) or not all(map(_is_file_name, _texts(files.values()))):
        raise ValueError(f"files {list(files.values())}")
    return ExportedColumn(name, files, ColumnType(kind, dtype_named(dtype).newbyteorder("<"), None, categories))


def _texts(found: Iterable[Any]) -> tuple[str, ...]:
    texts = tuple(found)
    if isinstance(found, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{shown(found)} are no texts")
    return texts


def _is_file_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..") and "\0" not in name
