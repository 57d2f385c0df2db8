"""Imports MosaicML Streaming, which imports torchvision, although nothing that is read here needs it.

PyPI's torchvision is made for torch with CUDA, and cannot be imported beside a torch without: it misses
operators of its own. These are then declared in its place; nothing calls them.
"""

from __future__ import annotations

import importlib
import re
import sys

import torch

MOST_MISSING = 20


def _import_torchvision() -> list[torch.library.Library]:
    """Import torchvision; return what had to be declared, which holds as long as it is kept."""
    declared: list[torch.library.Library] = []
    while True:
        try:
            importlib.import_module("torchvision")
            return declared
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or len(declared) == MOST_MISSING:
                raise
        declared.append(torch.library.Library("torchvision", "FRAGMENT"))
        declared[-1].define(f"{missing[1]}() -> ()")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]


_DECLARED = _import_torchvision()
importlib.import_module("streaming")
