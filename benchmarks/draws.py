"""What splits, weighted draws and mixtures cost: a row of a split, an alias table, a position of a mixture.

python benchmarks/draws.py [--json PATH]
"""

from __future__ import annotations

import common
import numpy as np

from shardstore.order import FullShuffle, MixtureOrder
from shardstore.sampling.draws import AliasTable
from shardstore.sampling.parts import split_evenly
from shardstore.selection import Selection

ROWS = 10_000_000
RUN = 65_536
RUNS = 20


def main() -> None:
    options = common.parser(__doc__, repeats=9).parse_args()
    train, _ = split_evenly(Selection.all(ROWS), [ROWS * 9 // 10, ROWS // 10], 0)
    weights = np.random.default_rng(0).random(ROWS)
    orders = {
        "full shuffle": FullShuffle(ROWS, 0),
        "mixture of 2": MixtureOrder((FullShuffle(ROWS, 1),) * 2, (49_152, 16_384), "first", 0),
        "mixture of 5": MixtureOrder((FullShuffle(ROWS, 1),) * 5, (13_107,) * 5, "first", 0),
    }
    runs = [np.arange(i * RUN, (i + 1) * RUN) for i in range(RUNS)]
    ways = {
        "split": common.timed(lambda: [None for run in runs if train.resolve(run) is None]),
        "alias table": common.timed(lambda: AliasTable.of(weights)),
        **{
            name: common.timed(lambda order=order: [None for run in runs if order.rows(0, run) is None])
            for name, order in orders.items()
        },
    }
    seconds = common.alternate(ways, options.repeats)
    figures = [
        common.Figure(f"{name}, a row", [1e9 * s / (RUN * RUNS) for s in taken], "ns")
        for name, taken in seconds.items()
        if name != "alias table"
    ]
    figures.append(common.Figure(f"alias table of {ROWS:,} weights", seconds["alias table"], "s"))
    common.report("Draws, splits and mixtures", figures, options.json, seconds=seconds)


if __name__ == "__main__":
    main()
