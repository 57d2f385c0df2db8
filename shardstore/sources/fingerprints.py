"""What tells a source file from one that was changed, without reading all of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLES = 16
_SAMPLE_NBYTES = 4096


def file_fingerprint(path: Path) -> str:
    """Return 32 hex digits of a file's size, time of change, and samples of its content from beginning to end."""
    status = path.stat()
    digest = hashlib.blake2b(f"{status.st_size} {status.st_mtime_ns}".encode(), digest_size=16)
    last = max(0, status.st_size - _SAMPLE_NBYTES)
    with path.open("rb") as file:
        for sample in range(_SAMPLES):
            file.seek(last * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_NBYTES))
    return digest.hexdigest()
