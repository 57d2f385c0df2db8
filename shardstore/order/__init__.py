"""The order of rows: pure functions of (seed, epoch, position), of constant size whatever the number of rows.

What measures orders is imported when it is first used: a training run only follows them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shardstore.order.mixing import BLOCK_ROWS, Ends, MixtureOrder, RepeatedWindows, source_seed
from shardstore.order.orders import FullShuffle, Order, Sections, Sequential, WindowShuffle
from shardstore.order.permutation import ORDER_VERSION, epoch_key, permute
from shardstore.order.plan import REMAINDERS, Cursor, Plan, Remainder, Replica, Steps, Turns, check_epoch, check_int
from shardstore.order.state import State, restore_state, save_state

if TYPE_CHECKING:
    from shardstore.order.measuring import quality
    from shardstore.order.verdict import Measure, Quality

__all__ = [
    "BLOCK_ROWS",
    "ORDER_VERSION",
    "REMAINDERS",
    "Cursor",
    "Ends",
    "FullShuffle",
    "Measure",
    "MixtureOrder",
    "Order",
    "Plan",
    "Quality",
    "Remainder",
    "RepeatedWindows",
    "Replica",
    "Sections",
    "Sequential",
    "State",
    "Steps",
    "Turns",
    "WindowShuffle",
    "check_epoch",
    "check_int",
    "epoch_key",
    "permute",
    "quality",
    "restore_state",
    "save_state",
    "source_seed",
]


def __getattr__(name: str) -> Any:
    if name not in ("Measure", "Quality", "quality"):
        raise AttributeError(f"module 'shardstore.order' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module("shardstore.order.measuring"), name)
    return value
