"""The manifest, and the group's `zarr.json` that carries it.

A store's group `zarr.json` holds the manifest in `attributes["shardstore"]` and the metadata of every array in
`consolidated_metadata`. Both follow from one `Manifest`: the documents are written from it, and what is read is
checked against it, so that no part of them can be damaged unseen.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shardstore.checksum import crc32c
from shardstore.column_bodies import column_body, integer, power_of_two, read_column, shown
from shardstore.entries import ArrayEntry, ColumnEntry
from shardstore.errors import CorruptionError, FormatError, SchemaError
from shardstore.files import MOST_METADATA_BYTES, Directory, UnfitFileError
from shardstore.schema import Field, check_different
from shardstore.zarr_documents import column_documents

FORMAT_VERSION = 1
METADATA_FILE = "zarr.json"
# So many earlier numbers of rows are kept, for who has an earlier generation open or wants to.
MAX_HISTORY = 1000
_ATTRIBUTE = "shardstore"
_KEYS = frozenset(
    ("format_version", "store_id", "generation", "rows", "shard_rows", "columns", "provenance", "history")
)


@dataclass(frozen=True)
class Earlier:
    """How many rows a store had before rows were appended.

    Attributes:
        until: the last generation that had so many.
        rows: that many.
        items: by ragged column, how many items these had.
    """

    until: int
    rows: int
    items: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"until": self.until, "rows": self.rows, "items": dict(self.items)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Earlier:
        """Read what `to_json` returns; raise `TypeError`, `KeyError` or `ValueError` if it is not that."""
        items = {str(name): integer(body["items"], name, 0) for name in body["items"]}
        return cls(integer(body, "until", 1), integer(body, "rows", 0), MappingProxyType(items))


@dataclass(frozen=True)
class Manifest:
    """All that a reader knows of a store before it opens a shard file.

    Attributes:
        store_id: a UUID4, given once when the store is created.
        generation: 1 for a new store; every commit counts it up.
        rows: rows of the store.
        shard_rows: rows of every shard but the last.
        columns: by name, in order.
        provenance: where the rows came from, as plain JSON values.
        unknown: keys that this release does not know. They are kept, as are those of columns and of `provenance`.
        history: how many rows there were before appends, the oldest first.
    """

    store_id: str
    generation: int
    rows: int
    shard_rows: int
    columns: Mapping[str, ColumnEntry]
    provenance: Mapping[str, Any] = dataclass_field(default_factory=dict)
    unknown: Mapping[str, Any] = dataclass_field(default_factory=dict)
    history: tuple[Earlier, ...] = ()

    def group_document(self) -> dict[str, Any]:
        """Return the group's `zarr.json`."""
        body = self._body()
        return {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {_ATTRIBUTE: {**body, "crc32c": manifest_checksum(body)}},
            "consolidated_metadata": self._consolidated_metadata(),
        }

    def encode(self) -> bytes:
        """Return the bytes of the group's `zarr.json`.

        They hold the manifest in its canonical form, so that who reads them need not make it again.

        Raises:
            SchemaError: if they are more than anybody reads.
        """
        document = self.group_document()
        body = _canonical(self._body())
        checksum = document["attributes"][_ATTRIBUTE]["crc32c"]
        rest = {key: value for key, value in document.items() if key != "attributes"}
        data = _BEFORE_BODY + body[:-1] + _checksum_text(checksum) + b"}," + encode_document(rest)[1:]
        if len(data) > MOST_METADATA_BYTES:
            raise SchemaError(
                f"the store's metadata would be {len(data):,} bytes, and no reader takes more than "
                f"{MOST_METADATA_BYTES:,}: choose larger shard_bytes, or keep fewer categories"
            )
        return data

    def _consolidated_metadata(self) -> dict[str, Any]:
        return {"kind": "inline", "must_understand": False, "metadata": self.documents()}

    def at(self, generation: int) -> Manifest:
        """Return the store as it was at an earlier generation, as far as that is still there.

        Appends only add rows, so its rows are the first ones of today's. Columns that have gone since are not there.

        Raises:
            FormatError: if the store has no such generation, or it is not known how many rows that had.
        """
        if generation == self.generation:
            return self
        if not 1 <= generation < self.generation:
            raise FormatError(f"there is no generation {generation:,}: the store is at generation {self.generation:,}")
        kept = self.history[0].until if len(self.history) == MAX_HISTORY else 1
        if generation < kept:
            raise FormatError(f"generation {generation:,} is not kept: the oldest is {kept:,}")
        columns = {name: entry for name, entry in self.columns.items() if entry.since <= generation}
        if not columns:
            raise FormatError(f"no column of generation {generation:,} is still there")
        past = next((earlier for earlier in self.history if earlier.until >= generation), None)
        if past is not None:
            columns = {name: entry.up_to(past.rows, past.items.get(name, 0)) for name, entry in columns.items()}
        rows = self.rows if past is None else past.rows
        return replace(self, generation=generation, rows=rows, columns=MappingProxyType(columns))

    def grown(self, rows: int, columns: Mapping[str, ColumnEntry], provenance: Mapping[str, Any]) -> Manifest:
        """Return the next generation of the store, with more rows."""
        items = {name: entry.data.rows for name, entry in self.columns.items() if entry.ranges is not None}
        history = (*self.history, Earlier(self.generation, self.rows, items))[-MAX_HISTORY:]
        return replace(
            self,
            generation=self.generation + 1,
            rows=rows,
            columns=MappingProxyType(dict(columns)),
            provenance=provenance,
            history=history,
        )

    @property
    def fields(self) -> dict[str, Field]:
        """What a row of each column holds."""
        return {name: entry.field for name, entry in self.columns.items()}

    @property
    def arrays(self) -> list[ArrayEntry]:
        """All arrays of all columns, in order."""
        return [array for column in self.columns.values() for array in column.arrays]

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return the `zarr.json` of every array, and of every ragged column's group, by its path within the store."""
        documents: dict[str, dict[str, Any]] = {}
        for name, column in self.columns.items():
            documents |= column_documents(name, column)
        return documents

    def _body(self) -> dict[str, Any]:
        body = {
            **self.unknown,
            "format_version": FORMAT_VERSION,
            "store_id": self.store_id,
            "generation": self.generation,
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "columns": [column_body(entry) for entry in self.columns.values()],
            "provenance": dict(self.provenance),
        }
        return {**body, "history": [past.to_json() for past in self.history]} if self.history else body

    @classmethod
    def from_document(cls, document: Any, where: str, data: bytes = b"", whole: bool = True) -> Manifest:
        """Read a group's `zarr.json` and check all of it.

        Args:
            document: its JSON value.
            where: where it was found, for messages.
            data: its bytes, if these are at hand: they save the time of encoding the manifest again.
            whole: whether what follows from the manifest is checked, too.

        Raises:
            FormatError: if it is not a store's, or one of a later format version.
            CorruptionError: if it was damaged after it was written.
        """
        try:
            body = dict(document["attributes"][_ATTRIBUTE])
            version = body["format_version"]
        except (TypeError, KeyError, ValueError):
            raise FormatError(f"{where}: a Zarr group, but not a shardstore store: it has no manifest") from None
        if type(version) is not int or version != FORMAT_VERSION:
            raise FormatError(
                f"{where}: the store has format version {shown(version)}; this release reads {FORMAT_VERSION}: "
                "install a newer shardstore"
            )
        checksum = body.pop("crc32c", None)
        try:
            fits = _holds_canonical(data, checksum) or checksum == manifest_checksum(body)
        except RecursionError:
            fits = False  # no store nests its metadata so deeply
        if not fits:
            raise CorruptionError(f"{where}: the manifest does not match its checksum; {_RESTORE}")
        try:
            manifest = cls._read(body)
        except FormatError as error:
            raise FormatError(f"{where}: {error}; install a newer shardstore") from None
        except (TypeError, KeyError, IndexError, ValueError, OverflowError, SchemaError) as error:
            reason = shown(error, 500)
            raise CorruptionError(f"{where}: the manifest is incomplete or wrong ({reason}); {_RESTORE}") from error
        if whole:
            manifest._check_group(document, where)
        return manifest

    @classmethod
    def from_remains(cls, data: bytes, where: str) -> Manifest:
        """Read the manifest out of a group's `zarr.json` of which other parts may be damaged; raise as above."""
        text = data.decode("utf-8", "replace")
        place = text.find(f'"{_ATTRIBUTE}"')
        try:
            body, _ = json.JSONDecoder().raw_decode(text, text.index("{", place))
        except (ValueError, RecursionError) as error:
            raise CorruptionError(f"{where}: the manifest is not readable JSON ({error}); {_RESTORE}") from None
        return cls.from_document({"attributes": {_ATTRIBUTE: body}}, where, whole=False)

    @classmethod
    def _read(cls, body: Mapping[str, Any]) -> Manifest:
        rows, shard_rows = integer(body, "rows", 0), power_of_two(body, "shard_rows")
        entries = [read_column(column, rows, shard_rows) for column in body["columns"]]
        columns = {entry.field.name: entry for entry in entries}
        if not columns:
            raise ValueError("expected at least one column")
        check_different([entry.field.name for entry in entries])
        return cls(
            store_id=_store_id(body),
            generation=integer(body, "generation", 1),
            rows=rows,
            shard_rows=shard_rows,
            columns=MappingProxyType(columns),
            provenance=dict(body["provenance"]),
            unknown=MappingProxyType({key: value for key, value in body.items() if key not in _KEYS}),
            history=tuple(Earlier.from_json(past) for past in body.get("history", ())),
        )

    def _check_group(self, document: Mapping[str, Any], where: str) -> None:
        expected = {"zarr_format": 3, "node_type": "group", "consolidated_metadata": self._consolidated_metadata()}
        for key, value in expected.items():
            if document.get(key) != value:
                raise CorruptionError(f"{where}: its {key} does not match the manifest; {_RESTORE}")


