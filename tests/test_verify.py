"""Verification finds every kind of damage, and says where it is."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import CODECS, bit_numbers, compressible_array, flipped_bit, random_array, replaced, write_store

import shardstore
from shardstore.damage import Damage
from shardstore.errors import CorruptionError, ShardStoreError
from shardstore.manifest import Manifest
from shardstore.verify import VerifyReport

ROWS, SHARD_ROWS = 41, 16


@dataclass(frozen=True)
class Sample:
    """A store of 3 shards a column, the last one short: its path, rows and manifest."""

    path: Path
    columns: dict[str, NDArray[Any]]
    manifest: Manifest

    @property
    def shards(self) -> list[tuple[str, int]]:
        return [(name, shard) for name in self.columns for shard in range(3)]

    def key(self, name: str, shard: int) -> str:
        return self.manifest.columns[name].data.layout.shard_key(shard)

    def rows(self, shard: int) -> tuple[int, int]:
        return shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, ROWS)

    def size(self, name: str, shard: int) -> int:
        return int(self.manifest.columns[name].data.nbytes[shard])

    def footer_offset(self, name: str, shard: int) -> int:
        return self.size(name, shard) - (20 * self.manifest.columns[name].data.layout.slots + 4)

    def chunk_ends(self, name: str, shard: int) -> list[int]:
        """Where the chunks end, read from the index in the file."""
        slots = self.manifest.columns[name].data.layout.slots
        data = (self.path / self.key(name, shard)).read_bytes()
        index = np.frombuffer(data[-(16 * slots + 4) : -4], "<u8").reshape(slots, 2)
        return [int(offset + nbytes) for offset, nbytes in index if offset != 2**64 - 1]

    def verify(self) -> VerifyReport:
        with shardstore.open(self.path) as store:
            return store.verify(progress=False)

    def only_damage(self) -> Damage:
        report = self.verify()
        assert not report.ok
        (damage,) = report.damages
        return damage


def make_sample(path: Path, codec: str) -> Sample:
    columns = {
        "x": compressible_array("float32", (ROWS, 6)),
        "name": random_array("S3", (ROWS,)),
        "y": compressible_array("int64", (ROWS,)),
    }
    # Chunks of 2, 16 and 8 rows.
    write_store(path, columns, codec, shard_bytes=SHARD_ROWS * 24, chunk_bytes=64)
    with shardstore.open(path) as store:
        return Sample(path, columns, store.manifest)


@pytest.fixture(scope="module", params=CODECS)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A store whose damages are undone by each test."""
    return make_sample(tmp_path_factory.mktemp("verify") / "store", request.param)


@pytest.fixture(params=CODECS)
def own_sample(request: pytest.FixtureRequest, tmp_path: Path) -> Sample:
    """A store that a test may leave damaged."""
    return make_sample(tmp_path / "store", request.param)


shard_numbers = st.integers(0, 8)
places = st.floats(0, 1, exclude_max=True)


def test_an_undamaged_store_is_ok(sample: Sample) -> None:
    report = sample.verify()
    assert report.ok
    assert report.damages == ()
    files = [path for path in sample.path.rglob("*") if path.is_file()]
    assert report.files == len(files) == 13
    assert report.nbytes == sum(path.stat().st_size for path in files if path.name != "zarr.json")
    assert report.chunks == sum(len(sample.chunk_ends(name, shard)) for name, shard in sample.shards)
    assert sample.manifest.columns["x"].data.layout.slots == 8


@pytest.mark.parametrize("rows", [0, 1])
def test_a_store_of_few_rows_and_rows_without_bytes_is_ok(tmp_path: Path, rows: int) -> None:
    write_store(tmp_path / "store", {"x": np.zeros(rows), "nothing": np.zeros((rows, 0))})
    with shardstore.open(tmp_path / "store") as store:
        report = store.verify(progress=False)
    assert report == VerifyReport(3 + rows, rows, report.nbytes, ())
    assert bool(report.nbytes) == bool(rows)


@given(number=shard_numbers, place=places, bit=bit_numbers)
def test_a_flipped_bit_of_a_chunk_is_found(sample: Sample, number: int, place: float, bit: int) -> None:
    name, shard = sample.shards[number]
    offset = int(place * sample.footer_offset(name, shard))
    chunk = int(np.searchsorted(sample.chunk_ends(name, shard), offset, side="right"))
    chunk_rows = sample.manifest.columns[name].data.layout.chunk_rows
    start, stop = sample.rows(shard)
    lost = start + chunk * chunk_rows, min(start + (chunk + 1) * chunk_rows, stop)
    with flipped_bit(sample.path / sample.key(name, shard), offset, bit):
        damage = sample.only_damage()
    assert (damage.file, damage.chunk, damage.rows) == (sample.key(name, shard), chunk, lost)
    assert "CRC32C" in damage.reason


