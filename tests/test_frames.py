"""Where compressed chunks end is told from their own bytes, whatever the compressor and its level."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import compressible_array, random_array

from shardstore.codecs import Codec
from shardstore.repairing.frames import chunk_ends

KINDS = ("zstd", "zstd:1", "zstd:19", "blosc:lz4", "blosc:zstd:9", "blosc:blosclz:0", "blosc:zlib", "blosc:lz4hc:1")


def ends_of(codec: str, data: bytes, chunks: int, chunk_nbytes: int) -> list[int]:
    return list(chunk_ends(Codec.parse(codec), lambda at, size: data[at : at + size], chunks, chunk_nbytes))


@pytest.mark.parametrize("codec", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 1000, 300_000])
def test_chunks_end_where_they_end(codec: str, rows: int) -> None:
    arrays = [
        random_array("int32", (rows,)),
        compressible_array("int32", (rows,)),
        np.zeros(rows, np.int32),
        np.arange(rows, dtype=np.int32),
    ]
    stored = [Codec.parse(codec).encode(array) for array in arrays]
    expected = list(accumulate(map(len, stored)))
    footer = b"footer" * 10
    assert ends_of(codec, b"".join(stored) + footer, 4, 4 * rows) == expected
    assert ends_of(codec, b"".join(stored)[:-1], 4, 4 * rows)[:3] == expected[:3]


@pytest.mark.parametrize("codec", ["zstd", "blosc:lz4"])
@given(data=st.binary(max_size=300), before=st.sampled_from([b"", b"\x28\xb5\x2f\xfd"]))
def test_bytes_that_are_no_chunks_end_it(codec: str, data: bytes, before: bytes) -> None:
    ends = ends_of(codec, before + data + bytes(100_000), 1000, 64)
    assert ends == sorted(set(ends))
    assert all(end - begin <= 64 + 1 + 1024 for begin, end in zip([0, *ends], ends, strict=False))
