"""The `.npy` format: its header, and arrays read block by block through a mapping.

Reads every header version (1.0, 2.0, 3.0). The layout is NumPy's NEP 1. Nothing is ever unpickled.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shardstore.errors import SourceError
from shardstore.schema import nonzero_nbytes
from shardstore.sources.literals import parse_literal

MAGIC = b"\x93NUMPY"
# A header is a short literal; this bound keeps a damaged length field from reading a file into memory.
_MAX_HEADER_NBYTES = 1 << 20
_MOST_AXES = 64  # of NumPy's arrays
_MOST_SHOWN = 300  # characters of what is wrong with one


@dataclass(frozen=True)
class NpyHeader:
    """What an `.npy` header says: dtype, shape, order, and how many bytes it takes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    data_offset: int

    @property
    def data_nbytes(self) -> int:
        """Bytes of the array."""
        return self.dtype.itemsize * prod(self.shape)


class BlockReader(Protocol):
    """An open array: gives blocks of rows, in the array's own dtype and shape."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `[start, stop)`; they are valid until the next call."""


class ArraySource(Protocol):
    """One array of one file. A small picklable value; nothing is open until `open`."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def label(self) -> str:
        """The array's name for messages, such as `part.npz[x]`."""

    @property
    def header(self) -> NpyHeader:
        """Its dtype and shape."""

    @property
    def sequential(self) -> bool:
        """Whether blocks can only be read in order."""

    def open(self) -> Any:
        """Return a context manager that gives a `BlockReader`."""


def read_header(stream: IO[bytes], label: str) -> NpyHeader:
    """Read the header at the beginning of `stream`.

    Raises:
        SourceError: if it is not a whole `.npy` header, is of an unknown version, has no rows (0-d), or is of
            an object dtype.
    """
    prefix = stream.read(8)
    if prefix[:6] != MAGIC:
        raise SourceError(f"{label}: not an .npy file: it does not begin with NumPy's signature")
    version = tuple(prefix[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise SourceError(f"{label}: .npy version {'.'.join(map(str, version))} is unknown; expected 1.0, 2.0 or 3.0")
    length_size = 2 if version == (1, 0) else 4
    length_bytes = stream.read(length_size)
    length = int.from_bytes(length_bytes, "little")
    if length > _MAX_HEADER_NBYTES:
        raise SourceError(f"{label}: damaged .npy header: it claims to be {length:,} bytes long")
    text = stream.read(length)
    if len(length_bytes) < length_size or len(text) < length:
        raise SourceError(f"{label}: truncated .npy: the file ends within its header")
    try:
        fields = parse_literal(text.decode("utf-8" if version == (3, 0) else "latin-1"))
        dtype, shape, fortran_order = _dtype(fields["descr"]), fields["shape"], fields["fortran_order"]
        if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"shape is {shape!r}, expected a tuple of numbers from 0 on")
        if type(fortran_order) is not bool:
            raise ValueError(f"fortran_order is {fortran_order!r}, expected True or False")
        if len(shape) > _MOST_AXES or nonzero_nbytes(dtype, shape) >= 1 << 63:
            raise ValueError(f"no array can have the shape {shape!r}")
    # NumPy warns of dtypes by old names, which is an error where the user wants it to be.
    except (ValueError, TypeError, KeyError, OverflowError, Warning) as error:
        reason = str(error)
        reason = reason if len(reason) <= _MOST_SHOWN else f"{reason[:_MOST_SHOWN]}…"
        raise SourceError(f"{label}: damaged .npy header: {reason}") from None
    if dtype.hasobject:
        raise SourceError(
            f"{label}: an array of Python objects is a pickle, which is never loaded: save it with a numeric dtype"
        )
    if dtype.names == ():
        raise SourceError(f"{label}: a structured array without fields makes no columns")
    if not shape:
        raise SourceError(f"{label}: a single value (0-d array) has no rows; expected at least one axis")
    return NpyHeader(dtype, shape, fortran_order, 8 + length_size + length)


# A dtype as NumPy writes it. It would read much more than that, whole programs of commas and brackets.
_TYPE = re.compile(r"[<>|=]?[A-Za-z?][A-Za-z0-9_]{0,30}(\[[A-Za-z0-9/]{1,30}\])?")


def _dtype(descr: Any) -> np.dtype[Any]:
    """Return the dtype that is described; raise `ValueError` or `TypeError` if none is."""
    _check_types(descr)
    return np.lib.format.descr_to_dtype(descr)


def _check_types(descr: Any) -> None:
    """Raise `ValueError` unless a description is a type, a type and its shape, or a list of named ones."""
    if isinstance(descr, tuple) and len(descr) == 2:
        _check_types(descr[0])
    elif isinstance(descr, list) and all(isinstance(field, tuple) and len(field) in (2, 3) for field in descr):
        for field in descr:
            _check_types(field[1])
    elif not isinstance(descr, str) or not _TYPE.fullmatch(descr):
        raise ValueError(f"not a dtype: {descr!r}")


def little_endian(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the little-endian form of a plain dtype."""
    return dtype.newbyteorder("<")


@dataclass(frozen=True)
class NpyArray:
    """A whole `.npy` file, or one field of a structured one."""

    path: Path
    header: NpyHeader
    sequential = False

    @classmethod
    def open_header(cls, path: Path, label: str | None = None) -> NpyArray:
        """Read a file's header and check that the file is as long as it says; `label` names it in messages."""
        with path.open("rb") as stream:
            header = read_header(stream, label or str(path))
            found = stream.seek(0, 2)
        expected = header.data_offset + header.data_nbytes
        if found != expected:
            what = "truncated .npy" if found < expected else "more bytes than its header says"
            raise SourceError(f"{label or path}: {what}: expected {expected:,} bytes, found {found:,}")
        return cls(path, header)

    @property
    def label(self) -> str:
        """The file's path."""
        return str(self.path)

    @contextmanager
    def open(self) -> Iterator[BlockReader]:
        """Map the file for reading."""
        if self.header.data_nbytes == 0:
            yield _ArrayReader(np.empty(self.header.shape, self.header.dtype))
            return
        with self.path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_SEQUENTIAL"):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        order: Literal["F", "C"] = "F" if self.header.fortran_order else "C"
        # The array keeps the mapping alive, so it goes when the last block does.
        yield _ArrayReader(
            np.ndarray(self.header.shape, self.header.dtype, mapped, self.header.data_offset, order=order)
        )


class _ArrayReader:
    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def read(self, start: int, stop: int) -> NDArray[Any]:
        return self.array[start:stop]
