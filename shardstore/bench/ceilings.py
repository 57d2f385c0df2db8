"""What the machine can do at best: large reads, copies, the same gather from RAM, decoding in order, another codec."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardstore.bench.timing import Rate, run_once, run_steadily
from shardstore.codecs import Codec
from shardstore.ragged import Ragged
from shardstore.table import Table

READ_NBYTES = 8 << 20
_COPY_NBYTES = 64 << 20
_DECODE_NBYTES = 4 << 20
_TRIAL_CHUNK = 64 << 10
_PICKED_ROWS = 1 << 18


@dataclass(frozen=True)
class CodecTrial:
    """What a codec would do for raw columns, tried on some rows in chunks of 64 KiB on one thread.

    Attributes:
        codec: the codec.
        ratio: bytes of rows over stored bytes.
        decoded_per_second: bytes.
    """

    codec: str
    ratio: float
    decoded_per_second: float


@dataclass(frozen=True)
class Ceilings:
    """The machine's best, as measured; None where it was not.

    Attributes:
        disk: bytes a second of large sequential reads of the store's own files, from an empty page cache.
        copy: bytes a second of copying large blocks of memory.
        gather: by batch size, rows a second of gathering the same rows from arrays in RAM.
        decode: decoded bytes a second of all compressed columns, in order.
        trial: what zstd would do for the raw columns.
    """

    disk: float | None
    copy: float
    gather: Mapping[int, float]
    decode: float | None
    trial: CodecTrial | None

    def to_dict(self) -> dict[str, Any]:
        """Return the ceilings as plain JSON values."""
        return asdict(self) | {"gather": {str(size): rate for size, rate in self.gather.items()}}


def read_rate(paths: list[Path], seconds: float) -> Rate:
    """Read files one after the other, 8 MiB at a time, into one buffer."""

    def reads() -> Iterator[int]:
        with mmap.mmap(-1, READ_NBYTES) as buffer:
            for path in paths:
                with path.open("rb", buffering=0) as file:
                    while got := file.readinto(buffer):
                        yield got

    return run_once(reads(), seconds)


def copy_rate(seconds: float) -> Rate:
    """Copy 64 MiB of memory over and over."""
    source, target = np.ones(_COPY_NBYTES, np.uint8), np.empty(_COPY_NBYTES, np.uint8)

    def copies() -> Iterator[int]:
        while True:
            np.copyto(target, source)
            yield _COPY_NBYTES

    return run_steadily(copies(), seconds)


def gather_rate(rows: Mapping[str, Any], batch_size: int, seconds: float) -> Rate:
    """Gather random rows of columns that are in RAM, batch by batch; which rows is known beforehand."""
    count = len(next(iter(rows.values())))
    size = min(batch_size, count)
    picked = np.random.default_rng(0).permutation(count)[:_PICKED_ROWS]

    def gathers() -> Iterator[int]:
        while True:
            for start in range(0, len(picked) - size + 1, size):
                part = picked[start : start + size]
                for column in rows.values():
                    column.take(part, axis=0) if isinstance(column, np.ndarray) else column[part]
                yield size

    return run_steadily(gathers(), seconds)


def decode_rate(table: Table, seconds: float) -> Rate | None:
    """Decode the compressed columns of a table in order, on the threads that reading uses; in decoded bytes."""
    names = [name for name in table.columns if table.files.chunking(name).decoded]
    if not names:
        return None

    def decodes() -> Iterator[int]:
        while True:
            for name in names:
                chunking, column = table.files.chunking(name), table[name]
                step = max(1, _DECODE_NBYTES // (chunking.row_nbytes * chunking.chunk_rows)) * chunking.chunk_rows
                for start in range(0, len(table), step):
                    stop = min(start + step, len(table))
                    column[start:stop]
                    yield (stop - start) * chunking.row_nbytes

    return run_steadily(decodes(), seconds)


def try_codec(name: str, columns: Mapping[str, Any], seconds: float) -> CodecTrial | None:
    """Encode and decode all of some arrays; None if there is nothing to encode."""
    codec = Codec.parse(name)
    pairs = []
    plain = 0
    for column in columns.values():
        for chunk in _chunks(column.values if isinstance(column, Ragged) else column):
            pairs.append((codec.encode(chunk), np.empty(chunk.nbytes, np.uint8)))
            plain += chunk.nbytes
    if not plain:
        return None

    def decodes() -> Iterator[int]:
        while True:
            for stored, out in pairs:
                codec.decode(stored, out.nbytes, out)
                yield out.nbytes

    rate = run_steadily(decodes(), seconds)
    return CodecTrial(name, plain / sum(len(stored) for stored, _ in pairs), rate.per_second)


def _chunks(values: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    for start in range(0, len(data), _TRIAL_CHUNK):
        yield data[start : start + _TRIAL_CHUNK]