@given(number=shard_numbers, place=places, bit=bit_numbers)
def test_a_flipped_bit_of_a_footer_is_found(sample: Sample, number: int, place: float, bit: int) -> None:
    name, shard = sample.shards[number]
    begin, end = sample.footer_offset(name, shard), sample.size(name, shard)
    with flipped_bit(sample.path / sample.key(name, shard), begin + int(place * (end - begin)), bit):
        damage = sample.only_damage()
    assert (damage.file, damage.chunk, damage.rows) == (sample.key(name, shard), None, sample.rows(shard))
    assert "footer" in damage.reason or "index" in damage.reason


@given(
    number=shard_numbers, part=st.sampled_from(["checksums", "index", "index checksum"]), place=places, bit=bit_numbers
)
def test_a_flipped_bit_of_every_part_of_a_footer_is_found(
    sample: Sample, number: int, part: str, place: float, bit: int
) -> None:
    name, shard = sample.shards[number]
    slots = sample.manifest.columns[name].data.layout.slots
    begin, nbytes = {
        "checksums": (0, 4 * slots),
        "index": (4 * slots, 16 * slots),
        "index checksum": (20 * slots, 4),
    }[part]
    offset = sample.footer_offset(name, shard) + begin + int(place * nbytes)
    with flipped_bit(sample.path / sample.key(name, shard), offset, bit):
        damage = sample.only_damage()
    assert (damage.file, damage.chunk, damage.rows) == (sample.key(name, shard), None, sample.rows(shard))


@given(offset=st.integers(0, 167), bit=bit_numbers)
def test_a_flipped_bit_of_the_padding_is_found(tmp_path_factory: pytest.TempPathFactory, offset: int, bit: int) -> None:
    path = tmp_path_factory.getbasetemp() / "padded"
    if not path.exists():
        write_store(path, {"x": np.ones((1, 3))}, shard_bytes=8 * 24, chunk_bytes=8 * 24)
    with flipped_bit(path / "x/c/0/0", 24 + offset, bit), shardstore.open(path) as store:
        (damage,) = store.verify(progress=False).damages
    assert (damage.file, damage.chunk, damage.rows) == ("x/c/0/0", 0, (0, 1))


@given(name=st.sampled_from(["x", "name", "y"]), place=places, bit=bit_numbers)
def test_a_flipped_bit_of_an_arrays_metadata_is_found(sample: Sample, name: str, place: float, bit: int) -> None:
    path = sample.path / name / "zarr.json"
    with flipped_bit(path, int(place * path.stat().st_size), bit):
        damage = sample.only_damage()
    assert (damage.file, damage.chunk, damage.rows) == (f"{name}/zarr.json", None, None)


@given(place=places, bit=bit_numbers)
def test_a_flipped_bit_of_the_groups_metadata_is_found_on_opening(sample: Sample, place: float, bit: int) -> None:
    path = sample.path / "zarr.json"
    with flipped_bit(path, int(place * path.stat().st_size), bit), pytest.raises(ShardStoreError, match=r"zarr\.json"):
        shardstore.open(sample.path)


