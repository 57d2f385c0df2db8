"""Where a compressed chunk ends, from its own bytes: for shards whose index is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shardstore.checksum import CHECKSUM_NBYTES
from shardstore.codecs import Codec

# Returns so many bytes from an offset on, fewer at the end.
Read = Callable[[int, int], bytes]
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BLOSC_HEADER_NBYTES = 16


def chunk_ends(codec: Codec, read: Read, chunks: int, chunk_nbytes: int) -> Iterator[int]:
    """Yield where each of some compressed chunks ends, the first of which begins at byte 0.

    It ends early where the bytes are no chunk of `chunk_nbytes` bytes: these are then hardly more when compressed.
    """
    most = chunk_nbytes + chunk_nbytes // 64 + 1024
    end = 0
    for _ in range(chunks):
        nbytes = _zstd_nbytes(read, end, most) if codec.kind == "zstd" else _blosc_nbytes(read, end)
        if nbytes is None or nbytes > most:
            return
        end += nbytes
        yield end


def _blosc_nbytes(read: Read, begin: int) -> int | None:
    header = read(begin, _BLOSC_HEADER_NBYTES)
    nbytes = int.from_bytes(header[12:16], "little")
    return nbytes + CHECKSUM_NBYTES if len(header) == _BLOSC_HEADER_NBYTES <= nbytes else None


def _zstd_nbytes(read: Read, begin: int, most: int) -> int | None:
    """Walk the blocks of a frame (RFC 8878, 3.1.1)."""
    header = read(begin, 5)
    if len(header) < 5 or header[:4] != _ZSTD_MAGIC:
        return None
    descriptor = header[4]
    single = descriptor >> 5 & 1
    content_nbytes = (single, 2, 4, 8)[descriptor >> 6]
    end = begin + 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + content_nbytes
    last = False
    while not last:
        block = int.from_bytes(data := read(end, 3), "little")
        if len(data) < 3 or end - begin > most:
            return None
        last, kind = bool(block & 1), block >> 1 & 3
        end += 3 + (1 if kind == 1 else block >> 3)  # a block of type 1 is one byte, repeated
    return end + (4 if descriptor & 4 else 0) - begin
