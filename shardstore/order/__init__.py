"""The order of rows: pure functions of (seed, epoch, position), of constant size whatever the number of rows."""

from shardstore.order.mixing import BLOCK_ROWS, Ends, MixtureOrder, RepeatedWindows, source_seed
from shardstore.order.orders import FullShuffle, Order, Sections, Sequential, WindowShuffle
from shardstore.order.permutation import ORDER_VERSION, epoch_key, permute
from shardstore.order.plan import REMAINDERS, Cursor, Plan, Remainder, Replica, Steps, Turns
from shardstore.order.state import State, restore_state, save_state

__all__ = [
    "BLOCK_ROWS",
    "ORDER_VERSION",
    "REMAINDERS",
    "Cursor",
    "Ends",
    "FullShuffle",
    "MixtureOrder",
    "Order",
    "Plan",
    "Remainder",
    "RepeatedWindows",
    "Replica",
    "Sections",
    "Sequential",
    "State",
    "Steps",
    "Turns",
    "WindowShuffle",
    "epoch_key",
    "permute",
    "restore_state",
    "save_state",
    "source_seed",
]
