"""Damage every part of small stores in every way, and see that all of it is found, named and never read.

    python -m tools.damage                     20 of each damage to each part of each store
    python -m tools.damage --each 500 --repair 500 of each, and what `repair` makes of them
    python -m tools.damage --interrupt         kill a repair at every call to the file system, and let every call fail

A store is damaged in one place, and then has to be refused when it is opened, or else to be verified to exactly the
files, chunks and rows that are not what was written; and rows that are read with `verify="on_read"` have to be those
that were written, or an error. With `--repair` it is then repaired: it has to be what it was, byte for byte, or to have
the damage that is left named. At the end: how many of each were tried, and how many were found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import shardstore
from shardstore.damage import Damage
from shardstore.entries import ArrayEntry
from shardstore.manifest import METADATA_FILE, Manifest
from shardstore.shardfile import footer_nbytes
from tools.faults import FAULTS, attempt

KINDS = ("raw", "zstd", "blosc:lz4", "ragged", "appended")
ROWS = 700
_PAGE = 4096
# In the second shard.
_APPENDED_AT = 300
Content = bytes | None


class MissedError(AssertionError):
    """A damage that was not found, or wrongly named, or read."""


def columns(kind: str, seed: int) -> dict[str, Any]:
    """Return the rows of a store: a wide and a narrow column, or ragged ones, whatever their codecs and history."""
    rng = np.random.default_rng(seed)
    if kind != "ragged":
        return {"x": rng.integers(0, 9, (ROWS, 16)).astype(np.float32), "y": rng.integers(0, 1000, ROWS)}
    lengths = rng.integers(0, 40, ROWS)
    tokens = np.split(rng.integers(0, 500, int(lengths.sum())).astype(np.uint16), np.cumsum(lengths)[:-1])
    return {"x": tokens, "text": [f"row {row} " * (row % 5) for row in rng.integers(0, 99, ROWS)]}


@dataclass(frozen=True)
class Subject:
    """A store, as it was written and as it was before that.

    Attributes:
        path: where it is damaged.
        pristine: a copy that nobody damages.
        earlier: the same store before its column `x` was replaced, or rows were appended.
        manifest: what it says of itself.
        rows: what its columns hold.
    """

    path: Path
    pristine: Path
    earlier: Path
    manifest: Manifest
    rows: Mapping[str, Any]

    @property
    def shards(self) -> dict[str, tuple[ArrayEntry, int]]:
        """Its shard files: array and number."""
        return {key: (entry, shard) for entry in self.manifest.arrays for shard, key in enumerate(entry.keys)}

    def restore(self) -> None:
        """Make it what it was."""
        shutil.rmtree(self.path)
        shutil.copytree(self.pristine, self.path)
        for folder in self.path.parent.glob(f"{self.path.name}.damaged-*"):
            shutil.rmtree(folder)


def make_subject(folder: Path, kind: str) -> Subject:
    """Write a store of a kind, change it, and keep what was there before."""
    path = folder / "store"
    codecs = {
        "ragged": {"x": "raw", "text": "zstd"},
        "appended": {"x": "raw", "y": "zstd"},
    }.get(kind, {"x": kind, "y": kind})
    # Shards of 256 rows and chunks of 2 KiB, so that a page holds several.
    sizes: Any = {"shard_bytes": 16 << 10, "chunk_bytes": 2 << 10}
    first = columns(kind, 1)
    before = {name: values[:_APPENDED_AT] for name, values in first.items()} if kind == "appended" else first
    with shardstore.Writer(path, codec=codecs, **sizes) as writer:
        writer.append(before)
    shutil.copytree(path, folder / "earlier")
    if kind == "appended":
        rows = first
        with shardstore.Writer(path, mode="append") as writer:
            writer.append({name: values[_APPENDED_AT:] for name, values in first.items()})
    else:
        rows = {**first, "x": columns(kind, 2)["x"]}
        with shardstore.open(path) as store:
            store.add_column("x", rows["x"], codec=codecs["x"], replace=True, progress=False, **sizes)
    with shardstore.open(path) as store:
        manifest = store.manifest
    shutil.copytree(path, folder / "pristine")
    return Subject(path, folder / "pristine", folder / "earlier", manifest, rows)


# Where the bytes of a file belong


@dataclass(frozen=True)
class Part:
    """Some bytes of a file that have one purpose."""

    name: str
    file: str
    begin: int
    end: int


def parts(subject: Subject) -> list[Part]:
    """Return the parts of all files of a store."""
    found = []
    for file in sorted(path for path in subject.pristine.rglob("*") if path.is_file()):
        name, size = str(file.relative_to(subject.pristine)), file.stat().st_size
        if name in subject.shards:
            found += _shard_parts(name, *subject.shards[name])
        elif name == METADATA_FILE:
            data = file.read_bytes()
            begin = data.index(b'{"shardstore":') + 14
            end = begin + len(json.dumps(json.loads(data)["attributes"]["shardstore"], separators=(",", ":")))
            found += [Part("manifest", name, begin, end), Part("rest of the group", name, 0, begin)]
            found.append(Part("rest of the group", name, end, size))
        else:
            found.append(Part("array metadata", name, 0, size))
    return found


def _shard_parts(name: str, entry: ArrayEntry, shard: int) -> Iterator[Part]:
    layout, slots = entry.layout, entry.layout.slots
    size = entry.record(shard).nbytes
    footer = size - footer_nbytes(slots)
    rows = layout.rows_in_shard(shard, entry.rows)
    end = rows * layout.field.row_nbytes if layout.codec.is_raw else footer
    places = [0, end, footer, footer + 4 * slots, footer + 20 * slots, size]
    names = ("chunk", "padding", "checksum table", "index", "index checksum")
    for part, begin, stop in zip(names, places[:-1], places[1:], strict=True):
        if begin < stop:
            yield Part(part, name, begin, stop)


# What is done to them

Damages = Callable[[Subject, Part, np.random.Generator], dict[str, Content]]


def _data(subject: Subject, part: Part) -> bytes:
    return (subject.pristine / part.file).read_bytes()


def flip(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Flip one bit."""
    data = bytearray(_data(subject, part))
    data[rng.integers(part.begin, part.end)] ^= 1 << int(rng.integers(8))
    return {part.file: bytes(data)}


