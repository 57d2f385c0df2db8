"""Codecs: their names, what they write, and what they refuse to decode."""

from __future__ import annotations

from typing import Any

import numcodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import CODECS, STORED_DTYPES, compressible_array, random_array, same_bytes

from shardstore.checksum import crc32c
from shardstore.codecs import BLOSC_CNAMES, Codec
from shardstore.errors import SchemaError

codecs = st.one_of(
    st.just(Codec("raw", "", 0)),
    st.builds(Codec, st.just("zstd"), st.just(""), st.integers(1, 22)),
    st.builds(Codec, st.just("blosc"), st.sampled_from(BLOSC_CNAMES), st.integers(0, 9)),
)
cheap_codecs = codecs.filter(lambda codec: codec.level <= 9)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def decode(codec: Codec, stored: bytes, like: NDArray[Any]) -> NDArray[Any]:
    out = np.empty(like.nbytes, np.uint8)
    codec.decode(stored, like.nbytes, out)
    return out.view(like.dtype).reshape(like.shape)


@given(codecs)
def test_a_codec_is_what_its_name_says(codec: Codec) -> None:
    assert Codec.parse(str(codec)) == codec


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        ("raw", Codec("raw", "", 0), "raw"),
        ("zstd", Codec("zstd", "", 3), "zstd"),
        ("zstd:3", Codec("zstd", "", 3), "zstd"),
        ("zstd:22", Codec("zstd", "", 22), "zstd:22"),
        ("blosc", Codec("blosc", "lz4", 5), "blosc:lz4"),
        ("blosc:lz4", Codec("blosc", "lz4", 5), "blosc:lz4"),
        ("blosc:zstd:5", Codec("blosc", "zstd", 5), "blosc:zstd"),
        ("blosc:lz4:0", Codec("blosc", "lz4", 0), "blosc:lz4:0"),
    ],
)
def test_names_of_codecs(text: str, codec: Codec, name: str) -> None:
    assert Codec.parse(text) == codec
    assert str(codec) == name
    assert codec.is_raw == (name == "raw")


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "RAW", "raw:1", "raw:", "lz4", "gzip", " zstd"),
        *("zstd:", "zstd:0", "zstd:23", "zstd:-1", "zstd:x", "zstd:1.5", "zstd:1:1", "zstd:lz4"),
        *("blosc:", "blosc:5", "blosc:snappy", "blosc:lz4:10", "blosc:lz4:-1", "blosc:lz4:x", "blosc:lz4:5:1"),
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(SchemaError, match=r"unknown codec .* expected"):
        Codec.parse(text)


@given(cheap_codecs, st.sampled_from(STORED_DTYPES), shapes, st.booleans(), st.integers(0, 99))
def test_decoding_gives_what_was_encoded(
    codec: Codec, dtype: str, shape: tuple[int, ...], noise: bool, seed: int
) -> None:
    chunk = random_array(dtype, shape, seed) if noise else compressible_array(dtype, shape, seed)
    assert same_bytes(decode(codec, codec.encode(chunk), chunk), chunk)


@pytest.mark.parametrize("text", ["zstd", *(f"blosc:{cname}" for cname in BLOSC_CNAMES)])
def test_compressors_compress(text: str) -> None:
    chunk = compressible_array("int64", (64, 16))
    assert len(Codec.parse(text).encode(chunk)) < chunk.nbytes / 4


def test_raw_is_the_bytes_of_the_rows() -> None:
    chunk = random_array("float32", (5, 3))
    assert Codec.parse("raw").encode(chunk) == chunk.tobytes()


def test_zstd_carries_a_content_checksum() -> None:
    stored = Codec.parse("zstd").encode(random_array("uint8", (100,)))
    assert stored[:4] == bytes.fromhex("28b52ffd")
    assert stored[4] & 4


def test_blosc_is_followed_by_its_crc32c() -> None:
    chunk = random_array("int16", (100,))
    stored = Codec.parse("blosc:zstd:1").encode(chunk)
    assert stored[-4:] == crc32c(stored[:-4]).to_bytes(4, "little")
    assert numcodecs.Blosc().decode(stored[:-4]) == chunk.tobytes()


@pytest.mark.parametrize("text", ["zstd", "zstd:19", *(f"blosc:{cname}" for cname in BLOSC_CNAMES)])
def test_every_flipped_bit_is_found_or_changes_nothing(text: str) -> None:
    codec = Codec.parse(text)
    chunk = compressible_array("int32", (40, 2))
    stored = codec.encode(chunk)
    unseen = []
    for bit in range(8 * len(stored)):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = decode(codec, bytes(damaged), chunk)
        except ValueError:
            continue
        assert same_bytes(found, chunk)
        unseen.append(bit)
    # Some bits of a Zstandard frame mean nothing; Blosc's CRC32C covers all.
    assert len(unseen) < len(stored) / 8
    assert not unseen or codec.kind == "zstd"


@given(cheap_codecs, st.data())
def test_a_chunk_cut_short_is_found(codec: Codec, data: st.DataObject) -> None:
    chunk = random_array("int32", (10, 2))
    stored = codec.encode(chunk)
    cut = data.draw(st.integers(0, len(stored) - 1))
    with pytest.raises(ValueError, match="chunk"):
        decode(codec, stored[:cut], chunk)


@pytest.mark.parametrize("text", CODECS)
@pytest.mark.parametrize("rows", [1, 9, 11, 20])
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_a_chunk_of_another_size_is_found(text: str, rows: int, dtype: str) -> None:
    codec = Codec.parse(text)
    expected = random_array(dtype, (10,))
    stored = codec.encode(random_array(dtype, (rows,)))
    with pytest.raises(ValueError, match="chunk"):
        decode(codec, stored, expected)


@pytest.mark.parametrize("text", CODECS)
def test_a_shorter_chunk_leaves_nothing_of_what_was_before(text: str) -> None:
    codec = Codec.parse(text)
    out = np.full(1000, 7, np.uint8)
    with pytest.raises(ValueError, match="holds 999 bytes, expected 1,000"):
        codec.decode(codec.encode(np.zeros(999, np.uint8)), 1000, out)


@given(cheap_codecs, st.binary(min_size=0, max_size=40), st.integers(0, 2000))
def test_bytes_that_are_no_chunk_are_refused(codec: Codec, stored: bytes, nbytes: int) -> None:
    if codec.kind == "blosc":
        stored += crc32c(stored).to_bytes(4, "little")
    if codec.is_raw and len(stored) == nbytes:
        return
    out = np.zeros(nbytes, np.uint8)
    try:
        codec.decode(stored, nbytes, out)
    except ValueError:
        return
    assert nbytes == 0, "nothing but no bytes is made of these"


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_a_checksum_can_be_continued(pieces: list[bytes]) -> None:
    value = 0
    for piece in pieces:
        value = crc32c(np.frombuffer(piece, np.uint8), value)
    assert value == crc32c(b"".join(pieces))


def test_the_checksum_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == crc32c(np.empty((0, 3))) == 0
    times = np.arange(5).astype("datetime64[s]")
    assert crc32c(times) == crc32c(times.tobytes())
