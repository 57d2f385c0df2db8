"""Where a stream stands, as a small dict that any later stream over the same order can go on from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardstore.errors import StateError
from shardstore.order.orders import Order
from shardstore.order.permutation import ORDER_VERSION
from shardstore.order.plan import Cursor

State = dict[str, int | str]
_REMEDY = {
    "order_version": "use the release that saved it to finish its epoch, or begin a new one",
    "store": "open the store and the rows that it was saved with",
}


def save_state(store: str, order: Order, cursor: Cursor, pass_start: int) -> State:
    """Return a state: plain ints and strings, under 1 KB as JSON.

    Args:
        store: fingerprint of the rows that the order is of.
        order: the order.
        cursor: where in it the stream stands.
        pass_start: the epoch with which the stream's current pass began.
    """
    return {
        "order_version": ORDER_VERSION,
        "store": store,
        **order.describe(),
        "epoch": cursor.epoch,
        "delivered": cursor.delivered,
        "pass_start": pass_start,
    }


def restore_state(state: Mapping[str, Any], store: str, order: Order) -> tuple[Cursor, int]:
    """Return where a stream over `order` goes on, and the epoch with which its pass began.

    Raises:
        StateError: if fields are missing or wrong, or if the state is of another store, order version, seed or order.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"a state is a dict as state_dict() returns it, found a {type(state).__name__}")
    expected = save_state(store, order, Cursor(), 0)
    # The version and the store first: where they differ, so may what the state must hold.
    for name in ("order_version", "store", "shuffle"):
        _check_field(state, name, expected[name])
    for name, value in expected.items():
        if name not in ("epoch", "delivered", "pass_start"):
            _check_field(state, name, value)
    epoch, delivered, pass_start = (_number(state, name) for name in ("epoch", "delivered", "pass_start"))
    if delivered > order.count:
        raise StateError(f"the state has delivered={delivered:,}, but an epoch has {order.count:,} rows")
    if pass_start > epoch:
        raise StateError(f"the state has pass_start={pass_start:,}, behind its epoch={epoch:,}")
    return Cursor(epoch, delivered), pass_start


def _check_field(state: Mapping[str, Any], name: str, expected: int | str) -> None:
    found = state.get(name, _MISSING)
    if found is _MISSING:
        raise StateError(f"the state has no {name!r}; expected a dict as state_dict() returns it")
    if type(found) is not type(expected) or found != expected:
        remedy = _REMEDY.get(name, f"make the stream with what it was saved with, or begin a new one ({name})")
        raise StateError(f"the state was saved with {name}={found!r}, this stream has {name}={expected!r}: {remedy}")


def _number(state: Mapping[str, Any], name: str) -> int:
    found = state.get(name, _MISSING)
    if found is _MISSING:
        raise StateError(f"the state has no {name!r}; expected a dict as state_dict() returns it")
    if type(found) is not int or found < 0:
        raise StateError(f"the state has {name}={found!r}; expected a whole number from 0 on")
    return found


_MISSING = object()
