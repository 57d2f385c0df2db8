"""The peers, one module for each package. Nothing that may be missing is imported before a peer is used."""

from __future__ import annotations

from importlib import import_module

from benchmarks.suite.peer import Peer

MODULES = (
    "ours",
    "arrays",
    "memmaps",
    "torch_tensors",
    "ninja",
    "zarrs",
    "hdf5",
    "huggingface",
    "lance",
    "grain",
    "mosaicml",
    "litdata",
    "webdataset",
)
"""Modules of this package, each with a tuple `PEERS` of peers, in the order of the tables."""


def all_peers() -> dict[str, type[Peer]]:
    """Return the peers by name."""
    modules = [import_module(f"{__name__}.{module}") for module in MODULES]
    return {peer.name: peer for module in modules for peer in module.PEERS}
