"""Batches out of samples that come one by one: what MosaicML Streaming, LitData and WebDataset have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.suite.jobs import Job
from benchmarks.suite.peer import Batch


def collate(samples: Sequence[dict[str, Any]], job: Job) -> Batch:
    """Return samples as a batch, with less work than torch's own collate function has, which looks at each of them.

    Args:
        samples: `x`, an array, or the bytes of a document; `y`, a number, unless they are windows.
        job: the job.
    """
    import torch

    batch: Batch = {}
    if job.layout == "ragged":
        documents = [sample["x"] for sample in samples]
        batch["values"] = torch.frombuffer(bytearray().join(documents), dtype=torch.uint8)
        batch["offsets"] = torch.from_numpy(np.cumsum([0, *map(len, documents)]))
    else:
        rows = np.stack([sample["x"] for sample in samples])
        batch["x"] = torch.from_numpy(rows.reshape(-1, *job.shape))
    if job.layout != "windows":
        batch["y"] = torch.tensor([sample["y"] for sample in samples])
    return batch
