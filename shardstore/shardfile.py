"""One shard file: chunks back to back from byte 0, then their checksums, then the Zarr shard index.

    chunk 0 | chunk 1 | … | slots × uint32 CRC32C | slots × (offset, nbytes) uint64 | CRC32C of the index

The last three parts are the *footer*. The CRC32C of the first two of them goes into the store's manifest, so that the
manifest vouches for the footer and the footer for every chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from shardstore.checksum import CHECKSUM_NBYTES, crc32c
from shardstore.errors import CorruptionError
from shardstore.schema import ArrayLayout

ABSENT = np.uint64(2**64 - 1)
_INDEX_ENTRY_NBYTES = 16
_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)
# Files are written in units of a huge page: then Linux caches them in huge pages and maps them as such, so that a
# random row costs fewer page walks.
_WRITE_UNIT = 2 << 20
# Chunks are checked in runs of so many bytes: few calls, and a buffer that the processor's cache holds.
_CHECK_UNIT = 1 << 20


def footer_nbytes(slots: int) -> int:
    """Return the size of a shard's footer."""
    return slots * (CHECKSUM_NBYTES + _INDEX_ENTRY_NBYTES) + CHECKSUM_NBYTES


def footer_checksum(footer: bytes) -> int:
    """Return the CRC32C that the manifest keeps of a footer.

    It leaves out the index checksum at the end: with it, the CRC32C would not depend on the index, since what
    follows a part of itself with that part's own CRC32C cancels out.
    """
    return crc32c(footer[:-CHECKSUM_NBYTES])


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest keeps of one shard file.

    Attributes:
        nbytes: size of the whole file.
        footer_crc32c: CRC32C of its footer without the index checksum at the end.
    """

    nbytes: int
    footer_crc32c: int


@dataclass(frozen=True)
class Footer:
    """Where the chunks of a shard lie, and their checksums.

    Attributes:
        bounds: uint64 `(chunks + 1,)`; chunk *k* is the bytes `[bounds[k], bounds[k+1])` of the file.
        checksums: uint32 `(chunks,)`, the CRC32C of each chunk's stored bytes.
    """

    bounds: NDArray[np.uint64]
    checksums: NDArray[np.uint32]

    def to_bytes(self, slots: int) -> bytes:
        """Return the footer as it stands in a file with `slots` slots."""
        chunks = len(self.checksums)
        checksums = np.zeros(slots, "<u4")
        checksums[:chunks] = self.checksums
        index = np.full((slots, 2), ABSENT, "<u8")
        index[:chunks, 0] = self.bounds[:-1]
        index[:chunks, 1] = np.diff(self.bounds)
        index_bytes = index.tobytes()
        return checksums.tobytes() + index_bytes + crc32c(index_bytes).to_bytes(CHECKSUM_NBYTES, "little")

    @classmethod
    def from_bytes(cls, data: bytes, slots: int, chunks: int, where: str) -> Footer:
        """Read a footer of a shard that must hold `chunks` chunks; raise `CorruptionError` if it does not."""
        checksums = np.frombuffer(data, "<u4", slots)
        index_bytes = data[slots * CHECKSUM_NBYTES : -CHECKSUM_NBYTES]
        if crc32c(index_bytes) != int.from_bytes(data[-CHECKSUM_NBYTES:], "little"):
            raise CorruptionError(f"{where}: the shard index does not match its checksum; {RESTORE}")
        index = np.frombuffer(index_bytes, "<u8").reshape(slots, 2)
        bounds = np.zeros(chunks + 1, np.uint64)
        np.cumsum(index[:chunks, 1], out=bounds[1:])
        grow = (bounds[1:] >= bounds[:-1]).all()  # sums of made-up sizes begin again at 0
        if not (grow and np.array_equal(index[:chunks, 0], bounds[:-1]) and (index[chunks:] == ABSENT).all()):
            raise CorruptionError(f"{where}: the shard index does not list {chunks} chunks back to back; {RESTORE}")
        return cls(bounds, checksums[:chunks].copy())


RESTORE = "restore the file from a copy, or see what shardstore repair can do"


class ShardWriter:
    """Writes one shard file under a temporary name; `finish` makes it whole, brings it to disk and gives it its own.

    The name itself is on disk once its directory is, which whoever commits the store sees to.

    A context manager: leaving it without `finish` removes what was written.
    """

    def __init__(self, path: Path, layout: ArrayLayout) -> None:
        self.path = path  # the name that the file gets
        self._partial = path.with_name(f".{path.name}.partial")
        self._layout = layout
        self._rows = 0
        self._bounds = [0]
        self._checksums: list[int] = []
        self._crc = 0
        self._process = os.getpid()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("xb", buffering=0)
        # What is written and does not fill a unit yet.
        self._held = bytearray()
        # Compressed chunks are encoded whole, so the rows of an unfinished one wait here.
        shape = (layout.chunk_rows, *layout.field.row_shape)
        self._chunk = None if layout.codec.is_raw else np.zeros(shape, layout.field.dtype)

    @property
    def room(self) -> int:
        """How many rows the shard still takes."""
        return self._layout.shard_rows - self._rows

    def take_over(self, path: Path, record: ShardRecord, rows_in_file: int, rows: int) -> None:
        """Begin with the first rows of another file of the shard.

        Whole chunks are copied as they are stored, with the checksums that they had: damage stays damage.

        Raises:
            CorruptionError: if the file's footer, or the chunk that is gone on with, is not what was written.
        """
        descriptor = os.open(path, _READ)
        try:
            footer = read_footer(descriptor, path, self._layout, record, rows_in_file)
            whole, rest = divmod(rows, self._layout.chunk_rows)
            end = int(footer.bounds[whole])
            for start in range(0, end, _WRITE_UNIT):
                self._write(read_at(descriptor, min(_WRITE_UNIT, end - start), start))
            self._bounds = footer.bounds[: whole + 1].tolist()
            self._checksums = footer.checksums[:whole].tolist()
            self._rows = rows - rest
            if rest:
                field = self._layout.field
                chunk = np.empty((self._layout.chunk_rows, *field.row_shape), field.dtype)
                read_chunks(descriptor, self._layout, footer, range(whole, whole + 1), chunk.reshape(-1).view(np.uint8))
                self.append(chunk[:rest])
        except ChunkError as error:
            raise CorruptionError(f"{path}, chunk {error.chunk}: {error}; {RESTORE}") from None
        finally:
            os.close(descriptor)

    def append(self, rows: NDArray[Any]) -> None:
        """Write C-contiguous rows of the field's dtype, at most `room` of them."""
        chunk_rows = self._layout.chunk_rows
        if self._chunk is None:
            self._write(rows)
        start = 0
        while start < len(rows):
            filled = self._rows % chunk_rows
            piece = rows[start : start + chunk_rows - filled]
            if self._chunk is None:
                self._crc = crc32c(piece, self._crc)
            else:
                self._chunk[filled : filled + len(piece)] = piece
            start += len(piece)
            self._rows += len(piece)
            if filled + len(piece) == chunk_rows:
                self._end_chunk()

    def finish(self) -> ShardRecord:
        """Pad the last chunk with zeros, write the footer, bring all of it to disk and name the file."""
        missing = -self._rows % self._layout.chunk_rows
        if missing:
            if self._chunk is None:
                zeros = bytes(missing * self._layout.field.row_nbytes)
                self._write(zeros)
                self._crc = crc32c(zeros, self._crc)
            else:
                self._chunk[-missing:] = np.zeros((), self._chunk.dtype)
            self._end_chunk()
        footer = Footer(np.array(self._bounds, np.uint64), np.array(self._checksums, np.uint32))
        data = footer.to_bytes(self._layout.slots)
        self._write(data)
        self._write_through(self._held)
        os.fsync(self._file.fileno())
        nbytes = self._file.tell()
        self._file.close()
        self._partial.replace(self.path)
        return ShardRecord(nbytes, footer_checksum(data))

    def _end_chunk(self) -> None:
        if self._chunk is None:
            self._checksums.append(self._crc)
            self._bounds.append(self._bounds[-1] + self._layout.chunk_nbytes)
            self._crc = 0
        else:
            stored = self._layout.codec.encode(self._chunk.view(self._layout.field.stored_dtype))
            self._write(stored)
            self._checksums.append(self._layout.codec.checksum(stored))
            self._bounds.append(self._bounds[-1] + len(stored))

    def _write(self, data: bytes | NDArray[Any]) -> None:
        view = memoryview(data if isinstance(data, bytes) else data.reshape(-1).view(np.uint8).data)
        if self._held:
            room = _WRITE_UNIT - len(self._held)
            self._held += view[:room]
            view = view[room:]
            if len(self._held) < _WRITE_UNIT:
                return
            self._write_through(self._held)
            self._held.clear()
        whole = len(view) - len(view) % _WRITE_UNIT
        self._write_through(view[:whole])
        self._held += view[whole:]

    def _write_through(self, data: bytearray | memoryview) -> None:
        with memoryview(data) as view:
            written = 0
            while written < len(view):
                written += self._file.write(view[written:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            self._file.close()
            if os.getpid() == self._process:  # a child of a fork may leave here, too
                self._partial.unlink(missing_ok=True)


def read_footer(descriptor: int, path: Path, layout: ArrayLayout, record: ShardRecord, rows: int) -> Footer:
    """Read the footer of an open shard that holds `rows` rows, and check it against the manifest.

    Raises:
        CorruptionError: if any of it differs from what was written.
    """
    size = footer_nbytes(layout.slots)
    if record.nbytes < size:
        raise CorruptionError(f"{path}: {record.nbytes:,} bytes are less than a footer of {size:,}; {RESTORE}")
    data = read_at(descriptor, size, record.nbytes - size)
    if len(data) != size or footer_checksum(data) != record.footer_crc32c:
        raise CorruptionError(f"{path}: the footer does not match its checksum in the manifest; {RESTORE}")
    footer = Footer.from_bytes(data, layout.slots, layout.chunks_for(rows), str(path))
    if int(footer.bounds[-1]) + size != record.nbytes:
        raise CorruptionError(f"{path}: the chunks do not fill the file up to its footer; {RESTORE}")
    return footer


def whole_shard(path: Path, layout: ArrayLayout, rows: int) -> ShardRecord | None:
    """Return the record of a shard file if it is there, holds `rows` rows and every chunk fits its checksum."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    try:
        nbytes, size = os.fstat(descriptor).st_size, footer_nbytes(layout.slots)
        if nbytes < size:
            return None
        record = ShardRecord(nbytes, footer_checksum(read_at(descriptor, size, nbytes - size)))
        footer = read_footer(descriptor, path, layout, record, rows)
        damaged = any(isinstance(found, DamagedChunk) for found in check_chunks(descriptor, layout, footer, rows))
        return None if damaged else record
    except CorruptionError:
        return None
    finally:
        os.close(descriptor)


def read_at(descriptor: int, nbytes: int, offset: int) -> bytes:
    """Read `nbytes` at `offset`, whatever else reads through the same descriptor; fewer only at the file's end."""
    if not hasattr(os, "pread"):
        # Windows has no positional read. No descriptor is shared between threads here.
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, nbytes)
    data = os.pread(descriptor, nbytes, offset)
    if len(data) == nbytes:
        return data
    pieces = [data]  # one call of Linux reads no more than 2 GiB
    while data:
        nbytes, offset = nbytes - len(data), offset + len(data)
        data = os.pread(descriptor, nbytes, offset)
        pieces.append(data)
    return b"".join(pieces)


@dataclass(frozen=True)
class DamagedChunk:
    """A chunk whose bytes are not the ones that were written: its number, and its rows within the shard."""

    chunk: int
    start: int
    stop: int
    reason: str


class ChunkError(ValueError):
    """A chunk whose bytes are not the ones that were written.

    Attributes:
        chunk: its number in the shard.
    """

    def __init__(self, chunk: int, reason: object) -> None:
        super().__init__(str(reason))
        self.chunk = chunk


def read_chunks(descriptor: int, layout: ArrayLayout, footer: Footer, chunks: range, out: NDArray[np.uint8]) -> None:
    """Decode consecutive chunks of an open shard, one after the other, into the bytes `out`.

    Raises:
        ChunkError: if the bytes of one are not what was written.
    """
    bounds = footer.bounds[chunks.start : chunks.stop + 1].tolist()
    checksums = footer.checksums[chunks.start : chunks.stop].tolist()
    stored = np.frombuffer(read_at(descriptor, bounds[-1] - bounds[0], bounds[0]), np.uint8)
    size = layout.chunk_nbytes
    for i, chunk in enumerate(chunks):
        part = stored[bounds[i] - bounds[0] : bounds[i + 1] - bounds[0]]
        _decode_chunk(layout, chunk, part, checksums[i], out[i * size : (i + 1) * size])


def _decode_chunk(
    layout: ArrayLayout, chunk: int, stored: NDArray[np.uint8], checksum: int, out: NDArray[np.uint8]
) -> None:
    check_sum(chunk, layout.codec.checksum(stored), checksum)
    try:
        layout.codec.decode(stored, layout.chunk_nbytes, out)
    except ValueError as error:
        raise ChunkError(chunk, error) from error


def check_sum(chunk: int, found: int, expected: int) -> None:
    """Raise `ChunkError` unless the CRC32C of a chunk's stored bytes is the one in the checksum table."""
    if found != expected:
        raise ChunkError(chunk, f"CRC32C is {found:08x}, expected {expected:08x}")


def check_chunks(
    descriptor: int, layout: ArrayLayout, footer: Footer, rows: int, decode: bool = True
) -> Iterator[DamagedChunk | int]:
    """Yield, for each chunk of an open shard of `rows` rows, its size in bytes, or the damage found in it.

    Args:
        descriptor: the open file.
        layout: how its array is cut.
        footer: its footer.
        rows: how many rows it holds.
        decode: whether to decode compressed chunks, too.
    """
    check = _ChunkCheck(descriptor, layout, footer, decode)
    for chunks in _units(footer.bounds.tolist()):
        for chunk, problem in zip(chunks, check.problems(chunks), strict=True):
            if problem is None:
                yield int(footer.bounds[chunk + 1]) - int(footer.bounds[chunk])
            else:
                start = chunk * layout.chunk_rows
                yield DamagedChunk(chunk, start, min(start + layout.chunk_rows, rows), str(problem))


def _units(bounds: list[int]) -> Iterator[range]:
    """Cut the chunks of a shard into runs of at most some megabytes, or of one chunk."""
    first = 0
    for chunk in range(1, len(bounds)):
        if chunk + 1 == len(bounds) or bounds[chunk + 1] - bounds[first] > _CHECK_UNIT:
            yield range(first, chunk)
            first = chunk


class _ChunkCheck:
    """Checks chunks of an open shard, read many at a time into one buffer."""

    def __init__(self, descriptor: int, layout: ArrayLayout, footer: Footer, decode: bool) -> None:
        self._descriptor = descriptor
        self._layout = layout
        self._bounds = footer.bounds.tolist()
        self._checksums = footer.checksums.tolist()
        self._buffer = np.empty(0, np.uint8)
        decodes = decode and not layout.codec.is_raw
        self._decoded = np.empty(layout.chunk_nbytes, np.uint8) if decodes else None

    def problems(self, chunks: range) -> Iterator[Exception | None]:
        """Yield what is wrong with each of some consecutive chunks, or None."""
        first, last = self._bounds[chunks.start], self._bounds[chunks.stop]
        try:
            stored = self._read(last - first, first)
        except OSError as error:
            if len(chunks) == 1:
                yield error
                return
            for chunk in chunks:  # to name those that cannot be read
                yield from self.problems(range(chunk, chunk + 1))
            return
        for chunk in chunks:
            try:
                self._check(chunk, stored[self._bounds[chunk] - first : self._bounds[chunk + 1] - first])
            except ValueError as error:
                yield error
            else:
                yield None

    def _check(self, chunk: int, stored: NDArray[np.uint8]) -> None:
        layout, expected = self._layout, self._checksums[chunk]
        if self._decoded is not None:
            _decode_chunk(layout, chunk, stored, expected, self._decoded)
            return
        check_sum(chunk, layout.codec.checksum(stored), expected)
        layout.codec.check_tail(stored, expected)

    def _read(self, nbytes: int, offset: int) -> NDArray[np.uint8]:
        """Read into the buffer; less than was asked for only at the file's end."""
        if not hasattr(os, "preadv"):
            return np.frombuffer(read_at(self._descriptor, nbytes, offset), np.uint8)
        if len(self._buffer) < nbytes:
            self._buffer = np.empty(max(nbytes, min(_CHECK_UNIT, self._bounds[-1])), np.uint8)
        done = 0
        while done < nbytes:  # one call of Linux reads no more than 2 GiB
            count = os.preadv(self._descriptor, (self._buffer[done:nbytes].data,), offset + done)
            if not count:
                break
            done += count
        return self._buffer[:done]
