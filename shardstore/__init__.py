"""shardstore: convert raw NumPy dumps once, then stream shuffled training batches at the speed of RAM.

The names below are the public interface; `shardstore.torch` holds the datasets for PyTorch. Nothing here imports
torch or zarr.
"""

from shardstore.errors import (
    CorruptionError,
    DestinationError,
    FormatError,
    SchemaError,
    ShardStoreError,
    SourceError,
)
from shardstore.ingest import ingest
from shardstore.store import Store
from shardstore.store import open_store as open
from shardstore.stream import BatchStream
from shardstore.table import Column, View
from shardstore.version import __version__
from shardstore.writer import Writer

__all__ = [
    "BatchStream",
    "Column",
    "CorruptionError",
    "DestinationError",
    "FormatError",
    "SchemaError",
    "ShardStoreError",
    "SourceError",
    "Store",
    "View",
    "Writer",
    "__version__",
    "ingest",
    "open",
]
