"""What a store holds, in words and as JSON: what `shardstore info` and `head` print."""

from __future__ import annotations

from typing import Any

from shardstore.entries import ColumnEntry
from shardstore.manifest import FORMAT_VERSION
from shardstore.schema import Field
from shardstore.store import Store

MAX_LENGTH = 60
# So many items of a ragged row are shown.
_SHOWN_ITEMS = 8


def describe_store(store: Store) -> dict[str, Any]:
    """Return all that the manifest says of a store, and what of it is cached now, as plain JSON values."""
    manifest = store.manifest
    memory = store.memory()
    return {
        "path": str(store.path),
        "format_version": FORMAT_VERSION,
        "store_id": manifest.store_id,
        "generation": manifest.generation,
        "created": manifest.provenance.get("created"),
        "tool": manifest.provenance.get("tool"),
        "rows": len(store),
        "nbytes": store.nbytes,
        "stored_nbytes": store.stored_nbytes,
        "shard_rows": manifest.shard_rows,
        "memory": {"page_cache": memory.page_cache, "stored": memory.stored, "mappable": memory.mappable},
        "columns": {name: _describe_column(entry) for name, entry in manifest.columns.items()},
        "sources": _sources(manifest.provenance.get("sources", {})),
    }


def _describe_column(entry: ColumnEntry) -> dict[str, Any]:
    field = entry.field
    column: dict[str, Any] = {
        "kind": field.kind,
        "type": str(field) if field.is_ragged or field.kind == "categorical" else str(field.dtype),
        "dtype": str(field.dtype),
        "row_shape": list(field.row_shape),
    }
    if field.is_ragged:
        column["items"] = entry.data.rows
    if field.kind == "categorical":
        column["categories"] = list(field.categories)
    return column | {
        "codec": str(entry.data.layout.codec),
        "chunk_rows": entry.data.layout.chunk_rows,
        "shards": entry.num_shards,
        "nbytes": entry.nbytes,
        "stored_nbytes": entry.stored_nbytes,
    }


def _sources(sources: Any) -> list[dict[str, Any]]:
    keys = {"names": "name", "sizes": "nbytes", "shapes": "shape", "dtypes": "dtype"}
    columns = [sources.get(key, []) for key in keys] if isinstance(sources, dict) else []
    if not all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return []  # what is not to be understood is of no use to anybody
    return [dict(zip(keys.values(), values, strict=True)) for values in zip(*columns, strict=True)]


def row_form(column: dict[str, Any]) -> str:
    """Return the shape of a described column's rows in words; of a ragged one, how many items there are."""
    if "items" in column:
        return f"{column['items']:,} {'items' if column['kind'] == 'ragged' else 'bytes'}"
    return "x".join(map(str, column["row_shape"])) or "scalar"


def show_value(field: Field, value: Any) -> str:
    """Return one row of a column in a line of at most 60 characters: strings quoted, categories by their names."""
    if field.kind == "utf8":
        return _quoted(value, f"… {len(value):,} characters")
    if field.kind == "binary":
        return _quoted(value, f"… {len(value):,} bytes")
    if field.kind == "categorical":
        return _brief(_names(field, value.tolist()))
    if field.kind == "ragged" and len(value) > _SHOWN_ITEMS:
        first = ", ".join(" ".join(str(item).split()) for item in value[:_SHOWN_ITEMS])
        ending = f", … {len(value):,} items]"
        while len(first) + 1 + len(ending) > MAX_LENGTH and ", " in first:
            first = first.rpartition(", ")[0]
        return _brief(f"[{first}", ending)
    if field.kind == "ragged":
        return _brief("[" + ", ".join(" ".join(str(item).split()) for item in value) + "]")
    return _brief(str(value))


def _quoted(value: str | bytes, ending: str) -> str:
    # So many characters at most are shown: there is no need to write out a text of megabytes.
    text = repr(value[:MAX_LENGTH])
    if len(value) <= MAX_LENGTH and len(text) <= MAX_LENGTH:
        return text
    return f"{text[: MAX_LENGTH - len(ending) - 1]}{ending}"


def _names(field: Field, codes: Any) -> str:
    if isinstance(codes, list):
        return "[" + ", ".join(_names(field, code) for code in codes) + "]"
    # Without quotes, but what a terminal would obey is escaped as in other strings.
    return repr(field.categories[codes])[1:-1] if codes < len(field.categories) else str(codes)


def _brief(text: str, ending: str = "") -> str:
    text = " ".join(text.split())
    most = MAX_LENGTH - len(ending)
    return text + ending if len(text) <= most else f"{text[: most - 3]}...{ending}"
