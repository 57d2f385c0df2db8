"""Inputs: the columns that an ingest will write, and for each the arrays that its rows come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.errors import SchemaError, SourceError
from shardstore.schema import Field
from shardstore.sources.npy import MAGIC, ArraySource, NpyArray, little_endian
from shardstore.sources.npz import MAGICS, open_members
from shardstore.sources.paths import Paths, find_files
from shardstore.sources.split import Cut, parse_split

DEFAULT_COLUMN = "data"


@dataclass(frozen=True)
class Part:
    """The rows that one array gives to one column.

    Attributes:
        array: where they are read.
        field: the column as this array has it.
        member: the structured dtype's field to take, or None.
        cut: the part of the last axis to take, with its cast.
    """

    array: ArraySource
    field: Field
    member: str | None
    cut: Cut

    @property
    def rows(self) -> int:
        """Rows of the array."""
        return self.array.header.shape[0]

    @property
    def row_form(self) -> str:
        """Dtype and shape of the array's rows, before any cut; of a structured array only the column's own field."""
        header = self.array.header
        if self.member is not None:
            return str(self.field)
        shape = "×".join(map(str, header.shape[1:]))
        return f"{little_endian(header.dtype)}[{shape}]" if shape else str(little_endian(header.dtype))

    def read(self, start: int, stop: int, block_rows: int) -> Iterator[NDArray[Any]]:
        """Yield rows `[start, stop)` in blocks, C-contiguous and of the field's dtype.

        A block is valid until the next one; unless the order, byte order or cut differ it is not a copy.

        Raises:
            SourceError: if a value would not survive its cast, or the file ends early.
        """
        with self.array.open() as reader:
            for first in range(start, stop, block_rows):
                block = reader.read(first, min(first + block_rows, stop))
                yield self._convert(block if self.member is None else block[self.member], first)

    def _convert(self, block: NDArray[Any], first_row: int) -> NDArray[Any]:
        block = self.cut.apply(block)
        if self.cut.cast is None:
            return np.ascontiguousarray(block, self.field.dtype).reshape(len(block), *self.field.row_shape)
        result, changed = self.cut.cast.apply(np.ascontiguousarray(block))
        if changed is not None:
            row = first_row + changed // max(1, block[0].size)
            hint = "; write @~DTYPE to allow rounding" if self.field.dtype.kind in "fc" else ""
            raise SourceError(
                f"{self.array.label}, row {row:,}: the value {block.reshape(-1)[changed]} of column "
                f"{self.field.name!r} would change in a cast to {self.field.dtype}{hint}"
            )
        return result


@dataclass(frozen=True)
class Inputs:
    """What an ingest reads.

    Attributes:
        parts: by column, in order: the arrays that its rows come from, in order.
        files: the files, in order.
    """

    parts: Mapping[str, list[Part]]
    files: list[Path]

    @property
    def fields(self) -> list[Field]:
        """The columns."""
        return [parts[0].field for parts in self.parts.values()]

    @property
    def rows(self) -> int:
        """Rows of every column."""
        return sum(part.rows for part in next(iter(self.parts.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return self.rows * sum(field.row_nbytes for field in self.fields)

    def provenance(self) -> dict[str, Any]:
        """Return what the manifest keeps of the sources: a list per property, one entry per array."""
        # Columns that are cut from the same array name it once; a file that is given twice stands there twice.
        columns = list(self.parts.values())
        arrays = [part.array for parts in columns for part in parts]
        if len({tuple(part.array.label for part in parts) for parts in columns}) == 1:
            arrays = arrays[: len(columns[0])]
        sizes = {path: path.stat().st_size for path in self.files}
        return {
            # JSON has no way to write the bytes of a name that is not UTF-8.
            "names": [Path(array.label).name.encode("utf-8", "replace").decode() for array in arrays],
            "sizes": [sizes[array.path] for array in arrays],
            "shapes": [list(array.header.shape) for array in arrays],
            "dtypes": [array.header.dtype.str for array in arrays],
        }


def collect_inputs(sources: Paths | Mapping[str, Paths], split: str | None = None) -> Inputs:
    """Find the files, read their headers and check that they make the columns of one store.

    Args:
        sources: files, globs and directories, or by column name those of parallel files.
        split: how to cut each file's array into columns; see `shardstore.sources.split`.

    Raises:
        SourceError: if a file is missing or damaged, or files disagree.
        SchemaError: if names, split or dtypes do not make columns.
    """
    if isinstance(sources, Mapping):
        if split is not None:
            raise SchemaError("split cuts the columns out of one array; with named columns give it none")
        return _parallel({name: find_files(paths) for name, paths in sources.items()})
    files = find_files(sources)
    cuts = None if split is None else parse_split(split)
    parts: dict[str, list[Part]] = {}
    for file in files:
        found = _parts_of(file, cuts)
        if not parts:
            parts = {part.field.name: [] for part in found}
            if len(parts) != len(found):
                names = [part.field.name for part in found]
                raise SchemaError(f"{file}: column {next(n for n in names if names.count(n) > 1)!r} is named twice")
        if {part.field.name for part in found} != parts.keys():
            raise SourceError(
                f"{files[0]} has the columns {', '.join(parts)}, but {file} has "
                f"{', '.join(part.field.name for part in found)}"
            )
        for part in found:
            parts[part.field.name].append(part)
    return _checked(Inputs(parts, files))


def _parallel(files: dict[str, list[Path]]) -> Inputs:
    if not files:
        raise SourceError("no source files: name at least one column")
    parts = {name: [_plain_part(name, path) for path in paths] for name, paths in files.items()}
    first, *others = parts
    for name in others:
        if len(parts[name]) != len(parts[first]):
            raise SourceError(
                f"parallel files must pair up: column {first!r} has {len(parts[first])} files, "
                f"column {name!r} has {len(parts[name])}"
            )
        for one, other in zip(parts[first], parts[name], strict=True):
            if one.rows != other.rows:
                raise SourceError(
                    f"parallel files must agree in rows: {one.array.label} has {one.rows:,}, "
                    f"{other.array.label} has {other.rows:,}"
                )
    return _checked(Inputs(parts, [path for paths in files.values() for path in paths]))


def _checked(inputs: Inputs) -> Inputs:
    for name, parts in inputs.parts.items():
        for part in parts[1:]:
            # What is cut must be of one width: the last of 10 numbers may not mean what the last of 12 does.
            same_rows = part.cut.part is None or part.array.header.shape[1:] == parts[0].array.header.shape[1:]
            if part.field != parts[0].field or not same_rows:
                raise SourceError(
                    f"files disagree about column {name!r}: {parts[0].array.label} has {parts[0].row_form}, "
                    f"{part.array.label} has {part.row_form}"
                )
    return inputs


def _parts_of(path: Path, cuts: list[Cut] | None) -> list[Part]:
    """Return the columns that one file of its own gives."""
    if _is_npz(path):
        if cuts is not None:
            raise SchemaError(f"{path}: split cuts the array of an .npy file; the columns of an .npz are its keys")
        members = open_members(path)
        rows = {member.header.shape[0] for member in members}
        if len(rows) > 1:
            counts = ", ".join(f"{member.key} has {member.header.shape[0]:,}" for member in members)
            raise SourceError(f"{path}: the arrays of an .npz are columns and must agree in rows: {counts}")
        return [_part(member.key, member) for member in members]
    array = _open_npy(path)
    names = array.header.dtype.names
    if names is not None:
        if cuts is not None:
            raise SchemaError(f"{path}: split cuts a plain array; the columns of a structured one are its fields")
        return [_part(name, array, member=name) for name in names]
    if cuts is None:
        return [_part(DEFAULT_COLUMN, array)]
    return [_part(cut.name, array, cut=cut) for cut in cuts]


def _plain_part(name: str, path: Path) -> Part:
    if _is_npz(path):
        raise SchemaError(f"{path}: column {name!r} needs plain .npy files; the columns of an .npz are its keys")
    array = _open_npy(path)
    if array.header.dtype.names is not None:
        raise SchemaError(f"{path}: column {name!r} needs plain arrays; a structured one has its own columns")
    return _part(name, array)


def _part(name: str, array: ArraySource, member: str | None = None, cut: Cut | None = None) -> Part:
    dtype, row_shape = array.header.dtype, array.header.shape[1:]
    if member is not None:
        dtype = dtype[member]
    if dtype.subdtype is not None:
        dtype, inner = dtype.subdtype
        row_shape = (*row_shape, *inner)
    if dtype.names is not None:
        raise SchemaError(f"{array.label}: column {name!r} is itself structured; flatten its fields first")
    cut = cut or Cut(name)
    dtype, row_shape = cut.result(dtype, row_shape, array.label)
    try:
        return Part(array, Field.of(name, little_endian(dtype), row_shape), member, cut)
    except SchemaError as error:
        raise SchemaError(f"{array.label}: {error}") from None


def _is_npz(path: Path) -> bool:
    with _readable(path).open("rb") as stream:
        magic = stream.read(len(MAGIC))
    if magic[:4] not in MAGICS and magic != MAGIC:
        found = "is empty" if not magic else "does not begin with NumPy's signature"
        raise SourceError(f"{path}: not an .npy or .npz file: it {found}")
    return magic[:4] in MAGICS


def _open_npy(path: Path) -> NpyArray:
    return NpyArray.open_header(_readable(path))


def _readable(path: Path) -> Path:
    try:
        if path.exists() and not path.is_file():
            raise SourceError(f"{path}: not a regular file: only those can be mapped")
        path.open("rb").close()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
    return path
