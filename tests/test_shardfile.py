"""Shard files: what is written is read, and nothing else passes for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import CODECS, LOGICAL_DTYPES, STORED_DTYPES, compressible_array, flipped_bit, random_array, same_bytes

from shardstore.checksum import crc32c
from shardstore.codecs import Codec
from shardstore.errors import CorruptionError
from shardstore.schema import ArrayLayout, Field
from shardstore.shardfile import (
    DamagedChunk,
    Footer,
    ShardRecord,
    ShardWriter,
    check_chunks,
    footer_checksum,
    footer_nbytes,
    read_at,
    read_footer,
)


def layout_of(array: NDArray[Any], codec: str, shard_rows: int, chunk_rows: int) -> ArrayLayout:
    field = Field.of("x", array.dtype, array.shape[1:])
    return ArrayLayout(field, Codec.parse(codec), shard_rows, chunk_rows)


def write_shard(path: Path, array: NDArray[Any], layout: ArrayLayout, ends: list[int] | None = None) -> ShardRecord:
    with ShardWriter(path, layout) as writer:
        for part in np.split(array, ends or []):
            writer.append(part)
        assert writer.room == layout.shard_rows - len(array)
        return writer.finish()


@contextmanager
def opened(path: Path, record: ShardRecord) -> Iterator[int]:
    assert path.stat().st_size == record.nbytes
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def footer_of(path: Path, layout: ArrayLayout, record: ShardRecord, rows: int) -> Footer:
    with opened(path, record) as descriptor:
        return read_footer(descriptor, path, layout, record, rows)


def read_shard(path: Path, layout: ArrayLayout, record: ShardRecord, rows: int) -> NDArray[Any]:
    """Read all rows, decoding each chunk between the bounds that the footer gives."""
    out = np.empty((layout.chunks_for(rows) * layout.chunk_rows, *layout.field.row_shape), layout.field.dtype)
    footer = footer_of(path, layout, record, rows)
    data = path.read_bytes()
    for chunk in range(layout.chunks_for(rows)):
        stored = data[int(footer.bounds[chunk]) : int(footer.bounds[chunk + 1])]
        part = out[chunk * layout.chunk_rows : (chunk + 1) * layout.chunk_rows]
        decoded = np.empty(layout.chunk_nbytes, np.uint8)
        layout.codec.decode(stored, layout.chunk_nbytes, decoded)
        part[:] = decoded.view(layout.field.dtype).reshape(part.shape)
    assert not any(out[rows:].tobytes())  # padding
    return out[:rows]


@given(
    dtype=st.sampled_from((*STORED_DTYPES, *LOGICAL_DTYPES)),
    row_shape=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    codec=st.sampled_from(CODECS),
    chunk_rows=st.integers(1, 5),
    slots=st.integers(1, 5),
    data=st.data(),
)
def test_a_shard_reads_back_however_its_rows_came(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    row_shape: tuple[int, ...],
    codec: str,
    chunk_rows: int,
    slots: int,
    data: st.DataObject,
) -> None:
    rows = data.draw(st.integers(1, chunk_rows * slots))
    ends = data.draw(st.lists(st.integers(0, rows), max_size=4).map(sorted))
    array = random_array(dtype, (rows, *row_shape))
    layout = layout_of(array, codec, chunk_rows * slots, chunk_rows)
    folder = tmp_path_factory.mktemp("shard")
    record = write_shard(folder / "in pieces", array, layout, ends)
    assert same_bytes(read_shard(folder / "in pieces", layout, record, rows), array)
    assert record == write_shard(folder / "at once", array, layout)
    stored = (folder / "in pieces").read_bytes()
    assert stored == (folder / "at once").read_bytes()
    assert record == ShardRecord(len(stored), crc32c(stored[-footer_nbytes(slots) : -4]))
    with opened(folder / "at once", record) as descriptor:
        footer = read_footer(descriptor, folder / "at once", layout, record, rows)
        found = list(check_chunks(descriptor, layout, footer, rows))
    assert found == np.diff(footer.bounds).tolist()
    if layout.codec.is_raw:
        assert stored.startswith(array.tobytes())


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 2**32 - 1)), max_size=8), st.integers(0, 4))
def test_a_footer_is_what_its_bytes_say(chunks: list[tuple[int, int]], unused: int) -> None:
    bounds = np.cumsum([0, *(nbytes for nbytes, _ in chunks)], dtype=np.uint64)
    footer = Footer(bounds, np.array([checksum for _, checksum in chunks], np.uint32))
    slots = len(chunks) + unused
    data = footer.to_bytes(slots)
    assert len(data) == footer_nbytes(slots)
    found = Footer.from_bytes(data, slots, len(chunks), "here")
    assert found.bounds.tolist() == bounds.tolist()
    assert found.checksums.tolist() == footer.checksums.tolist()


@pytest.mark.parametrize("chunks", [0, 2, 3])
def test_a_footer_of_another_number_of_chunks_is_found(chunks: int) -> None:
    data = Footer(np.array([0, 5], np.uint64), np.array([7], np.uint32)).to_bytes(3)
    with pytest.raises(CorruptionError, match=f"here: .*{chunks} chunks back to back"):
        Footer.from_bytes(data, 3, chunks, "here")


@pytest.mark.parametrize("bounds", [[1, 5, 9], [0, 5, 5]])
def test_a_footer_whose_chunks_leave_gaps_is_found(tmp_path: Path, bounds: list[int]) -> None:
    array = compressible_array("int8", (8,))
    layout = layout_of(array, "raw", 8, 4)
    write_shard(tmp_path / "0", array, layout)
    data = (tmp_path / "0").read_bytes()[:8] + Footer(np.array(bounds, np.uint64), np.zeros(2, np.uint32)).to_bytes(2)
    (tmp_path / "0").write_bytes(data)
    record = ShardRecord(len(data), crc32c(data[8:-4]))
    with pytest.raises(CorruptionError, match="chunks"):
        footer_of(tmp_path / "0", layout, record, 8)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rows", [9, 16])
def test_every_flipped_bit_of_a_footer_is_found(tmp_path: Path, codec: str, rows: int) -> None:
    array = compressible_array("int16", (rows, 4))
    layout = layout_of(array, codec, 16, 4)
    path = tmp_path / "0"
    record = write_shard(path, array, layout)
    begin = record.nbytes - footer_nbytes(layout.slots)
    with opened(path, record) as descriptor:
        read_footer(descriptor, path, layout, record, rows)
        for bit in range(8 * begin, 8 * record.nbytes):
            with flipped_bit(path, bit // 8, bit % 8), pytest.raises(CorruptionError, match=r"footer|index"):
                read_footer(descriptor, path, layout, record, rows)


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_bit_of_the_chunks_is_found_where_it_is(tmp_path: Path, codec: str) -> None:
    array = random_array("int16", (9, 2))
    layout = layout_of(array, codec, 16, 4)
    path = tmp_path / "0"
    record = write_shard(path, array, layout)
    with opened(path, record) as descriptor:
        footer = read_footer(descriptor, path, layout, record, 9)
        ends = footer.bounds[1:].tolist()
        for bit in range(8 * ends[-1]):
            chunk = int(np.searchsorted(ends, bit // 8, side="right"))
            with flipped_bit(path, bit // 8, bit % 8):
                found = list(check_chunks(descriptor, layout, footer, 9))
            damaged = found[chunk]
            assert isinstance(damaged, DamagedChunk)
            assert (damaged.chunk, damaged.start, damaged.stop) == (chunk, 4 * chunk, min(4 * chunk + 4, 9))
            assert [isinstance(other, DamagedChunk) for other in found].count(True) == 1


@pytest.mark.parametrize("codec", ["zstd", "blosc:lz4"])
def test_a_chunk_that_fits_its_checksum_but_does_not_decode_is_found(tmp_path: Path, codec: str) -> None:
    array = compressible_array("int32", (8, 4))
    layout = layout_of(array, codec, 8, 4)
    path = tmp_path / "0"
    record = write_shard(path, array, layout)
    footer = footer_of(path, layout, record, 8)
    data = bytearray(path.read_bytes())
    first = int(footer.bounds[1])
    data[first - 1] ^= 1
    path.write_bytes(data)
    checksums = np.array([layout.codec.checksum(bytes(data[:first])), footer.checksums[1]], np.uint32)
    with opened(path, record) as descriptor:
        damaged, sound = check_chunks(descriptor, layout, Footer(footer.bounds, checksums), 8)
    assert isinstance(damaged, DamagedChunk)
    assert (damaged.chunk, damaged.start, damaged.stop) == (0, 0, 4)
    assert isinstance(sound, int)


@pytest.mark.parametrize("codec", CODECS)
def test_other_data_has_other_checksums(tmp_path: Path, codec: str) -> None:
    """A CRC over data and its own CRC is the same for all data, so neither checksum may be one."""
    array = random_array("int16", (8, 2))
    layout = layout_of(array, codec, 8, 4)
    one = write_shard(tmp_path / "0", array, layout)
    other = write_shard(tmp_path / "1", array[::-1].copy(), layout)
    assert one.nbytes == other.nbytes
    assert one.footer_crc32c != other.footer_crc32c
    checksums = [footer_of(tmp_path / str(i), layout, r, 8).checksums for i, r in enumerate((one, other))]
    assert len(set(np.concatenate(checksums).tolist())) == 4


def test_the_checksum_of_a_footer_depends_on_its_index() -> None:
    checksums = np.array([1, 2], np.uint32)
    footers = [Footer(np.array([0, end, 8], np.uint64), checksums).to_bytes(2) for end in (3, 4)]
    assert footer_checksum(footers[0]) != footer_checksum(footers[1])


def test_a_file_that_is_smaller_than_a_footer_is_found(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(b"abc")
    layout = layout_of(np.zeros(8), "raw", 8, 4)
    with pytest.raises(CorruptionError, match="0: "):
        footer_of(tmp_path / "0", layout, ShardRecord(3, crc32c(b"abc")), 8)


@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path: Path, codec: str) -> None:
    array = compressible_array("int32", (8, 2))
    path = tmp_path / "folder" / "0"
    with ShardWriter(path, layout_of(array, codec, 8, 4)) as writer:
        writer.append(array[:5])
        assert [file.name for file in path.parent.iterdir()] == [".0.partial"]
    assert list(path.parent.iterdir()) == []
    write_shard(path, array, layout_of(array, codec, 8, 4))
    assert [file.name for file in path.parent.iterdir()] == ["0"]


@given(st.binary(max_size=30), st.integers(0, 40), st.integers(0, 40))
def test_positional_reads(tmp_path: Path, data: bytes, offset: int, nbytes: int) -> None:
    (tmp_path / "file").write_bytes(data)
    with opened(tmp_path / "file", ShardRecord(len(data), 0)) as descriptor:
        assert read_at(descriptor, nbytes, offset) == data[offset : offset + nbytes]
