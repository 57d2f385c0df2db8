"""The `.npz` format: members of a zip file, decompressed as a stream, a block of rows at a time."""

from __future__ import annotations

import errno
import lzma
import shutil
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
                members.append(NpzArray(path, key, read_header(stream, label)))
    return members


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise SourceError(f"{path}: truncated or damaged .npz: {error}") from None
    with archive:
        yield archive


def _open_member(archive: zipfile.ZipFile, key: str, label: str) -> IO[bytes]:
    with _stream_errors(label):
        return archive.open(f"{key}.npy")


@contextmanager
def _stream_errors(label: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the disk that a member is copied to is full
        raise SourceError(f"{label}: truncated or damaged .npz member: {error}") from None
