"""Inputs: the columns that an ingest will write, and for each the arrays that its rows come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardstore.column_types import ColumnType
from shardstore.errors import SchemaError, SourceError
from shardstore.schema import Field
from shardstore.sources.exported import find_exported
from shardstore.sources.named import ARRAY, NamedColumn, Sources, find_columns, ragged_form
from shardstore.sources.npy import MAGIC, ArraySource, NpyArray
from shardstore.sources.npz import MAGICS, open_members
from shardstore.sources.parts import Part, make_part
from shardstore.sources.paths import find_files, natural_key
from shardstore.sources.ragged import InputPart, MembersPart, members_part, padded_part, ragged_part
from shardstore.sources.row_ends import RowEnds
from shardstore.sources.split import Cut, parse_split

DEFAULT_COLUMN = "data"
# What may follow a column's name in a key of an .npz: one column of several arrays.
_KEY_ROLES = ("values", "offsets", "lengths", "padded")


@dataclass(frozen=True)
class Inputs:
    """What an ingest reads.

    Attributes:
        parts: by column, in order: what its rows come from, in order.
        files: the files, in order.
    """

    parts: Mapping[str, Sequence[InputPart]]
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
        return sum(part.nbytes for parts in self.parts.values() for part in parts)

    def provenance(self) -> dict[str, Any]:
        """Return what the manifest keeps of the sources: a list per property, one entry per array."""
        # Columns that are cut from the same array name it once; a file that is given twice stands there twice.
        columns = [[array for part in parts for array in part.arrays] for parts in self.parts.values()]
        arrays = [array for column in columns for array in column]
        if len({tuple(array.label for array in column) for column in columns}) == 1:
            arrays = columns[0]
        sizes = {path: path.stat().st_size for path in self.files}
        return {
            # JSON has no way to write the bytes of a name that is not UTF-8.
            "names": [Path(array.label).name.encode("utf-8", "replace").decode() for array in arrays],
            "sizes": [sizes[array.path] for array in arrays],
            "shapes": [list(array.header.shape) for array in arrays],
            "dtypes": [array.header.dtype.str for array in arrays],
        }


@dataclass(frozen=True)
class _Wanted:
    """How a user wants columns: their types, and how an array is cut into them."""

    types: Mapping[str, ColumnType] = field(default_factory=dict)
    cuts: Sequence[Cut] | None = None

    def part(self, name: str, arrays: Mapping[str, ArraySource]) -> InputPart:
        """Return the rows of one file, or of several that belong together, by what their arrays are."""
        declared = self.types.get(name)
        if ARRAY in arrays:
            return make_part(name, arrays[ARRAY], declared=declared)
        if "padded" in arrays:
            return padded_part(name, arrays["padded"], RowEnds(arrays["lengths"], False), declared)
        ends = RowEnds(arrays["offsets"], True) if "offsets" in arrays else RowEnds(arrays["lengths"], False)
        return ragged_part(name, arrays["values"], ends, declared)


def collect_inputs(sources: Sources, split: str | None = None, types: Mapping[str, ColumnType] | None = None) -> Inputs:
    """Find the files, read their headers and check that they make the columns of one store.

    Of ragged columns offsets and lengths are read, too, and checked.

    Args:
        sources: files, globs and directories, or by column name those of parallel files; see
            `shardstore.sources.named` for those of a ragged column.
        split: how to cut each file's array into columns; see `shardstore.sources.split`.
        types: by column, what its rows are to be where the files do not tell.

    Raises:
        SourceError: if a file is missing or damaged, or files disagree.
        SchemaError: if names, split, types or dtypes do not make columns.
    """
    types = types or {}
    if isinstance(sources, Mapping):
        if split is not None:
            raise SchemaError("split cuts the columns out of one array; with named columns give it none")
        inputs = _parallel(find_columns(sources), _Wanted(types))
    elif (exported := find_exported(sources)) is not None:
        if split is not None:
            raise SchemaError("split cuts the columns out of one array, and an export has its own: name a file of it")
        inputs = _parallel(exported.columns, _Wanted({**exported.types, **types}))
        inputs = Inputs(inputs.parts, sorted(inputs.files, key=natural_key))
    else:
        inputs = _one_after_the_other(
            find_files(sources), _Wanted(types, None if split is None else parse_split(split))
        )
    for name in types:
        if name not in inputs.parts:
            raise SchemaError(f"a type is given for column {name!r}, but the columns are {', '.join(inputs.parts)}")
    return _checked(inputs)


def _one_after_the_other(files: list[Path], wanted: _Wanted) -> Inputs:
    parts: dict[str, list[InputPart]] = {}
    for file in files:
        found = _parts_of(file, wanted)
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
    return Inputs(parts, files)


def _parallel(columns: list[NamedColumn], wanted: _Wanted) -> Inputs:
    if not columns:
        raise SourceError("no source files: name at least one column")
    parts = {column.name: [_named_part(column, paths, wanted) for paths in column.groups] for column in columns}
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
                    f"parallel files must agree in rows: {one.rows_label} has {one.rows:,}, "
                    f"{other.rows_label} has {other.rows:,}"
                )
    return Inputs(parts, [path for column in columns for path in column.paths])


def _named_part(column: NamedColumn, paths: tuple[Path, ...], wanted: _Wanted) -> InputPart:
    if column.form == ("rows",):
        return _members_part(column.name, paths[0], wanted)
    return wanted.part(column.name, {r: _plain_array(column.name, p) for r, p in zip(column.form, paths, strict=True)})


def _members_part(name: str, path: Path, wanted: _Wanted) -> MembersPart:
    if not _is_npz(path):
        raise SchemaError(
            f"{path}: the rows of column {name!r} are the members of an .npz file, one each; found an .npy"
        )
    return members_part(name, path, tuple(open_members(path)), wanted.types.get(name))


def _checked(inputs: Inputs) -> Inputs:
    for name, parts in inputs.parts.items():
        first = parts[0]
        for part in parts[1:]:
            if part.field != first.field or not _same_width(first, part):
                raise SourceError(
                    f"files disagree about column {name!r}: {first.label} has {first.row_form}, "
                    f"{part.label} has {part.row_form}"
                )
    return inputs


def _same_width(one: InputPart, other: InputPart) -> bool:
    # What is cut must be of one width: the last of 10 numbers may not mean what the last of 12 does.
    if not isinstance(one, Part) or not isinstance(other, Part) or other.cut.part is None:
        return True
    return one.array.header.shape[1:] == other.array.header.shape[1:]


def _parts_of(path: Path, wanted: _Wanted) -> list[InputPart]:
    """Return the columns that one file of its own gives."""
    if _is_npz(path):
        if wanted.cuts is not None:
            raise SchemaError(f"{path}: split cuts the array of an .npy file; the columns of an .npz are its keys")
        return _archive_parts(path, wanted)
    array = _open_npy(path)
    names, types = array.header.dtype.names, wanted.types
    if names is not None:
        if wanted.cuts is not None:
            raise SchemaError(f"{path}: split cuts a plain array; the columns of a structured one are its fields")
        return [make_part(name, array, member=name, declared=types.get(name)) for name in names]
    if wanted.cuts is None:
        return [make_part(DEFAULT_COLUMN, array, declared=types.get(DEFAULT_COLUMN))]
    return [make_part(cut.name, array, cut=cut, declared=types.get(cut.name)) for cut in wanted.cuts]


def _archive_parts(path: Path, wanted: _Wanted) -> list[InputPart]:
    """Return the columns of an `.npz`: its keys, or several that begin with one name, as `NAME.values`."""
    columns: dict[str, dict[str, ArraySource]] = {}
    for member in open_members(path):
        name, _, role = member.key.replace("/", ".").rpartition(".")
        if not name or role not in _KEY_ROLES:
            name, role = member.key, ARRAY
        if role in columns.setdefault(name, {}):
            raise SchemaError(f"{path}: {member.key!r} is there twice")
        columns[name][role] = member
    for name, arrays in columns.items():
        if arrays.keys() != {ARRAY}:
            try:
                ragged_form(name, list(arrays))
            except SchemaError as error:
                raise SchemaError(f"{path}: {error}") from None
    parts = [wanted.part(name, arrays) for name, arrays in columns.items()]
    if len({part.rows for part in parts}) > 1:
        counts = ", ".join(f"{part.field.name} has {part.rows:,}" for part in parts)
        raise SourceError(f"{path}: the arrays of an .npz are columns and must agree in rows: {counts}")
    return parts


def _plain_array(name: str, path: Path) -> NpyArray:
    if _is_npz(path):
        raise SchemaError(f"{path}: column {name!r} needs plain .npy files; the columns of an .npz are its keys")
    array = _open_npy(path)
    if array.header.dtype.names is not None:
        raise SchemaError(f"{path}: column {name!r} needs plain arrays; a structured one has its own columns")
    return array


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
