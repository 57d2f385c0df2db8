"""shardstore: convert raw NumPy dumps once, then stream shuffled training batches at the speed of RAM.

The names below are the public interface; `shardstore.torch` holds the datasets for PyTorch. Nothing here imports
torch or zarr, and what writes is imported when it is first used: a training run only reads.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardstore.column import Column
from shardstore.column_types import Categorical
from shardstore.errors import (
    CorruptionError,
    DestinationError,
    FormatError,
    LockedError,
    SchemaError,
    ShardStoreError,
    SourceError,
    StateError,
)
from shardstore.padding import Pad
from shardstore.ragged import Blobs, Ragged, Strings
from shardstore.rowwise import Rowwise
from shardstore.store import Store
from shardstore.store import open_store as open
from shardstore.stream import BatchStream
from shardstore.table import View
from shardstore.version import __version__

if TYPE_CHECKING:
    from shardstore.ingesting import ingest
    from shardstore.mixture import Mixture, mix
    from shardstore.repairing.repairs import repair
    from shardstore.sources.text import read_files, read_text
    from shardstore.statistics.summary import ColumnStatistics
    from shardstore.transforms import Normalize
    from shardstore.writer import Writer

__all__ = [
    "BatchStream",
    "Blobs",
    "Categorical",
    "Column",
    "ColumnStatistics",
    "CorruptionError",
    "DestinationError",
    "FormatError",
    "LockedError",
    "Mixture",
    "Normalize",
    "Pad",
    "Ragged",
    "Rowwise",
    "SchemaError",
    "ShardStoreError",
    "SourceError",
    "StateError",
    "Store",
    "Strings",
    "View",
    "Writer",
    "__version__",
    "ingest",
    "mix",
    "open",
    "read_files",
    "read_text",
    "repair",
]

_ON_FIRST_USE = {
    "ColumnStatistics": "shardstore.statistics.summary",
    "Mixture": "shardstore.mixture",
    "Normalize": "shardstore.transforms",
    "Writer": "shardstore.writer",
    "ingest": "shardstore.ingesting",
    "mix": "shardstore.mixture",
    "read_files": "shardstore.sources.text",
    "read_text": "shardstore.sources.text",
    "repair": "shardstore.repairing.repairs",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'shardstore' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ON_FIRST_USE[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
