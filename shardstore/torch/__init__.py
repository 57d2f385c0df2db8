"""Stores in PyTorch. Importing this package is what imports torch.

`StoreIterableDataset` streams in the store's own order and is right under any number of DataLoader workers and ranks,
`StoreLoader` gives the same batches from a thread, `StoreMapDataset` is for torch's own samplers.
"""

from shardstore.torch.datasets import StoreIterableDataset, StoreMapDataset
from shardstore.torch.loader import StoreLoader

__all__ = ["StoreIterableDataset", "StoreLoader", "StoreMapDataset"]
