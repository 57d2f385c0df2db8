"""The `.npz` format: members of a zip file, decompressed as a stream, a block of rows at a time."""

from __future__ import annotations

import errno
import lzma
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from shardstore.errors import SourceError
from shardstore.sources.npy import BlockReader, NpyArray, NpyHeader, read_header

MAGICS = (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class NpzArray:
    """One member of an `.npz` file."""

    path: Path
    key: str
    header: NpyHeader
    sequential = True

    @property
    def label(self) -> str:
        """The file's path and the member's key."""
        return f"{self.path}[{self.key}]"

    @contextmanager
    def open(self) -> Iterator[BlockReader]:
        """Open the member as a stream; a Fortran-ordered one has no rows in sequence and goes through a file."""
        with _open_archive(self.path) as archive, _open_member(archive, self.key, self.label) as stream:
            if self.header.fortran_order and len(self.header.shape) > 1:
                with tempfile.TemporaryDirectory(prefix="shardstore-") as directory:
                    copy = Path(directory) / "member.npy"
                    with copy.open("wb") as file, _stream_errors(self.label):
                        shutil.copyfileobj(stream, file, 1 << 20)
                    with NpyArray.open_header(copy, self.label).open() as reader:
                        yield reader
                return
            read_header(stream, self.label)
            yield _StreamReader(stream, self.header, self.label)


class _StreamReader:
    def __init__(self, stream: IO[bytes], header: NpyHeader, label: str) -> None:
        self._stream = stream
        self._header = header
        self._label = label
        self._next = 0

    def read(self, start: int, stop: int) -> NDArray[Any]:
        if start != self._next:
            raise ValueError(f"rows of a stream come in order: asked for {start}, next is {self._next}")
        self._next = stop
        block = np.empty((stop - start, *self._header.shape[1:]), self._header.dtype)
        view = memoryview(block.reshape(-1).view(np.uint8).data)
        with _stream_errors(self._label):
            while len(view):
                piece = self._stream.read(len(view))
                if not piece:
                    raise EOFError("the member ends before its last row")
                view[: len(piece)] = piece
                view = view[len(piece) :]
            if stop == self._header.shape[0] and self._stream.read(1):  # reading to the end checks the zip's CRC
                raise EOFError("the member has more bytes than its header says")
        return block


def read_members(path: Path, members: Sequence[NpzArray]) -> Iterator[NDArray[Any]]:
    """Yield all of one member after the other; the file is opened once.

    Raises:
        SourceError: if it is damaged.
    """
    with _open_archive(path) as archive:
        for member in members:
            with _open_member(archive, member.key, member.label) as stream:
                header = read_header(stream, member.label)
                shape = header.shape[::-1] if header.fortran_order else header.shape
                array = _StreamReader(stream, replace(header, shape=shape), member.label).read(0, shape[0])
                yield array.T if header.fortran_order else array


def open_members(path: Path) -> list[NpzArray]:
    """Return the arrays of an `.npz` file, in the order they stand in it; raise `SourceError` if it is none."""
    with _open_archive(path) as archive:
        names = archive.namelist()
        if not names:
            raise SourceError(f"{path}: an .npz file without arrays")
        members = []
        for name in names:
            if not name.endswith(".npy"):
                raise SourceError(f"{path}: not an .npz file: it holds {name!r} beside arrays")
            key = name.removesuffix(".npy")
            label = f"{path}[{key}]"
            with _open_member(archive, key, label) as stream, _stream_errors(label):
                header = read_header(stream, label)
            _check_size(archive, header, key, label)
            members.append(NpzArray(path, key, header))
    return members


# So many bytes at most does a method make of one: what claims more is not believed, before memory is taken for it.
_MOST_EXPANSION = {
    zipfile.ZIP_STORED: 1,
    zipfile.ZIP_DEFLATED: 1_032,
    zipfile.ZIP_BZIP2: 1 << 21,
    zipfile.ZIP_LZMA: 1 << 14,
}


def _check_size(archive: zipfile.ZipFile, header: NpyHeader, key: str, label: str) -> None:
    """Raise `SourceError` unless a member has as many bytes as its header says, and the archive as it says of it."""
    info = archive.getinfo(f"{key}.npy")
    expected = header.data_offset + header.data_nbytes
    if info.file_size != expected:
        raise SourceError(
            f"{label}: truncated or damaged .npz member: expected {expected:,} bytes, found {info.file_size:,}"
        )
    assert archive.fp is not None
    stored = min(info.compress_size, archive.fp.seek(0, 2))
    # A few bytes of a stream say how it is compressed, and none of what is.
    if expected > (stored + 1) * _MOST_EXPANSION[info.compress_type]:
        raise SourceError(f"{label}: damaged .npz member: {stored:,} bytes cannot be {expected:,} when decompressed")


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, OSError) as error:
        raise SourceError(f"{path}: truncated or damaged .npz: {error}") from None
    with archive:
        yield archive


def _open_member(archive: zipfile.ZipFile, key: str, label: str) -> IO[bytes]:
    with _stream_errors(label):
        return archive.open(f"{key}.npy")


# What reading a member raises; the archive's own directory tells zipfile where to look and how much to take.
_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError, MemoryError, OSError),
)


@contextmanager
def _stream_errors(label: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the disk that a member is copied to is full
        raise SourceError(f"{label}: truncated or damaged .npz member: {error}") from None
