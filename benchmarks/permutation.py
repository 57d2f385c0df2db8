"""What the order of an epoch costs: nanoseconds an index, in windows of 16,384 positions.

python benchmarks/permutation.py [--json PATH]
"""

from __future__ import annotations

import common
import numpy as np

from shardstore.order import epoch_key, permute

WINDOW = 16_384
WINDOWS = 40
# A whole window lies below the smallest; 2**20 + 1 is the worst case of a network over a power of two.
COUNTS = {"600,000": 600_000, "2^20 + 1": 2**20 + 1, "2^32": 2**32, "10^12": 10**12}


def way(count: int) -> common.Way:
    """Return a way that permutes some windows of an epoch of `count` rows, and returns the seconds of one index."""
    key = epoch_key(0, 0)
    starts = np.random.default_rng(0).integers(0, count - WINDOW, WINDOWS)
    windows = [np.arange(start, start + WINDOW) for start in starts]

    def work() -> None:
        for window in windows:
            permute(count, key, window)

    run = common.timed(work)
    return lambda: run() / (WINDOW * WINDOWS)


def main() -> None:
    options = common.parser(__doc__, repeats=21).parse_args()
    seconds = common.alternate({name: way(count) for name, count in COUNTS.items()}, options.repeats)
    figures = [
        common.Figure(
            f"{name} rows", [1e9 * s for s in runs], "ns", 25 if COUNTS[name] <= 2**32 else 50, at_least=False
        )
        for name, runs in seconds.items()
    ]
    common.report(f"An index of an epoch's order, in windows of {WINDOW:,}", figures, options.json)


if __name__ == "__main__":
    main()