def zero(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Make a page of zeros, as far as it belongs to the file."""
    data = bytearray(_data(subject, part))
    begin = int(rng.integers(part.begin, part.end)) // _PAGE * _PAGE
    end = min(begin + _PAGE, len(data))
    data[begin:end] = bytes(end - begin)
    return {part.file: bytes(data)}


def garble(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Overwrite a few bytes with any others."""
    data = bytearray(_data(subject, part))
    begin = int(rng.integers(part.begin, part.end))
    end = min(part.end, begin + int(rng.integers(1, 40)))
    data[begin:end] = rng.bytes(end - begin)
    return {part.file: bytes(data)}


def truncate(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Cut the file off."""
    return {part.file: _data(subject, part)[: rng.integers(part.begin, part.end)]}


def extend(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Append zeros, other bytes, or the file's own end once more."""
    data, nbytes = _data(subject, part), int(rng.integers(1, 2 * _PAGE))
    more = (bytes(nbytes), rng.bytes(nbytes), data[part.begin :])[rng.integers(3)]
    return {part.file: data + more}


def insert(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Put bytes in between, and lose as many at the end: the size stays."""
    data, place, nbytes = _data(subject, part), int(rng.integers(part.begin, part.end)), int(rng.integers(1, 100))
    return {part.file: (data[:place] + rng.bytes(nbytes) + data[place:])[: len(data)]}


def swap(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Exchange two shard files, of the same size where there are any."""
    data = _data(subject, part)
    others = {key: (subject.pristine / key).read_bytes() for key in subject.shards if key != part.file}
    alike = [key for key, other in others.items() if len(other) == len(data)] or list(others)
    other = alike[rng.integers(len(alike))]
    return {part.file: others[other], other: data} if part.file in subject.shards else {}


def stale(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Put back the file as it was before the column was replaced."""
    earlier = subject.earlier / part.file
    return {part.file: earlier.read_bytes()} if earlier.exists() else {}


def remove(subject: Subject, part: Part, rng: np.random.Generator) -> dict[str, Content]:
    """Lose the file."""
    return {part.file: None}


DAMAGES: tuple[Damages, ...] = (flip, zero, garble, truncate, extend, insert, swap, stale, remove)


def apply(subject: Subject, contents: Mapping[str, Content]) -> None:
    """Give files other contents; each is another file then, since some may be mapped."""
    for name, content in contents.items():
        file = subject.path / name
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)


# What has to be said of it


def expected_damages(subject: Subject, contents: Mapping[str, Content]) -> set[tuple[str, int | None, Any]]:
    """Return file, chunk and rows of all that is no longer what was written, but for the group's metadata."""
    return {found for name, content in contents.items() for found in _damages_of(subject, name, content)}


def _damages_of(subject: Subject, name: str, content: Content) -> Iterator[tuple[str, int | None, Any]]:
    data = (subject.pristine / name).read_bytes()
    if content == data or name == METADATA_FILE:
        return
    if name not in subject.shards:
        yield name, None, None
        return
    entry, shard = subject.shards[name]
    layout = entry.layout
    first, count = shard * layout.shard_rows, layout.rows_in_shard(shard, entry.rows)
    footer = len(data) - footer_nbytes(layout.slots)
    if content is None or len(content) != len(data) or content[footer:] != data[footer:]:
        yield name, None, (first, first + count)
        return
    index = np.frombuffer(data[footer + 4 * layout.slots : -4], "<u8").reshape(-1, 2)
    for chunk, (offset, nbytes) in enumerate(index[: layout.chunks_for(count)].tolist()):
        if content[offset : offset + nbytes] != data[offset : offset + nbytes]:
            start = first + chunk * layout.chunk_rows
            yield name, chunk, (start, min(start + layout.chunk_rows, first + count))


def check(subject: Subject, contents: Mapping[str, Content], rng: np.random.Generator) -> str:
    """Open, verify and read a damaged store; return how the damage was found."""
    expected = expected_damages(subject, contents)
    try:
        store = shardstore.open(subject.path, verify="on_read")
    except shardstore.ShardStoreError as error:
        if METADATA_FILE not in contents or METADATA_FILE not in str(error):
            raise MissedError(f"refused by mistake: {error}") from error
        return "refused"
    with store:
        damages = store.verify(progress=False).damages
        read_all(store, subject.rows, rng)
    if METADATA_FILE in contents:  # of an earlier generation
        if not damages:
            raise MissedError("another manifest was taken for the store's")
        return "verified"
    found = {(damage.file, damage.chunk, damage.rows) for damage in damages}
    if found != expected:
        raise MissedError(f"found {sorted(map(str, found))}, expected {sorted(map(str, expected))}")
    return "verified"


def read_all(store: shardstore.Store, rows: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Read each row by number and in runs; raise `MissedError` if one is not what was written."""
    for name in store.columns:
        column = store[name]
        order = rng.permutation(len(column))  # fewer in an earlier generation
        for start in range(0, len(column), 50):
            picked = np.sort(order[start : start + 50]) if start % 100 else order[start : start + 50]
            for index in (picked, slice(start, start + 50)):
                _compare(column, index, rows[name])


def _compare(column: shardstore.Column, index: Any, rows: Any) -> None:
    expected = rows[index] if isinstance(index, slice) else [rows[row] for row in index]
    try:
        found = column[index]
    except shardstore.ShardStoreError:
        return
    if len(found) != len(expected) or not all(map(_same, found, expected)):
        raise MissedError(f"rows of column {column.name!r} were read that were never written")


def _same(found: Any, expected: Any) -> bool:
    return bool(np.array_equal(found, expected))


def repair(subject: Subject) -> str:
    """Repair a damaged store; it has to be whole again, or to say what is not."""
    try:
        report = shardstore.repair(subject.path, progress=False)
    except shardstore.CorruptionError:
        return "refused"  # without a manifest
    if not report.ok:
        with shardstore.open(subject.path) as store:
            if _places(store.verify(progress=False).damages) != _places(report.left):
                raise MissedError("other damages are left than the repair says")
        return "part"
    if _tree(subject.path) != _tree(subject.pristine):
        raise MissedError("the repaired store is not what it was")
    return "whole"


def _places(damages: tuple[Damage, ...]) -> set[tuple[str, int | None, Any]]:
    return {(damage.file, damage.chunk, damage.rows) for damage in damages}


def _tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# Repairs that end early


def interrupt_repairs(folder: Path, fault: str, step: int = 1) -> int:
    """Let a repair have a fault at every `step`-th call to the file system; return at how many calls it had one.

    Raises:
        MissedError: if a file is lost, or the next repair does not make the store whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    subject = make_subject(folder, "raw")
    dumps = {name: folder / f"{name}.npy" for name in subject.rows}
    for name, path in dumps.items():
        np.save(path, subject.rows[name])
    group = (subject.pristine / METADATA_FILE).read_bytes()
    shard = bytearray((subject.pristine / "x/c/1/0").read_bytes())
    shard[-10] ^= 1
    contents = {
        METADATA_FILE: group[: len(group) - 50],
        "y/zarr.json": b"{}",
        "x/c/0/0": None,
        "x/c/1/0": bytes(shard),
        "y/c/1": (subject.pristine / "y/c/1").read_bytes()[:1000],
    }
    at = 0
    while True:
        subject.restore()
        apply(subject, contents)
        outcome = attempt(lambda _: shardstore.repair(subject.path, dumps, progress=False), folder, fault, at)
        if outcome.kind == "finished" and not outcome.hit:
            return at // step
        if not outcome.is_clear:
            raise MissedError(f"{fault} at call {at} ({outcome.hit}): {outcome.error}")
        kept = {content for path in folder.glob("store*") for content in _tree(path).values()}
        if lost := [name for name, content in contents.items() if content is not None and content not in kept]:
            raise MissedError(f"{fault} at call {at} ({outcome.hit}): lost {', '.join(lost)}")
        report = shardstore.repair(subject.path, dumps, progress=False)
        if not report.ok or _tree(subject.path) != _tree(subject.pristine):
            raise MissedError(f"{fault} at call {at} ({outcome.hit}): the next repair leaves {report.left}")
        at += step


# All of it


@dataclass
class Counts:
    """How many damages were tried, by kind of store, part and damage; and how each was found and repaired."""

    tried: Counter[tuple[str, str, str]]
    found: Counter[str]
    repaired: Counter[str]


def run(folder: Path, kind: str, each: int, seed: int = 0, repairs: bool = False) -> Counts:
    """Damage a store of a kind, so many times each part in each way.

    Raises:
        MissedError: for the first damage that is not dealt with as it should be; it says how to have it again.
    """
    counts = Counts(Counter(), Counter(), Counter())
    folder.mkdir(parents=True, exist_ok=True)
    subject = make_subject(folder, kind)
    found = parts(subject)
    for name in dict.fromkeys(part.name for part in found):
        places = [part for part in found if part.name == name]
        for damage in DAMAGES:
            for number in range(each):
                rng = np.random.default_rng([seed, number, *name.encode(), *damage.__name__.encode()])
                part = places[rng.integers(len(places))]
                contents = damage(subject, part, rng)
                if all(_means_the_same(subject, key, content) for key, content in contents.items()):
                    continue  # nothing of this kind, or the same by chance
                apply(subject, contents)
                try:
                    counts.found[check(subject, contents, rng)] += 1
                    if repairs:
                        counts.repaired[repair(subject)] += 1
                except MissedError as error:
                    where = f"{kind}, {name}, {damage.__name__}, number {number} of seed {seed}"
                    raise MissedError(f"{where} ({', '.join(contents)}): {error}") from error
                counts.tried[kind, name, damage.__name__] += 1
                if repairs:
                    subject.restore()
                else:
                    apply(subject, {key: (subject.pristine / key).read_bytes() for key in contents})
    return counts


def _means_the_same(subject: Subject, name: str, content: Content) -> bool:
    data = (subject.pristine / name).read_bytes()
    if content is None or content == data or not name.endswith(METADATA_FILE):
        return content == data
    earlier = subject.earlier / name
    free = [data]  # but for the white space at its end
    if subject.manifest.history and name != METADATA_FILE:
        free.append(earlier.read_bytes())  # which an append replaces only behind its commit
    try:
        return json.loads(content) in [json.loads(each) for each in free]
    except ValueError:
        return False


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--each", type=int, default=20, help="damages of each kind to each part of each store")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repair", action="store_true", help="also repair each")
    parser.add_argument("--only", choices=KINDS, action="append", help="kinds of stores; all by default")
    parser.add_argument("--interrupt", action="store_true", help="only interrupt repairs")
    options = parser.parse_args()
    if options.interrupt:
        for fault in FAULTS:
            with tempfile.TemporaryDirectory() as folder:
                print(f"{fault}: at {interrupt_repairs(Path(folder), fault):,} calls")
        return
    tried: Counter[tuple[str, str]] = Counter()
    found: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    for kind in options.only or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            counts = run(Path(folder), kind, options.each, options.seed, options.repair)
        for (_, part, damage), number in counts.tried.items():
            tried[part, damage] += number
        found.update(counts.found)
        repaired.update(counts.repaired)
        print(f"{kind}: {sum(counts.tried.values()):,} damages, all found", file=sys.stderr)
    names = [damage.__name__ for damage in DAMAGES]
    print(f"{'':18}" + "".join(f"{name:>10}" for name in names))
    for part in dict.fromkeys(part for part, _ in tried):
        print(f"{part:18}" + "".join(f"{tried[part, name] or '':>10}" for name in names))
    print(f"{tried.total():,} tried, {found.total():,} found: " + ", ".join(f"{n:,} {how}" for how, n in found.items()))
    if options.repair:
        print("repaired: " + ", ".join(f"{n:,} {how}" for how, n in repaired.items()))


if __name__ == "__main__":
    main()