def _store_id(body: Mapping[str, Any]) -> str:
    found = body["store_id"]
    if not isinstance(found, str) or not _UUID.fullmatch(found):
        raise ValueError(f"store_id is {shown(found)}, expected a UUID")
    return found


_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RESTORE = "restore zarr.json from a copy, or see what shardstore repair can do"


def load_manifest(store: Path) -> tuple[Directory, Manifest]:
    """Open the directory of a store and read its manifest.

    Raises:
        FormatError: if there is no store there, or one of a later format version.
        CorruptionError: if its `zarr.json` is damaged.
    """
    directory = open_directory(store)
    return directory, read_manifest(directory)


def open_directory(store: Path) -> Directory:
    """Open the directory of a store; raise `FormatError` if there is none."""
    try:
        return Directory(store)
    except FileNotFoundError:
        raise FormatError(f"{store}: not a shardstore store: no such directory") from None
    except NotADirectoryError:
        raise FormatError(f"{store}: not a shardstore store: it is a file, expected a directory") from None


def read_manifest(directory: Directory) -> Manifest:
    """Read the manifest in the open directory of a store; raise as `load_manifest` does."""
    store = directory.path
    try:
        data = directory.read(METADATA_FILE)
    except FileNotFoundError:
        raise FormatError(
            f"{store}: not a shardstore store: no zarr.json in it; expected a directory made by an ingest"
        ) from None
    except UnfitFileError as error:
        raise FormatError(f"{store}: not a shardstore store: its zarr.json {error}") from None
    where = str(store / METADATA_FILE)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{where}: the manifest is not readable JSON ({error}); {_RESTORE}") from None
    return Manifest.from_document(document, where, data)


def manifest_checksum(body: Mapping[str, Any]) -> int:
    """Return the CRC32C of plain JSON values without floats in the manifest's canonical form."""
    return crc32c(_canonical(body))


def _canonical(body: Mapping[str, Any]) -> bytes:
    # Keys sorted, no white space, everything beyond ASCII escaped.
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


_BEFORE_BODY = f'{{"attributes":{{"{_ATTRIBUTE}":'.encode()


def _checksum_text(checksum: int) -> bytes:
    return b',"crc32c":%d}' % checksum


def _holds_canonical(data: bytes, checksum: Any) -> bool:
    """Whether bytes of a group's `zarr.json` begin with a manifest in its canonical form that has this checksum."""
    if type(checksum) is not int or not data.startswith(_BEFORE_BODY):
        return False
    end = data.find(_checksum_text(checksum), len(_BEFORE_BODY))  # in no string: quotes are escaped there
    return end > 0 and crc32c(b"}", crc32c(data[len(_BEFORE_BODY) : end])) == checksum


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Return a metadata document as the bytes of its file."""
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"
