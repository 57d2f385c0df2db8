"""Codecs: how one chunk's bytes are stored, in our own words and in Zarr's.

A codec is written `"raw"`, `"zstd"`, `"zstd:LEVEL"`, `"blosc:CNAME"` or `"blosc:CNAME:LEVEL"`. No compressed
chunk is ever stored without a checksum of its own: zstd carries one in its frame, blosc is followed by a CRC32C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.checksum import CHECKSUM_NBYTES, crc32c
from shardstore.errors import SchemaError
from shardstore.locks import cached_property, without_forks

BLOSC_CNAMES = ("lz4", "lz4hc", "blosclz", "zstd", "zlib")
_FORMS = '"raw", "zstd", "zstd:1" to "zstd:22", or "blosc:CNAME" with CNAME one of ' + ", ".join(BLOSC_CNAMES)
DEFAULT_CODEC = "raw"
_DEFAULT_LEVEL = {"raw": 0, "zstd": 3, "blosc": 5}
_LEVELS = {"raw": range(1), "zstd": range(1, 23), "blosc": range(10)}
# No codec makes more bytes of one: the best that Zstandard can say in its 4 bytes is that one is repeated 128 KiB long.
MOST_EXPANSION = 1 << 15
_BLOSC_HEADER_NBYTES = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEAST_ZSTD_NBYTES = 6


@dataclass(frozen=True)
class Codec:
    """How the chunks of one column are stored.

    Attributes:
        kind: `"raw"`, `"zstd"` or `"blosc"`.
        cname: blosc's inner compressor; empty for the other kinds.
        level: compression level.
    """

    kind: str
    cname: str
    level: int

    @classmethod
    def parse(cls, text: str) -> Codec:
        """Read a codec's written form; raise `SchemaError` if it is none."""
        kind, *rest = text.split(":") if isinstance(text, str) else ("",)
        cname = "" if kind != "blosc" else rest.pop(0) if rest else "lz4"
        level = rest.pop(0) if rest else str(_DEFAULT_LEVEL.get(kind, 0))
        known = kind in _LEVELS and not rest and level in map(str, _LEVELS[kind])
        if not known or (kind == "blosc" and cname not in BLOSC_CNAMES):
            raise SchemaError(f"unknown codec {text!r}: expected {_FORMS}")
        return cls(kind, cname, int(level))

    def __str__(self) -> str:
        name = f"{self.kind}:{self.cname}" if self.cname else self.kind
        return name if self.level == _DEFAULT_LEVEL[self.kind] else f"{name}:{self.level}"

    @property
    def is_raw(self) -> bool:
        """Whether a chunk's stored bytes are its rows' bytes."""
        return self.kind == "raw"

    @cached_property
    def _compressor(self) -> Any:
        with without_forks:
            import numcodecs  # 50 ms that raw stores need not pay

        if self.kind == "zstd":
            return numcodecs.Zstd(level=self.level, checksum=True)
        return numcodecs.Blosc(cname=self.cname, clevel=self.level, shuffle=numcodecs.Blosc.SHUFFLE)

    def encode(self, chunk: NDArray[Any]) -> bytes:
        """Return the stored bytes of a whole C-contiguous chunk."""
        if self.is_raw:
            return chunk.tobytes()
        stored = bytes(self._compressor.encode(chunk))
        if self.kind == "blosc":
            stored += crc32c(stored).to_bytes(CHECKSUM_NBYTES, "little")
        return stored

    def checksum(self, stored: bytes | NDArray[np.uint8]) -> int:
        """Return what the checksum table holds for a chunk: the CRC32C of its stored bytes.

        That of a blosc chunk leaves out the CRC32C at its end: the CRC32C of any bytes with their own CRC32C
        behind them is one and the same number, which would vouch for nothing.
        """
        return crc32c(stored[:-CHECKSUM_NBYTES] if self.kind == "blosc" else stored)

    def check_tail(self, stored: NDArray[np.uint8], checksum: int) -> None:
        """Raise `ValueError` unless what follows a stored chunk is `checksum`, that of the chunk; only blosc has it."""
        if self.kind == "blosc" and checksum != int.from_bytes(bytes(stored[-CHECKSUM_NBYTES:]), "little"):
            raise ValueError("the chunk's CRC32C does not match its bytes")

    def decode(self, stored: bytes | NDArray[np.uint8], nbytes: int, out: NDArray[np.uint8]) -> None:
        """Put the `nbytes` bytes of a chunk into `out`, from its stored bytes.

        Raises:
            ValueError: if they are damaged, or of another number; `out` then holds anything.
        """
        if self.kind == "blosc":
            stored, tail = stored[:-CHECKSUM_NBYTES], stored[-CHECKSUM_NBYTES:]
            if crc32c(stored) != int.from_bytes(bytes(tail), "little"):
                raise ValueError("the chunk's CRC32C does not match its bytes")
        if self.is_raw:
            found: int | None = len(stored)
        else:
            found = self._declared_nbytes(stored)
        if found != nbytes:
            says = "does not say how many bytes it holds" if found is None else f"holds {found:,} bytes"
            raise ValueError(f"the {self.kind} chunk {says}, expected {nbytes:,}")
        if self.is_raw:
            out[:] = np.frombuffer(stored, np.uint8)
            return
        # Into `out`, whose size is known: what is stored never says how much is allocated.
        try:
            self._compressor.decode(stored, out)
        except (RuntimeError, ValueError, MemoryError, SystemError) as error:
            raise ValueError(f"the {self.kind} chunk does not decode: {error}") from error

    def _declared_nbytes(self, stored: bytes | NDArray[np.uint8]) -> int | None:
        """Return how many bytes a compressed chunk says that it holds; None if it does not say."""
        if self.kind == "blosc":
            # Bytes 4 to 16 are the sizes of the content, of a block, and of the buffer, which the decoder believes.
            if len(stored) < _BLOSC_HEADER_NBYTES or int.from_bytes(bytes(stored[12:16]), "little") != len(stored):
                return None
            return int.from_bytes(bytes(stored[4:8]), "little")
        if len(stored) < _LEAST_ZSTD_NBYTES or bytes(stored[:4]) != _ZSTD_MAGIC:
            return None  # other frames say nothing, or are skipped and leave what was in the buffer
        # RFC 8878, 3.1.1.1: the descriptor tells the sizes of the fields before the content's size, and its own.
        descriptor = int(stored[4])
        single = descriptor >> 5 & 1
        begin = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
        size = (single, 2, 4, 8)[descriptor >> 6]
        if not size:
            return None
        return int.from_bytes(bytes(stored[begin : begin + size]), "little") + (256 if size == 2 else 0)

    def zarr_codecs(self, itemsize: int) -> list[dict[str, Any]]:
        """Return the Zarr v3 codec chain of one chunk whose items have `itemsize` bytes."""
        chain: list[dict[str, Any]] = [bytes_codec(itemsize)]
        if self.kind == "zstd":
            chain.append({"name": "zstd", "configuration": {"level": self.level, "checksum": True}})
        elif self.kind == "blosc":
            configuration = {
                "cname": self.cname,
                "clevel": self.level,
                "shuffle": "shuffle",
                "typesize": itemsize,
                "blocksize": 0,
            }
            chain += [{"name": "blosc", "configuration": configuration}, {"name": "crc32c"}]
        return chain


def bytes_codec(itemsize: int) -> dict[str, Any]:
    """Return Zarr's array-to-bytes codec; single bytes have no order to name."""
    if itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}
