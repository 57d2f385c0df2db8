"""`repair`: a damaged store made whole again, as far as what is left of it or the original files prove how it was.

What the manifest proves right is put in the place of what is damaged, each file at once and whole; what was there is
set aside, and so are columns that the manifest does not have; nothing is removed but unfinished files of writers that
were killed.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardstore import files
from shardstore.building import explained_errors
from shardstore.changes.leftovers import finish_commit, is_dead_column, settle
from shardstore.changes.writelock import store_lock
from shardstore.column_types import ColumnType, TypeLike, parse_type
from shardstore.damage import Damage
from shardstore.entries import ArrayEntry
from shardstore.errors import CorruptionError, FormatError, SourceError
from shardstore.files import Directory
from shardstore.manifest import METADATA_FILE, Manifest, encode_document, open_directory, read_manifest
from shardstore.progress import byte_progress
from shardstore.repairing.originals import Originals, provenance_text, remake
from shardstore.repairing.rebuilding import LOST, rebuilt_manifest
from shardstore.repairing.salvage import Remains
from shardstore.sources.inputs import Inputs
from shardstore.sources.named import Sources
from shardstore.verify import metadata_damages, verify_shard, verify_store

# Where shard files are made before they take their places; no column has such a name.
_WORKSHOP = ".repair"
# Files that are being written, and shard files that are to take the place of others.
_UNFINISHED = re.compile(r"\..+\.partial(-[0-9a-f]{8})?")
_SUCCESSOR = re.compile(r"\.\d+\.tail-\d+")


@dataclass(frozen=True)
class Repair:
    """One thing that was done.

    Attributes:
        file: path of the file within the store.
        what: what was done about it.
    """

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Attributes:
        repairs: what was done, in order.
        found: what was wrong before.
        left: what still is.
        set_aside: where files lie that were replaced or cannot be read at all; None if there are none.
        problems: why sources could not be read in a way that was tried.
        origin: which files the rows came from, as far as that is known.
    """

    repairs: tuple[Repair, ...]
    found: tuple[Damage, ...]
    left: tuple[Damage, ...]
    set_aside: Path | None
    problems: tuple[str, ...]
    origin: str

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong any more."""
        return not self.left

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        aside = None if self.set_aside is None else str(self.set_aside)
        return {"ok": self.ok, **asdict(self), "set_aside": aside}


def repair(
    store: str | os.PathLike[str],
    sources: Sources | None = None,
    *,
    split: str | None = None,
    types: Mapping[str, ColumnType | TypeLike] | None = None,
    rebuild_manifest: bool = False,
    progress: bool | None = None,
) -> RepairReport:
    """Make a damaged store whole again, as far as it can be proven how it was.

    Metadata is written anew from the manifest, footers of shard files from their chunks, and with `sources` damaged and
    lost shard files from the files that the store was made of. A shard file takes its place only if its size and the
    checksum of its footer are those in the manifest. What it replaces, and what cannot be read at all, goes to a folder
    beside the store, `STORE.damaged-` and 8 hexadecimal digits. Rows in other chunks of a damaged file stay readable.

    Args:
        store: the store's directory.
        sources: the files that the store was made of, or folders with them; what the manifest says of them tells which
            is which. Of columns that came from several files, as in the ingest.
        split: as in the ingest, if the columns were cut from one array in another way than one after the other.
        types: as in the ingest, if they are not those of the columns.
        rebuild_manifest: whether to make a new manifest if it is lost, from files that all have to be undamaged. What
            columns mean is lost then: see `shardstore.repairing.rebuilding.LOST`.
        progress: whether to draw progress bars; None draws them on a terminal.

    Raises:
        CorruptionError: if the manifest is lost and is not to be made again, or cannot be.
        LockedError: if somebody is changing the store.
        SourceError, SchemaError: if the sources cannot be read.
        FormatError, DestinationError: if there is no store, or it cannot be written to.
    """
    path = Path(store)
    given = {name: parse_type(name, type_) for name, type_ in (types or {}).items()}
    open_directory(path)  # or say that there is none
    with explained_errors(path, "files that were repaired before are in their places"), store_lock(path):
        work = _Work(path.absolute(), rebuild_manifest)
        work.remove_unfinished()
        work.write_metadata()
        found = work.verify(progress)
        try:
            work.salvage(found)
            if sources is not None and (damaged := work.damaged_shards(found)):
                work.restore(damaged, Originals(work.manifest, sources, split, given), progress)
        finally:
            work.clear_workshop()
        left = work.verify(progress) if found else found
        work.set_aside_unreadable(left)
        return RepairReport(
            tuple(work.repairs),
            (*work.metadata, *found),
            left,
            work.aside,
            tuple(work.problems) if left else (),
            provenance_text(work.manifest),
        )


class _Work:
    """The repair of one store, whose lock is held.

    Attributes:
        manifest: the store's.
        repairs: what was done.
        metadata: what was wrong with the metadata.
        problems: why sources could not be read.
        aside: where files were set aside, if any were.
    """

    def __init__(self, path: Path, rebuild: bool) -> None:
        self._path = path
        self._directory = Directory(path)
        self.repairs: list[Repair] = []
        self.metadata: list[Damage] = []
        self.problems: list[str] = []
        self.aside: Path | None = None
        self.manifest = self._read_manifest(rebuild)
        self._shards: dict[str, tuple[ArrayEntry, int]] = {
            key: (entry, shard) for entry in self.manifest.arrays for shard, key in enumerate(entry.keys)
        }

    def _read_manifest(self, rebuild: bool) -> Manifest:
        try:
            return read_manifest(self._directory)
        except (CorruptionError, FormatError) as error:
            problem = error
        where = self._path / METADATA_FILE
        self.metadata.append(Damage(METADATA_FILE, str(problem).removeprefix(f"{where}: ")))
        try:
            # Its other parts follow from it.
            return Manifest.from_remains(self._directory.read(METADATA_FILE), str(where))
        except FormatError:
            raise  # of a later version
        except (CorruptionError, OSError):
            pass
        if not rebuild:
            if not any(path.parent.is_dir() for path in self._path.glob(f"*/{METADATA_FILE}")):
                raise problem
            raise CorruptionError(
                f"{self._path}: the manifest is lost, and with it what vouches for the files ({problem}). Put a copy "
                "of zarr.json back if there is one, or ingest again. If all other files are whole, a new manifest can "
                f"be made for them (rebuild_manifest, --rebuild-manifest), but it will not have: {LOST}"
            )
        manifest = rebuilt_manifest(self._path)
        self.repairs.append(Repair(METADATA_FILE, f"a new manifest was made from the files; lost are {LOST}"))
        return manifest

    def remove_unfinished(self) -> None:
        """Remove what writers that were killed have not finished, this one among them."""
        self.clear_workshop()
        self._finish_commit()
        for path in sorted(self._hidden_files()):
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()
                self.repairs.append(Repair(str(path.relative_to(self._path)), "an unfinished file, removed"))
            elif _SUCCESSOR.fullmatch(path.name):
                self._move_aside(path, "of no commit of the store")
        for path in sorted(self._path.iterdir()):
            if path.is_dir() and path.name not in self.manifest.columns and is_dead_column(path):
                self._move_aside(path, "no column of the store")

    def _finish_commit(self) -> None:
        """Do what is left to be done behind an append; a file is kept whose successor is damaged."""
        settle(self._path, self.manifest)
        for entry in self.manifest.arrays:
            if entry.successor is None:
                continue
            *successor, key = entry.names(entry.successor.shard)
            if any((self._path / name).exists() for name in successor) and self._damages(self._directory, key):
                self._keep(self._path / key)
        finish_commit(self._path, self.manifest)

    def _hidden_files(self) -> Iterator[Path]:
        yield from self._path.glob(f".{METADATA_FILE}.partial-*")
        for name in self.manifest.columns:
            if not (self._path / name).is_symlink():
                yield from (
                    path for path in (self._path / name).rglob(".*") if path.is_file() and not path.is_symlink()
                )

    def write_metadata(self) -> None:
        """Write the metadata documents that do not follow from the manifest, the group's last."""
        for damage in metadata_damages(self._directory, self.manifest):
            self.metadata.append(damage)
            path = self._path / damage.file
            self._keep(path)
            document = self.manifest.documents()[str(Path(damage.file).parent.as_posix())]
            files.write_file(path, encode_document(document))
            files.fsync_directory(path.parent)
            self.repairs.append(Repair(damage.file, "written anew from the manifest"))
        if any(damage.file == METADATA_FILE for damage in self.metadata):
            self._keep(self._path / METADATA_FILE)
            files.write_file(self._path / METADATA_FILE, self.manifest.encode())
            files.fsync_directory(self._path)
            self.repairs.append(Repair(METADATA_FILE, "written anew from the manifest in it"))

    def verify(self, progress: bool | None) -> tuple[Damage, ...]:
        """Return what is wrong now."""
        return verify_store(self._directory, self.manifest, progress).damages

    def damaged_shards(self, found: Sequence[Damage]) -> set[str]:
        """Return the keys of shard files that are still damaged, of those that were."""
        keys = {damage.file for damage in found if damage.file in self._shards}
        return {key for key in keys if self._damages(self._directory, key)}

    def salvage(self, found: Sequence[Damage]) -> None:
        """Write shard files anew whose chunks are whole, or of which more can be read then."""
        for key in dict.fromkeys(damage.file for damage in found if self._may_be_salvaged(damage)):
            path = self._path / key
            if not path.is_file():
                continue
            entry, shard = self._shards[key]
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                rows = entry.layout.rows_in_shard(shard, entry.rows)
                proven = Remains(descriptor, entry.layout, entry.record(shard), rows).write(self._workshop / key)
            finally:
                os.close(descriptor)
            if not proven:
                continue
            before, after = self._damages(self._directory, key), self._damages(Directory(self._workshop), key)
            if not after:
                self._take_over(key, "written anew from its own chunks, all of which are proven right")
            elif any(damage.chunk is None for damage in before):
                self._take_over(key, f"its footer was written anew; {len(after):,} of its chunks are damaged")
            self.clear_workshop()

    def _may_be_salvaged(self, damage: Damage) -> bool:
        if damage.file not in self._shards:
            return False
        entry, shard = self._shards[damage.file]
        layout, rows = entry.layout, entry.layout.rows_in_shard(shard, entry.rows)
        # What was written behind the last row is known; other chunks are as they are.
        padded = layout.codec.is_raw and rows % layout.chunk_rows
        return damage.chunk is None or (bool(padded) and damage.chunk == layout.chunks_for(rows) - 1)

    def restore(self, damaged: set[str], originals: Originals, progress: bool | None) -> None:
        """Make damaged shard files again from the files that the store was made of."""
        wanted: dict[str, dict[str, set[int]]] = {}
        for key in damaged:
            entry, shard = self._shards[key]
            array = entry.layout.field.name
            wanted.setdefault(array.split("/")[0], {}).setdefault(array, set()).add(shard)
        for inputs in originals.readings():
            for name in list(wanted.keys() & inputs.parts.keys()):
                try:
                    self._remake(name, inputs, wanted[name], progress)
                except SourceError as error:  # another way of reading them may do
                    self.problems.append(str(error))
                if not any(wanted[name].values()):
                    del wanted[name]
                self.clear_workshop()
            if not wanted:
                return

    def _remake(self, name: str, inputs: Inputs, wanted: Mapping[str, set[int]], progress: bool | None) -> None:
        """Make shards of a column again, and strike those off the list that have taken their places."""
        column = self.manifest.columns[name]
        with byte_progress(f"restore {name}", column.nbytes, progress) as advance:
            for entry, shard in remake(column, inputs, wanted, self._workshop, advance):
                key = entry.layout.shard_key(shard)
                if not self._damages(Directory(self._workshop), key):
                    self._take_over(key, "made again from the sources")
                    wanted[entry.layout.field.name].discard(shard)

    def set_aside_unreadable(self, left: Sequence[Damage]) -> None:
        """Set files aside that cannot be read at all; rows of others can, but for those in damaged chunks."""
        for damage in left:
            path = self._path / damage.file
            if damage.file not in self._shards or damage.chunk is not None or not os.path.lexists(path):
                continue
            entry, shard = self._shards[damage.file]
            if entry.layout.codec.is_raw and path.is_file() and path.stat().st_size == entry.record(shard).nbytes:
                continue  # rows can be read without the footer, though nothing vouches for them
            self._move_aside(path, "cannot be read")

    def clear_workshop(self) -> None:
        """Remove what was made and has not taken its place."""
        if self._workshop.exists():
            shutil.rmtree(self._workshop)

    @property
    def _workshop(self) -> Path:
        return self._path / _WORKSHOP

    def _damages(self, directory: Directory, key: str) -> list[Damage]:
        return verify_shard(directory, *self._shards[key], False, lambda nbytes: None).damages

    def _take_over(self, key: str, what: str) -> None:
        path = self._path / key
        self._keep(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        (self._workshop / key).replace(path)
        for folder in path.relative_to(self._path).parents:
            files.fsync_directory(self._path / folder)
        self.repairs.append(Repair(key, what))

    def _move_aside(self, path: Path, why: str) -> None:
        name = str(path.relative_to(self._path))
        target = self._beside(name)
        shutil.move(path, target)
        files.fsync_directory(path.parent)
        self.repairs.append(Repair(name, f"{why}, set aside as {target}"))

    def _keep(self, path: Path) -> None:
        """Set aside what is about to be replaced: a file by another name, so that its own never leads nowhere."""
        if not os.path.lexists(path):
            return
        target = self._beside(str(path.relative_to(self._path)))
        if not path.is_file() or path.is_symlink():
            shutil.move(path, target)
            return
        try:
            os.link(path, target)
        except OSError:  # not on this file system
            shutil.copy2(path, target, follow_symlinks=False)

    def _beside(self, name: str) -> Path:
        """Return a place beside the store for one of its files."""
        if self.aside is None:
            self.aside = self._path.with_name(f"{self._path.name}.damaged-{uuid.uuid4().hex[:8]}")
        target, number = self.aside / name, 1
        while os.path.lexists(target):  # a file that took the place of another one that lies here
            number += 1
            target = self.aside / f"{name}-{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target
