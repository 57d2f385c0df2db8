"""Settings for all tests."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Tests run beside each other, one on each core: torch's loops, also those of child processes, take no more than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What takes seconds to import, and most children of a fork server need: it imports it once.
multiprocessing.set_forkserver_preload(
    ["pytest", "shardstore.cli", "shardstore.torch", "torchdata.stateful_dataloader", "accelerate"]
)

# A busy machine is no failure: no example has a time limit.
_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("default", max_examples=50, **_common)
settings.register_profile("thorough", max_examples=1000, **_common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def threads_of_ours() -> list[threading.Thread]:
    """Return the living threads that shardstore has begun; those that decode may be those of a fixture's store."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("shardstore-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Fail a test that leaves a thread behind."""
    before = threads_of_ours()
    yield

    def left() -> list[str]:
        return [
            thread.name
            for thread in threads_of_ours()
            if thread not in before and not thread.name.startswith("shardstore-decode")
        ]

    end = time.monotonic() + 60  # a machine may be busy
    while left() and time.monotonic() < end:
        gc.collect()  # again and again: it does nothing while another thread collects
        time.sleep(0.01)
    assert not left(), "threads are left behind"