def test_a_store_that_is_open_already_finds_damage_of_its_manifest(sample: Sample) -> None:
    path = sample.path / "zarr.json"
    with shardstore.open(sample.path) as store, flipped_bit(path, path.stat().st_size // 2, 0):
        try:
            damages = store.verify(progress=False).damages
        except CorruptionError:
            return
    assert [damage.file for damage in damages] == ["zarr.json"]


@pytest.mark.parametrize("number", range(9))
def test_a_missing_shard_file_is_found(sample: Sample, number: int) -> None:
    name, shard = sample.shards[number]
    with replaced(sample.path / sample.key(name, shard), None):
        damage = sample.only_damage()
    assert (damage.file, damage.chunk, damage.rows) == (sample.key(name, shard), None, sample.rows(shard))
    assert "missing" in damage.reason


@given(number=shard_numbers, size=st.integers(0, 2000))
def test_a_short_or_overlong_shard_file_is_found(sample: Sample, number: int, size: int) -> None:
    name, shard = sample.shards[number]
    path = sample.path / sample.key(name, shard)
    expected = path.stat().st_size
    assume(size != expected)
    with replaced(path, (path.read_bytes() + bytes(2000))[:size]):
        damage = sample.only_damage()
    assert (damage.file, damage.chunk, damage.rows) == (sample.key(name, shard), None, sample.rows(shard))
    assert ("short" if size < expected else "overlong") in damage.reason
    assert f"expected {expected:,} bytes, found {size:,}" in damage.reason


@pytest.mark.parametrize("change", [-1, 1])
def test_a_raw_shard_file_of_another_size_is_never_mapped(tmp_path: Path, change: int) -> None:
    sample = make_sample(tmp_path / "store", "raw")
    path = sample.path / sample.key("x", 1)
    os.truncate(path, path.stat().st_size + change)
    with shardstore.open(sample.path) as store:
        assert store["y"][:].tolist() == sample.columns["y"].tolist()
        with pytest.raises(CorruptionError, match=f"{path}: the shard file is"):
            store["x"][0]


@pytest.mark.parametrize("codec", ["zstd", "blosc:lz4"])
def test_reading_a_damaged_chunk_names_file_chunk_and_rows(tmp_path: Path, codec: str) -> None:
    sample = make_sample(tmp_path / "store", codec)
    path = sample.path / sample.key("x", 1)
    with (
        flipped_bit(path, sample.chunk_ends("x", 1)[2] - 1, 0),
        shardstore.open(sample.path) as store,
        pytest.raises(CorruptionError) as caught,
    ):
        store["x"][[3, 21]]
    # Chunk 2 of shard 1 holds rows 20 and 21; messages name the last row, not the one after it.
    assert str(caught.value).startswith(f"{path}, chunk 2 (rows 20 to 21): ")


def test_shard_files_in_each_others_place_are_found(sample: Sample) -> None:
    one, other = (sample.path / sample.key("x", shard) for shard in (0, 1))
    original = one.read_bytes()
    with replaced(one, other.read_bytes()), replaced(other, original):
        assert [damage.file for damage in sample.verify().damages] == ["x/c/0/0", "x/c/1/0"]


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"null", b"\xff\xfe\xfd"])
def test_metadata_of_an_array_that_is_missing_or_wrong_is_found(sample: Sample, content: bytes | None) -> None:
    with replaced(sample.path / "y" / "zarr.json", content):
        assert sample.only_damage().file == "y/zarr.json"


def test_white_space_in_metadata_is_no_damage(own_sample: Sample) -> None:
    for path in own_sample.path.rglob("zarr.json"):
        path.write_text(json.dumps(json.loads(path.read_bytes()), indent=4))
    assert own_sample.verify().ok


def test_all_damages_are_reported_in_order(own_sample: Sample) -> None:
    path = own_sample.path
    (path / "y/zarr.json").unlink()
    (path / own_sample.key("name", 2)).unlink()
    os.truncate(path / own_sample.key("y", 0), 3)
    ends = own_sample.chunk_ends("x", 1)
    with flipped_bit(path / own_sample.key("x", 1), 0, 0), flipped_bit(path / own_sample.key("x", 1), ends[6], 7):
        report = own_sample.verify()
    assert [(damage.file, damage.chunk, damage.rows) for damage in report.damages] == [
        ("y/zarr.json", None, None),
        ("x/c/1/0", 0, (16, 18)),
        ("x/c/1/0", 7, (30, 32)),
        ("name/c/2/0", None, (32, 41)),
        ("y/c/0", None, (0, 16)),
    ]
    assert not report.ok


def test_a_report_is_json(own_sample: Sample) -> None:
    found = own_sample.verify()
    assert json.loads(json.dumps(found.to_dict())) == {
        "ok": True,
        "files": found.files,
        "chunks": found.chunks,
        "nbytes": found.nbytes,
        "damages": [],
    }
    (own_sample.path / "y/c/1").unlink()
    report = json.loads(json.dumps(own_sample.verify().to_dict()))
    assert not report["ok"]
    (damage,) = report["damages"]
    assert damage["file"] == "y/c/1"
    assert (damage["chunk"], damage["rows"]) == (None, [16, 32])


def test_a_damage_reads_well() -> None:
    assert str(Damage("x/c/0", "gone")) == "x/c/0: gone"
    assert str(Damage("x/c/0", "gone", 3, (1000, 2001))) == "x/c/0, chunk 3 (rows 1,000 to 2,000): gone"
