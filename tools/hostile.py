"""What reads bytes that others made, one function each: whatever the bytes are, only errors of this package come out.

`TARGETS` names the functions. Each takes the bytes that were made up and puts them where it reads them from; checksums
around them are made to fit, since whoever makes a hostile store can compute them. `mutated` makes up bytes from good
ones.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import shardstore
from shardstore.checksum import crc32c
from shardstore.codecs import Codec
from shardstore.column_bodies import read_column
from shardstore.describing import describe_store
from shardstore.errors import ShardStoreError
from shardstore.export import export_npy
from shardstore.manifest import manifest_checksum
from shardstore.shardfile import Footer, footer_checksum, footer_nbytes
from shardstore.zarr_documents import column_documents

ROWS = 20


@dataclass(frozen=True)
class Target:
    """What is fed with hostile bytes.

    Attributes:
        name: its name.
        prepare: makes what it needs in an empty folder, and returns good bytes.
        feed: takes the folder and bytes; raises only what must not come out.
    """

    name: str
    prepare: Callable[[Path], list[bytes]]
    feed: Callable[[Path, bytes], None]


@contextmanager
def refused() -> Iterator[None]:
    """Take the errors that may come out."""
    with suppress(ShardStoreError):
        yield


def write_store(path: Path) -> None:
    """Write a store with a column of every kind and codec, in two shards."""
    columns: dict[str, Any] = {
        "raw": np.arange(2 * ROWS, dtype="<f4").reshape(ROWS, 2),
        "zstd": np.arange(ROWS),
        "blosc": np.arange(ROWS) % 3,
        "when": np.arange(ROWS).astype("M8[s]"),
        "tag": np.array([b"ab", b"c"] * (ROWS // 2), "S3"),
        "ragged": [np.arange(n, dtype="<i2") for n in range(ROWS)],
        "text": ["ä" * (n % 4) for n in range(ROWS)],
        "kind": ["cat", "dog"] * (ROWS // 2),
        "none": np.empty((ROWS, 0)),
    }
    codec = {"zstd": "zstd", "blosc": "blosc:lz4", "ragged": "zstd"}
    types = {"kind": shardstore.Categorical(["cat", "dog"]), "text": "utf8"}
    with shardstore.Writer(path, codec=codec, types=types, shard_bytes=16 * 8, chunk_bytes=32) as writer:
        writer.append(columns)
    with shardstore.open(path) as store:
        store.compute_stats()


def read_all(path: Path, *names: str) -> None:
    """Read a store in all ways, from both ends of each column, or of the named ones."""
    for verify in ("off", "on_read") if names else ("on_read",):
        with refused(), shardstore.open(path, verify=verify) as store:  # type: ignore[arg-type]
            with refused():
                describe_store(store)
            with refused():
                store.kept_stats  # noqa: B018
            for name in names or store.columns:
                read_column_of(store, name)
            with refused():
                for batch in islice(store.select(*names or store.columns).batches(4, shuffle="full", seed=1), 3):
                    del batch
    with refused(), shardstore.open(path) as store:
        str(store.verify(progress=False, deep=True).damages)


def read_column_of(store: shardstore.Store, name: str) -> None:
    """Read some rows of a column."""
    count = len(store)
    for index in (slice(0, 3), slice(max(0, count - 3), count), [0, count - 1, count // 2] if count else []):
        with refused():
            found = store[name][index]
            if isinstance(found, shardstore.Ragged):
                list(found)


# The .npy and .npz formats


def _dumps() -> list[np.ndarray]:
    return [
        np.arange(6, dtype="<f4").reshape(3, 2),
        np.asfortranarray(np.arange(6, dtype=">i8").reshape(3, 2)),
        np.zeros(2, [("x", "<f4", (3,)), ("y", "<M8[ms]"), ("z", "S3")]),
        np.empty((3, 0), "?"),
    ]


def _npy(array: np.ndarray, version: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def _prepare_npy(folder: Path) -> list[bytes]:
    return [_npy(array, version) for array in _dumps() for version in ((1, 0), (2, 0), (3, 0))]


def _prepare_npz(folder: Path) -> list[bytes]:
    found = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as archive:
            for i, array in enumerate(_dumps()[:2]):
                archive.writestr(f"x{i}.npy", _npy(array, (1, 0)))
        found.append(stream.getvalue())
    return found


def _ingest(source: Path) -> None:
    destination = source.parent / "store"
    try:
        with refused():
            shardstore.ingest(source, destination, progress=False, workers=1)
            read_all(destination)
    finally:
        shutil.rmtree(destination, ignore_errors=True)


def _feed_npy(folder: Path, data: bytes) -> None:
    (folder / "dump.npy").write_bytes(data)
    _ingest(folder / "dump.npy")


def _feed_npz(folder: Path, data: bytes) -> None:
    (folder / "dump.npz").write_bytes(data)
    _ingest(folder / "dump.npz")


# Exports


def _prepare_export(folder: Path) -> list[bytes]:
    write_store(folder / "whole")
    with shardstore.open(folder / "whole") as store:
        export_npy(store, folder / "export", progress=False)
    return [(folder / "export/columns.json").read_bytes()]


def _feed_export(folder: Path, data: bytes) -> None:
    (folder / "export/columns.json").write_bytes(data)
    _ingest(folder / "export")


# Stores


def _prepare_store(folder: Path) -> list[bytes]:
    write_store(folder / "good")
    return [(folder / "good/zarr.json").read_bytes()]


def _feed_manifest(folder: Path, data: bytes) -> None:
    path = folder / "good/zarr.json"
    for content in (data, fitting(data)):
        path.write_bytes(content)
        read_all(folder / "good")


def fitting(data: bytes) -> bytes:
    """Make what vouches for a manifest fit it, as far as it is one."""
    try:
        document = json.loads(data)
        body = document["attributes"]["shardstore"]
        body.pop("crc32c", None)
        entries = {column["name"]: read_column(column, body["rows"], body["shard_rows"]) for column in body["columns"]}
        metadata: dict[str, Any] = {}
        for name, entry in entries.items():
            metadata |= column_documents(name, entry)
        document["consolidated_metadata"]["metadata"] = metadata
    except Exception:
        metadata = {}
    try:
        body["crc32c"] = manifest_checksum(body)
        return json.dumps(document).encode()
    except (UnboundLocalError, TypeError, ValueError, RecursionError):
        return data


def _prepare_metadata(folder: Path) -> list[bytes]:
    return [*_prepare_store(folder), (folder / "good/raw/zarr.json").read_bytes()]


def _feed_metadata(folder: Path, data: bytes) -> None:
    (folder / "good/raw/zarr.json").write_bytes(data)
    with shardstore.open(folder / "good") as store:
        store.verify(progress=False)


def _feed_shard(key: str, name: str, ranges: bool = False) -> Callable[[Path, bytes], None]:
    """Return what puts a file in the place of a shard file, with a manifest that vouches for it."""

    def feed(folder: Path, data: bytes) -> None:
        store = folder / "good"
        (store / key).write_bytes(data)
        document = json.loads((folder / "manifest").read_bytes())
        body = document["attributes"]["shardstore"]
        column = next(column for column in body["columns"] if column["name"] == name)
        array = column["ranges"] if ranges else column
        slots = body["shard_rows"] // array["chunk_rows"]
        array["shard_nbytes"][0] = len(data)
        array["footer_crc32c"][0] = footer_checksum(data[-footer_nbytes(slots) :])
        (store / "zarr.json").write_bytes(fitting(json.dumps(document).encode()))
        read_all(store, name)

    return feed


def _prepare_shard(key: str) -> Callable[[Path], list[bytes]]:
    def prepare(folder: Path) -> list[bytes]:
        (folder / "manifest").write_bytes(_prepare_store(folder)[0])
        return [(folder / "good" / key).read_bytes()]

    return prepare


def _shard_target(label: str, key: str, name: str, ranges: bool = False) -> Target:
    return Target(label, _prepare_shard(key), _feed_shard(key, name, ranges))


# Compressed chunks

_CHUNK = np.arange(64, dtype="<i8") % 5
_CODECS = ("zstd", "blosc:lz4", "blosc:zstd", "blosc:blosclz", "blosc:zlib", "blosc:lz4hc")


def _chunk_target(name: str) -> Target:
    codec = Codec.parse(name)
    tail = 4 if codec.kind == "blosc" else 0

    def prepare(folder: Path) -> list[bytes]:
        noise = np.random.default_rng(0).integers(0, 1 << 60, 64)
        stored = [codec.encode(chunk) for chunk in (_CHUNK, noise, np.zeros(64, "<i8"))]
        return [chunk[: len(chunk) - tail] for chunk in stored]

    def feed(folder: Path, data: bytes) -> None:
        stored = data + crc32c(data).to_bytes(4, "little") if tail else data
        room = np.zeros(_CHUNK.nbytes + 64, np.uint8)
        with suppress(ValueError):
            codec.decode(stored, _CHUNK.nbytes, room[32:-32])
        if room[:32].any() or room[-32:].any():
            raise AssertionError("more was written than there was room for")

    return Target(f"chunk-{name.replace(':', '-')}", prepare, feed)


def _prepare_footer(folder: Path) -> list[bytes]:
    return [Footer(np.array([0, 8, 20], np.uint64), np.array([1, 2], np.uint32)).to_bytes(4)]


def _feed_footer(folder: Path, data: bytes) -> None:
    size = footer_nbytes(4)
    data = data[:size].ljust(size, b"\0")
    index = data[16 : size - 4]
    with refused():
        footer = Footer.from_bytes(data[: size - 4] + struct.pack("<I", crc32c(index)), 4, 2, "here")
        if not (np.diff(footer.bounds.astype(object)) >= 0).all():
            raise AssertionError(f"chunks of negative sizes: {footer.bounds}")


# Columns that are gone on with


def _prepare_journal(folder: Path) -> list[bytes]:
    write_store(folder / "good")

    def stop(batch: dict[str, Any]) -> Any:
        if batch["zstd"][0] >= 16:
            raise KeyboardInterrupt
        return [[int(n)] * int(n % 3) for n in batch["zstd"]]

    with shardstore.open(folder / "good") as store, suppress(KeyboardInterrupt):
        store.add_column("new", stop, columns="zstd", batch_size=4, fingerprint="f", shard_bytes=16, progress=False)
    shutil.copytree(folder / "good", folder / "before")
    return [(folder / "good/new/journal.json").read_bytes()]


def _feed_journal(folder: Path, data: bytes) -> None:
    for content in (data, _signed(data)):
        shutil.rmtree(folder / "good")
        shutil.copytree(folder / "before", folder / "good")
        (folder / "good/new/journal.json").write_bytes(content)
        with refused(), shardstore.open(folder / "good") as store:
            store.add_column(
                "new",
                lambda batch: [[int(n)] * int(n % 3) for n in batch["zstd"]],
                columns="zstd",
                batch_size=4,
                fingerprint="f",
                shard_bytes=16,
                progress=False,
            )
            list(store["new"][:])


def _signed(data: bytes) -> bytes:
    try:
        body = json.loads(data)
        body.pop("crc32c", None)
        return json.dumps({**body, "crc32c": manifest_checksum(body)}).encode()
    except (AttributeError, TypeError, ValueError, RecursionError):
        return data


# States


def _streams(folder: Path) -> list[Any]:
    store = shardstore.open(folder / "good")
    mixture = shardstore.mix({store: 2, store.rows(slice(3, 15)): 1})
    return [
        store.batches(3, shuffle="full", seed=1, epochs=None),
        store.batches(3, shuffle="window", seed=1),
        mixture.batches(3, seed=1),
    ]


def _prepare_state(folder: Path) -> list[bytes]:
    write_store(folder / "good")
    found = []
    for stream in _streams(folder):
        next(iter(stream))
        found.append(json.dumps(stream.state_dict()).encode())
    return found


def _feed_state(folder: Path, data: bytes) -> None:
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):
        return
    for stream in _streams(folder):
        with refused():
            stream.load_state_dict(state)
            for batch in islice(stream, 2):
                del batch
            stream.state_dict()


TARGETS = {
    target.name: target
    for target in (
        Target("npy", _prepare_npy, _feed_npy),
        Target("npz", _prepare_npz, _feed_npz),
        Target("export", _prepare_export, _feed_export),
        Target("manifest", _prepare_store, _feed_manifest),
        Target("metadata", _prepare_metadata, _feed_metadata),
        _shard_target("shard-raw", "raw/c/0/0", "raw"),
        _shard_target("shard-zstd", "zstd/c/0", "zstd"),
        _shard_target("shard-blosc", "blosc/c/0", "blosc"),
        _shard_target("shard-codes", "kind/c/0", "kind"),
        _shard_target("ranges", "ragged/ranges/c/0/0", "ragged", ranges=True),
        _shard_target("ranges-text", "text/ranges/c/0/0", "text", ranges=True),
        Target("footer", _prepare_footer, _feed_footer),
        *map(_chunk_target, _CODECS),
        Target("journal", _prepare_journal, _feed_journal),
        Target("state", _prepare_state, _feed_state),
    )
}  # fmt: skip


# Making bytes up

_NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64),
    *(-(1 << 63), 10**30, 0.5, 1e308, float("inf"), float("nan")),
)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS,
    None,
    True,
    False,
    "",
    "x" * 5000,
    "\0",
    "../..",
    "\ud800",
    [],
    {},
    [[]],
    {"": 0},
)
_LITTLE = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, 1 << 63, (1 << 64) - 1)


def mutated(good: list[bytes], random: Random) -> bytes:
    """Make up bytes: a good example with a few things changed, where it is JSON mostly values."""
    data = random.choice(good)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        change = _change_json if data[:1] in (b"{", b"[") and random.random() < 0.8 else _change_bytes
        with suppress(RecursionError):  # what is nested too deeply stays as it is
            data = change(data, good, random)
    return data


def _change_bytes(data: bytes, good: list[bytes], random: Random) -> bytes:
    start = random.randrange(len(data) + 1)
    kind = random.randrange(7)
    if kind == 0:  # flip
        return (
            data[:start]
            + bytes(byte ^ 1 << random.randrange(8) for byte in data[start : start + 1])
            + data[start + 1 :]
        )
    if kind == 1:  # a number, as files have them
        size = random.choice((1, 2, 4, 8))
        number = (random.choice(_LITTLE) + random.choice((0, 0, -1, 1))) % (1 << 8 * size)
        return data[:start] + number.to_bytes(size, "little") + data[start + size :]
    if kind == 2:  # a number, as texts have them
        digits = [i for i in range(len(data)) if data[i : i + 1].isdigit()]
        place = random.choice(digits) if digits else start
        return data[:place] + str(random.choice(_NUMBERS)).encode() + data[place + 1 :]
    if kind == 3:
        return data[:start]
    if kind == 4:
        return data[:start] + data[min(len(data), start + random.choice((1, 4, 16, 100))) :]
    if kind == 5:  # splice
        other = random.choice(good)
        return data[:start] + other[random.randrange(len(other) + 1) :]
    return data[:start] + random.choice((b"\0" * 9, b"[" * 3000, b'"', b"\xff" * 20, b"(" * 100)) + data[start:]


def _change_json(data: bytes, good: list[bytes], random: Random) -> bytes:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _change_bytes(data, good, random)
    places: list[tuple[Any, Any]] = []
    _find_places(document, places)
    if not places:
        return json.dumps(random.choice(_VALUES)).encode()
    holder, key = random.choice(places)
    kind = random.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = [holder[key]] * random.choice((1, 2, 70))
    elif kind == 2:  # the same from elsewhere
        other, other_key = random.choice(places)
        holder[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 3 and isinstance(holder, dict):
        holder[random.choice(("unknown", "crc32c", "", "\0"))] = holder.pop(key)
    elif kind == 4 and type(holder[key]) is int:
        holder[key] = random.choice(
            (holder[key] * 2, holder[key] + 1, holder[key] - 1, -holder[key], 1 << holder[key] % 70)
        )
    elif kind == 5:
        deep = "[" * random.choice((10, 900, 1100))
        text = json.dumps(document)
        return text.replace(json.dumps(holder[key]), deep + "]" * len(deep), 1).encode()
    else:
        holder[key] = random.choice(_VALUES)
    text = json.dumps(document)
    if random.random() < 0.05 and isinstance(document, dict):  # keys that come twice
        text = text[:-1] + "," + json.dumps({random.choice(list(document) or [""]): random.choice(_VALUES)})[1:]
    return text.encode()


def _find_places(value: Any, places: list[tuple[Any, Any]]) -> None:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        places.append((value, key))
        _find_places(value[key], places)
