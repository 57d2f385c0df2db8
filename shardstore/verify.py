"""Verification: every byte of a store against the checksums that vouch for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardstore.content import content_damages, range_damages
from shardstore.damage import Damage
from shardstore.entries import ArrayEntry
from shardstore.errors import CorruptionError, FormatError, ShardStoreError
from shardstore.files import Directory
from shardstore.machine import cpu_count
from shardstore.manifest import METADATA_FILE, Manifest, read_manifest
from shardstore.progress import byte_progress
from shardstore.shardfile import DamagedChunk, check_chunks
from shardstore.shards import open_shard


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        files: files looked at.
        chunks: chunks checked.
        nbytes: bytes checked.
        damages: what is wrong, in the order of columns and shards.
    """

    files: int
    chunks: int
    nbytes: int
    damages: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"ok": self.ok, **asdict(self)}


# So often is a store verified that others change meanwhile.
_TRIES = 5


@dataclass(frozen=True)
class ShardResult:
    """What a verification found in one shard file.

    Attributes:
        chunks: chunks checked.
        nbytes: bytes checked.
        damages: what is wrong, in order.
    """

    chunks: int
    nbytes: int
    damages: list[Damage]


def verify_store(
    directory: Directory, manifest: Manifest, progress: bool | None = None, deep: bool = False
) -> VerifyReport:
    """Check the metadata of all arrays, of every shard file its size, its footer and each chunk, and all ranges.

    If it is to be `deep`, also whether compressed chunks decode, and whether what columns hold is what their types say.
    Of a store that was changed since the manifest was read, what is there now is checked, and again if it is changed
    meanwhile and not all was right. A store that was replaced is only said to be.
    """
    for _ in range(_TRIES):
        if directory.outdated:
            return VerifyReport(1, 0, 0, (Damage(METADATA_FILE, f"{directory.outdated}; open it again"),))
        manifest = _latest(directory, manifest)
        try:
            report = _verify_all(directory, manifest, progress, deep)
        except ShardStoreError:
            if _latest(directory, manifest) is manifest:
                raise
            continue
        if report.ok or (_latest(directory, manifest) is manifest and not directory.outdated):
            return report
    reason = f"the store was changed each of {_TRIES} times while it was verified; wait until nobody changes it"
    return VerifyReport(1, 0, 0, (Damage(METADATA_FILE, reason),))


def _latest(directory: Directory, manifest: Manifest) -> Manifest:
    """Return the manifest on disk if it is a later one of the same store."""
    try:
        found = read_manifest(directory)
    except (FormatError, CorruptionError):
        return manifest  # which is damage
    is_later = found.store_id == manifest.store_id and found.generation != manifest.generation
    return found if is_later else manifest


def _verify_all(directory: Directory, manifest: Manifest, progress: bool | None, deep: bool) -> VerifyReport:
    damages = [*_group_damages(directory, manifest), *metadata_damages(directory, manifest)]
    shards = [(entry, shard) for entry in manifest.arrays for shard in range(len(entry.nbytes))]
    total = sum(column.stored_nbytes for column in manifest.columns.values())
    with byte_progress("verify", total, progress) as advance, ThreadPoolExecutor(cpu_count()) as executor:

        def verify(job: tuple[ArrayEntry, int]) -> ShardResult:
            return verify_shard(directory, *job, deep, advance)

        results = list(executor.map(verify, shards))
    damages += [damage for result in results for damage in result.damages]
    if not damages:  # of bytes that were not written so, nothing more needs to be said
        for column in manifest.columns.values():
            damages += range_damages(directory, column)
    if deep and not damages:
        for column in manifest.columns.values():
            damages += content_damages(directory, column)
    return VerifyReport(
        files=1 + len(manifest.documents()) + len(shards),
        chunks=sum(result.chunks for result in results),
        nbytes=sum(result.nbytes for result in results),
        damages=tuple(damages),
    )


def _group_damages(directory: Directory, manifest: Manifest) -> Iterator[Damage]:
    """Look again at the manifest: it may have been damaged since the store was opened."""
    try:
        found = read_manifest(directory)
    except (FormatError, CorruptionError) as error:
        yield Damage(METADATA_FILE, str(error).removeprefix(f"{directory.path / METADATA_FILE}: "))
        return
    if found.group_document() != manifest.group_document():
        yield Damage(METADATA_FILE, "the manifest is not the one that was opened")


def metadata_damages(directory: Directory, manifest: Manifest) -> Iterator[Damage]:
    """Look whether the metadata of arrays, and of the groups of ragged columns, is what follows from the manifest."""
    earlier = _earlier_documents(manifest)
    for name, expected in manifest.documents().items():
        key = f"{name}/{METADATA_FILE}"
        try:
            found = json.loads(directory.read(key))
        except (OSError, ValueError, RecursionError) as error:
            yield Damage(key, f"the array's metadata cannot be read: {error}")
            continue
        if found not in (expected, earlier.get(name, expected)):
            yield Damage(key, "the array's metadata does not match the manifest")


def _earlier_documents(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return the metadata that arrays may still have: an append replaces it behind its commit, if it is not killed."""
    if not manifest.history or manifest.history[-1].until != manifest.generation - 1:
        return {}
    return manifest.at(manifest.generation - 1).documents()


def verify_shard(
    directory: Directory, entry: ArrayEntry, shard: int, deep: bool, advance: Callable[[int], None]
) -> ShardResult:
    """Check the size of a shard file, its footer and each chunk; `advance` is called with bytes that are right."""
    layout = entry.layout
    key = layout.shard_key(shard)
    first_row = shard * layout.shard_rows
    count = layout.rows_in_shard(shard, entry.rows)
    path = directory.path / key
    try:
        file = open_shard(directory, entry, shard)
    except (ShardStoreError, OSError) as error:
        return ShardResult(0, 0, [_whole(key, path, error, first_row, count)])
    damages = []
    chunks = 0
    try:
        footer = file.read_footer(entry)
        for result in check_chunks(file.descriptor, layout, footer, count, deep):
            chunks += 1
            if isinstance(result, DamagedChunk):
                lost = (first_row + result.start, first_row + result.stop)
                damages.append(Damage(key, result.reason, result.chunk, lost))
            else:
                advance(result)
    except (ShardStoreError, OSError) as error:
        damages.append(_whole(key, path, error, first_row, count))
    finally:
        os.close(file.descriptor)
    return ShardResult(chunks, file.record.nbytes, damages)


def _whole(key: str, path: Path, error: Exception, first_row: int, count: int) -> Damage:
    return Damage(key, str(error).removeprefix(f"{path}: "), None, (first_row, first_row + count))
