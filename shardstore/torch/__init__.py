"""Stores in PyTorch. Importing this package is what imports torch.

`StoreIterableDataset` streams in the store's own order and is right under any number of DataLoader workers and ranks,
`StoreLoader` gives the same batches from a thread, `StoreMapDataset` is for torch's own samplers. A ragged column is a
`RaggedTensor` in a batch; `PadCollate` pads rows where a DataLoader puts them together.
"""

from shardstore.torch.collating import PadCollate
from shardstore.torch.datasets import StoreIterableDataset, StoreMapDataset
from shardstore.torch.loader import StoreLoader
from shardstore.torch.ragged import RaggedTensor

__all__ = ["PadCollate", "RaggedTensor", "StoreIterableDataset", "StoreLoader", "StoreMapDataset"]
