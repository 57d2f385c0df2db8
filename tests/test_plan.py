"""Plans: steps that are equal on every rank and together give an epoch's order, whatever the shape."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardstore.order import (
    Cursor,
    FullShuffle,
    Order,
    Plan,
    Remainder,
    Replica,
    Sections,
    Sequential,
    Turns,
    WindowShuffle,
)


@st.composite
def orders(draw: st.DrawFn, max_count: int = 300) -> Order:
    count = draw(st.sampled_from([0, 1, 2]) | st.integers(0, max_count))
    kind = draw(st.sampled_from(["sequential", "full", "window"]))
    if kind == "sequential":
        return Sequential(count)
    if kind == "full":
        return FullShuffle(count, draw(st.integers(0, 5)))
    lanes = draw(st.sampled_from([1, 2, 4, 8]))
    return WindowShuffle(Sections(count, 16), draw(st.integers(1, 8)), draw(st.integers(0, 5)), lanes)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, int]:
    """Draw a plan, and a world size that fits it."""
    world_size = draw(st.integers(1, 5) | st.sampled_from([1, 2, 4, 8]))
    remainders: list[Remainder] = ["drop", "pad"] if world_size > 1 else ["keep", "drop", "pad"]
    order = draw(orders())
    # Exactly what divides the rows, one less and one more, among others.
    exact = max(1, order.count // world_size)
    batch_size = draw(st.integers(1, 40) | st.sampled_from([1, exact, exact + 1, max(1, exact - 1)]))
    remainder = draw(st.sampled_from(remainders))
    if remainder == "drop" and order.count < batch_size * world_size:
        remainder = "pad"
    return Plan(order, batch_size, remainder), world_size


@given(plans(), st.integers(0, 3))
def test_the_ranks_steps_are_the_epochs_order(drawn: tuple[Plan, int], epoch: int) -> None:
    plan, world_size = drawn
    order = plan.rows(epoch, 0, plan.order.count)
    assert sorted(order.tolist()) == list(range(plan.order.count))
    size = plan.batch_size * world_size
    steps = plan.steps(world_size)
    whole, rest = divmod(plan.order.count, size)
    assert steps == whole + (rest > 0 and plan.remainder != "drop")
    for step in range(steps):
        expected = order[step * size : (step + 1) * size].tolist()
        got = []
        for rank in range(world_size):
            rows, mask = plan.batch(epoch, step, rank, world_size), plan.mask(step, rank, world_size)
            if plan.remainder != "keep" or step < whole:
                assert len(rows) == plan.batch_size, "every rank has as many rows"
            assert len(mask) == len(rows)
            assert rows.dtype == np.int64
            assert not len(rows) or 0 <= rows.min() <= rows.max() < plan.order.count
            if plan.order.lanes % world_size == 0:
                # The rank's own lanes.
                positions = np.arange(step * size, min((step + 1) * size, plan.order.count))
                assert rows[mask].tolist() == order[positions[positions % world_size == rank]].tolist()
            else:
                start = step * size + rank * plan.batch_size
                assert rows[mask].tolist() == order[start : start + plan.batch_size].tolist()
            got += rows[mask].tolist()
        assert sorted(got) == sorted(expected)


@given(plans(), st.data())
def test_what_is_left_can_be_cut_anew(drawn: tuple[Plan, int], data: st.DataObject) -> None:
    """Steps of changing shapes, one after the other, give the order once."""
    plan, _ = drawn
    order = plan.rows(0, 0, plan.order.count)
    cursor, got = Cursor(), []
    while cursor.delivered < plan.order.count:
        world_size = data.draw(st.sampled_from([1, 2, 3, 4]))
        shape = Plan(plan.order, data.draw(st.integers(1, 60)), "pad")
        begin = cursor.delivered
        for rank in range(world_size):
            steps = shape.positions(np.array([0]), Replica(rank, world_size), begin)
            assert steps.mask is not None
            got += order[steps.positions[steps.mask]].tolist()
        cursor = shape.advance(cursor, 1, world_size)
        assert cursor.delivered == min(begin + shape.batch_size * world_size, plan.order.count)
        assert sorted(got) == sorted(order[: cursor.delivered].tolist())
    assert plan.steps(1, cursor.delivered) == 0


@given(plans(), st.data())
def test_several_steps_at_once_are_the_steps(drawn: tuple[Plan, int], data: st.DataObject) -> None:
    plan, world_size = drawn
    delivered = data.draw(st.integers(0, plan.order.count))
    replica = Replica(data.draw(st.integers(0, world_size - 1)), world_size)
    count = plan.steps(world_size, delivered)
    chosen = sorted(data.draw(st.sets(st.integers(0, max(0, count - 1)), max_size=count)))
    together = plan.positions(np.array(chosen, np.int64), replica, delivered)
    assert len(together.bounds) == len(chosen) + 1
    assert together.bounds[-1] == len(together.positions)
    for k, step in enumerate(chosen):
        alone = plan.positions(np.array([step]), replica, delivered)
        part = slice(together.bounds[k], together.bounds[k + 1])
        assert together.positions[part].tolist() == alone.positions.tolist()
        if alone.mask is not None and together.mask is not None:
            assert together.mask[part].tolist() == alone.mask.tolist()


@given(st.integers(0, 100), st.integers(1, 5), st.integers(1, 7))
def test_turns_deal_every_step_once(steps: int, workers: int, unit: int) -> None:
    dealt = []
    for worker in range(workers):
        turns = Turns(worker, workers, unit)
        own = turns.steps(0, turns.count(steps)).tolist()
        assert own == [step for step in range(steps) if step // unit % workers == worker]
        dealt += own
    assert sorted(dealt) == list(range(steps))


@pytest.mark.parametrize("rows", [10**3, 10**12])
@pytest.mark.parametrize("kind", ["full", "window"])
def test_a_plan_is_small_whatever_the_rows(rows: int, kind: str) -> None:
    order = FullShuffle(rows, 1) if kind == "full" else WindowShuffle(Sections(rows, 1024), 64, 1, 8)
    plan = Plan(order, 256, "drop")
    data = pickle.dumps(plan)
    assert len(data) < 500
    assert pickle.loads(data) == plan
    assert hash(plan) == hash(pickle.loads(data))
    last = plan.batch(3, len(plan) - 1)
    assert len(set(last.tolist())) == 256
    with pytest.raises(AttributeError):
        plan.batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0; expected at least 1"),
        ({"batch_size": -3}, ValueError, "batch_size is -3"),
        ({"batch_size": 1.5}, TypeError, "batch_size is a float"),
        (
            {"batch_size": 4, "remainder": "some"},
            ValueError,
            "remainder is 'some'; expected one of 'keep', 'drop', 'pad'",
        ),
    ],
)
def test_senseless_plans(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Plan(Sequential(10), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda plan: plan.batch(0, 5), IndexError, "step 5 is out of range for 5 steps"),
        (lambda plan: plan.batch(0, -1), IndexError, "step -1 is out of range"),
        (lambda plan: plan.batch(0, 0, 2, 2), ValueError, "rank is 2; with a world size of 2 it is 0 to 1"),
        (lambda plan: plan.batch(0, 0, -1, 2), ValueError, "rank is -1"),
        (lambda plan: plan.batch(0, 0, 0, 0), ValueError, "world_size is 0"),
        (lambda plan: plan.batch(0, 0, 0.0, 2), TypeError, "rank is a float"),
        (lambda plan: plan.rows(0, 0, 21), IndexError, "positions 0 to 21 are out of range for 20 rows"),
        (lambda plan: plan.rows(0, 5, 4), IndexError, "positions 5 to 4"),
        (lambda plan: plan.rows(-1, 0, 4), ValueError, "epoch is -1"),
        (lambda plan: plan.rows(0.5, 0, 4), TypeError, "epoch is a float"),
        (lambda plan: plan.batch("x", 0), TypeError, "epoch is a str"),
    ],
)
def test_senseless_questions(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Plan(Sequential(20), 4, "drop"))  # type: ignore[operator]


def test_keep_is_for_one_rank() -> None:
    plan = Plan(Sequential(20), 3)
    assert [len(plan.batch(0, step)) for step in range(len(plan))] == [3] * 6 + [2]
    with pytest.raises(
        ValueError, match=r"remainder='keep' would give 2 ranks batches of different sizes: choose 'drop'"
    ):
        plan.batch(0, 0, 0, 2)


def test_dropping_everything_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"leaves nothing of 20 rows in batches of 8 × 4 ranks: choose a smaller"):
        Plan(Sequential(20), 8, "drop").check(4)
    Plan(Sequential(0), 8, "drop").check(4)  # nothing to lose
    assert Plan(Sequential(0), 8, "pad").steps(4) == 0


@given(st.integers(1, 200), st.integers(1, 20), st.sampled_from([1, 2, 4]), st.sampled_from([1, 4, 8]))
def test_copies_are_of_the_same_lane_and_near_the_end(count: int, batch_size: int, world_size: int, lanes: int) -> None:
    """What they need was just read: no other chunk is decoded for them."""
    plan = Plan(WindowShuffle(Sections(count, 16), 2, 0, lanes), batch_size, "pad")
    for rank in range(world_size):
        steps = plan.positions(np.array([plan.steps(world_size) - 1]), Replica(rank, world_size))
        assert steps.mask is not None
        copies, size = steps.positions[~steps.mask], batch_size * world_size
        assert ((copies >= 0) & (copies < count)).all()
        if lanes % world_size == 0 and count >= 2 * size + lanes:
            assert (copies % world_size == rank).all()
            assert (copies >= count - size - lanes).all()


def test_more_rows_asked_for_than_there_are() -> None:
    assert Plan(Sequential(3), 10**9).batch(0, 0).tolist() == [0, 1, 2]
    plan = Plan(Sequential(3), 8, "pad")
    assert plan.mask(0).tolist() == [True] * 3 + [False] * 5
    assert set(plan.batch(0, 0).tolist()) == {0, 1, 2}
