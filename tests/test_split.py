"""Splits against NumPy's own slicing; casts against exact arithmetic in whole numbers and fractions."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from dumps import NUMERIC
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shardstore.errors import SchemaError
from shardstore.schema import Field
from shardstore.sources.split import Cast, Cut, parse_split

Array = NDArray[Any]
# Where a number is not finite, its name stands for it.
Exact = tuple[Fraction | str, Fraction | str]

REALS = tuple(name for name in NUMERIC if not name.startswith("complex"))
PAIRS = [(s, t) for s in NUMERIC for t in NUMERIC if s in REALS or t not in REALS]


def part(value: float) -> Fraction | str:
    return Fraction(value) if np.isfinite(value) else str(float(value))


def exact(value: Any) -> Exact:
    """Return a NumPy scalar's real and imaginary part as exact numbers."""
    if isinstance(value, np.bool_ | np.integer):
        return Fraction(int(value)), Fraction(0)
    number = complex(value)
    return part(number.real), part(number.imag)


def float_has(value: Fraction | str, dtype: np.dtype[Any]) -> bool:
    """Whether a floating-point format has a number: at most `nmant + 1` bits, above the least exponent."""
    if isinstance(value, str):
        return True
    info: Any = np.finfo(dtype)
    units = value * 2 ** (info.nmant - int(info.minexp))  # in units of the smallest subnormal
    if units.denominator != 1 or abs(value) > Fraction(float(info.max)):
        return False
    whole = abs(int(units))
    return (whole // (whole & -whole) if whole else 0).bit_length() <= info.nmant + 1


def has(value: Exact, dtype: np.dtype[Any]) -> bool:
    """Whether a dtype has a number."""
    real, imaginary = value
    if dtype.kind == "c":
        half = np.dtype(f"f{dtype.itemsize // 2}")
        return float_has(real, half) and float_has(imaginary, half)
    if imaginary != 0:
        return False
    if dtype.kind == "f":
        return float_has(real, dtype)
    if isinstance(real, str) or real.denominator != 1:
        return False
    info = np.iinfo(np.uint8 if dtype.kind == "b" else dtype)
    return 0 <= real <= 1 if dtype.kind == "b" else int(info.min) <= real <= int(info.max)


@cache
def edges(name: str) -> Array:
    """Return the values of a dtype where conversions go wrong: around every bound, and every power of two."""
    dtype = np.dtype(name)
    if dtype.kind == "b":
        return np.array([False, True])
    powers = {sign * 2**k + step for k in range(65) for step in (-2, -1, 0, 1, 2) for sign in (-1, 1)}
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.array(sorted(p for p in powers | {65504, 65519, 65520} if info.min <= p <= info.max), dtype)
    half = np.dtype(f"f{dtype.itemsize // 2}") if dtype.kind == "c" else dtype
    reals = [float(p) for p in sorted(powers)] + [0.0, -0.0, 0.1, 0.5, -0.5, 3.5, 255.5, np.nan, np.inf, -np.inf]
    for other in ("f2", "f4", "f8"):
        limits: Any = np.finfo(other)
        reals += [sign * float(x) for x in (limits.max, limits.tiny, limits.smallest_subnormal) for sign in (-1, 1)]
    with np.errstate(over="ignore"):
        array = np.array(reals).astype(half)
        array = np.concatenate([array, np.nextafter(array, half.type(0)), np.nextafter(array, half.type(np.inf))])
    if dtype.kind != "c":
        return array
    array = array[::9]
    few = np.array([0, -0.0, 0.1, np.finfo(half).max, np.nan, np.inf], half)
    result = np.zeros((2, len(array), len(few), 2), half)
    result[0, ..., 0], result[0, ..., 1] = array[:, None], few
    result[1] = result[0, ..., ::-1]
    return result.view(dtype).reshape(-1)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_cast_keeps_exactly_the_values_that_the_target_has(source: str, target: str) -> None:
    block = edges(source)
    cast = Cast(np.dtype(target))
    expected = np.array([has(exact(value), cast.dtype) for value in block])
    found = np.array([cast.apply(block[i : i + 1])[1] is None for i in range(len(block))])
    assert block[found & ~expected].tolist() == []
    assert block[~found & expected].tolist() == []
    result, changed = cast.apply(block[expected].astype(np.dtype(source).newbyteorder(">")))
    assert changed is None
    assert result.dtype == cast.dtype
    assert [exact(v) for v in result] == [exact(v) for v in block[expected]]
    if np.dtype(source).kind == "f" and cast.dtype.kind == "f":
        kept = block[expected]
        assert np.array_equal(np.signbit(result), np.signbit(kept))


@given(st.data(), st.sampled_from(PAIRS))
def test_a_cast_tells_the_first_value_that_it_would_change(data: st.DataObject, pair: tuple[str, str]) -> None:
    source, cast = np.dtype(pair[0]), Cast(np.dtype(pair[1]))
    bits = st.binary(min_size=source.itemsize, max_size=source.itemsize)
    anything = bits.map(lambda raw: np.frombuffer(raw, "u1" if source.kind == "b" else source)[0])
    numbers = data.draw(st.lists(st.one_of(anything, st.sampled_from(edges(pair[0]))), max_size=12))
    width = data.draw(st.integers(1, 3))
    block = np.array(numbers).astype(source)[: len(numbers) // width * width].reshape(-1, width)
    fits = [has(exact(value), cast.dtype) for value in block.reshape(-1)]
    result, changed = cast.apply(block)
    assert changed == (None if all(fits) else fits.index(False))
    assert result.shape == block.shape


@pytest.mark.parametrize("target", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("source", REALS)
def test_rounding_goes_to_the_nearest_value_and_never_to_infinity(source: str, target: str) -> None:
    cast = Cast(np.dtype(target), rounds=True)
    half = np.dtype(f"f{cast.dtype.itemsize // 2}") if cast.dtype.kind == "c" else cast.dtype
    largest = Fraction(float(np.finfo(half).max))
    beyond = largest + (largest - Fraction(float(np.nextafter(np.finfo(half).max, half.type(0))))) / 2
    for value in edges(source)[::2]:
        result, changed = cast.apply(np.array([value]))
        number = exact(value)[0]
        if isinstance(number, str):
            assert changed is None
            assert exact(result[0])[0] == number
            continue
        assert (changed is None) == (abs(number) < beyond), value
        if changed is None:
            nearest = half.type(result[0].real)
            with np.errstate(over="ignore"):
                others = [np.nextafter(nearest, half.type(side)) for side in (-np.inf, np.inf)]
            error = abs(Fraction(float(nearest)) - number)
            assert all(error <= abs(Fraction(float(other)) - number) for other in others if np.isfinite(other)), value


@pytest.mark.parametrize("target", [name for name in NUMERIC if np.dtype(name).kind in "biu"])
@pytest.mark.parametrize("source", ["float16", "float32", "float64"])
def test_whole_numbers_are_never_rounded_to(source: str, target: str) -> None:
    for value in edges(source)[::5]:
        block = np.array([value])
        kept = has(exact(value), np.dtype(target))
        assert Cast(np.dtype(target), rounds=True).apply(block)[1] == (None if kept else 0)


@pytest.mark.parametrize(
    ("value", "source", "target"),
    [
        *[(3.5, "f8", "int64"), (300, "i8", "uint8"), (np.nan, "f4", "int64"), (-1, "i4", "uint64")],
        *[(0.1, "f8", "float32"), (-np.inf, "f2", "int64"), (-(2**63), "i8", "float16")],
        *[(2**63, "u8", "int64"), (2**53 + 1, "i8", "float64"), (2, "u1", "bool")],
    ],
)
def test_casts_that_lose(value: float, source: str, target: str) -> None:
    assert Cast(np.dtype(target)).apply(np.array([0, value, 0], source))[1] == 1


# Cutting


bounds = st.none() | st.integers(-8, 8) | st.sampled_from([-(10**30), 10**30])
steps = st.none() | st.integers(-4, 4).filter(bool)
parts = st.one_of(st.integers(-8, 8), st.builds(slice, bounds, bounds, steps))


@given(parts, st.lists(st.integers(0, 5), min_size=1, max_size=3))
@example(slice(None, -1), [1])
@example(0, [0])
def test_a_cut_takes_what_numpy_takes_or_is_refused(where: int | slice, row_shape: list[int]) -> None:
    block = np.arange(2 * np.prod(row_shape, dtype=int)).reshape(2, *row_shape)
    cut, width = Cut("x", where), row_shape[-1]
    there = -width <= where < width if isinstance(where, int) else len(range(*where.indices(width))) > 0
    if not there:
        with pytest.raises(SchemaError, match=r"dump.npy: column 'x' .* of an axis of "):
            cut.result(block.dtype, tuple(row_shape), "dump.npy")
        return
    expected = block[..., where]
    assert cut.result(block.dtype, tuple(row_shape), "dump.npy") == (block.dtype, expected.shape[1:])
    assert np.array_equal(cut.apply(block), expected)


def test_a_row_of_one_value_has_no_axis_to_cut() -> None:
    with pytest.raises(SchemaError, match=r"dump.npy: a split cuts the last axis"):
        Cut("x", -1).result(np.dtype("f4"), (), "dump.npy")


@pytest.mark.parametrize(("source", "target"), [("M8[ns]", "int64"), ("S4", "int64"), ("f8", "S8"), ("c8", "float32")])
def test_only_numbers_are_cast_and_never_the_imaginary_part_away(source: str, target: str) -> None:
    with pytest.raises(SchemaError, match=r"dump.npy: .*cast"):
        Cut("x", -1, Cast(np.dtype(target))).result(np.dtype(source), (3,), "dump.npy")


# Writing a split


names = st.text("abcXYZ019_- ", min_size=1, max_size=6).map(str.strip).filter(bool)
dtypes = st.sampled_from(NUMERIC).map(np.dtype)
casts = st.one_of(
    st.none(),
    st.builds(Cast, dtypes),
    st.builds(Cast, dtypes.filter(lambda dtype: dtype.kind in "fc"), st.booleans()),
)
cuts = st.builds(Cut, names, parts, casts)
blanks = st.sampled_from(["", " ", "  "])


@given(st.data(), st.lists(cuts, min_size=1, max_size=4))
def test_what_is_written_is_understood(data: st.DataObject, expected: list[Cut]) -> None:
    def written(cut: Cut) -> str:
        space = data.draw(blanks)
        if isinstance(cut.part, slice):
            pieces = [cut.part.start, cut.part.stop, *([] if cut.part.step is None else [cut.part.step])]
            where = f"{space}:{space}".join("" if piece is None else str(piece) for piece in pieces)
        else:
            where = str(cut.part)
        text = f"{space}{cut.name}{space}={space}{where}{space}"
        return text if cut.cast is None else f"{text}@{space}{'~' * cut.cast.rounds}{space}{cut.cast.dtype}{space}"

    assert parse_split(",".join(written(cut) for cut in expected)) == expected


def test_only_floats_are_rounded_to() -> None:
    with pytest.raises(SchemaError, match="int64 takes whole values only"):
        parse_split("x=:@~int64")


def columns(text: str) -> list[Field]:
    """Return the columns that a split makes of rows of five numbers."""
    found = [(cut.name, *cut.result(np.dtype("f8"), (5,), "dump.npy")) for cut in parse_split(text)]
    return [Field.of(*column) for column in found]


@pytest.mark.parametrize(
    "text",
    [
        *["", ",", "x", "x=", "=", "=:", "x=:,", ",x=:", "x=:::1", "x=::0", "x=a", "x=1.5", "x=--1", "x=1 2", "x:1"],
        *["x=:-1;y=1", "x==1", "x=y=1", "x=1@", "x=1@@int8", "x=1@~", "x=1@nope", "x=1@int8@int8", "x=1@0f4"],
        *["x=1@99999999999f4", "x=1@U99999999999", "x=1@99999999999999999999999S", "x=1@S0x", "x=1@O", "x=1@M8"],
        *["x=1@float128", "x=1@f4,f4", "a/b=1", "a.b=1", "..=1", "rows=1", "mask=1", "é=1"],
    ],
)
def test_a_split_that_makes_no_sense_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(SchemaError, match=r"\A[^\n]+\Z"):
        columns(text)


@given(st.text("xy=:-1230@~,intfloaSUM[]8 ", max_size=14))
@example("x=1@a5")
@example("x=1@3f4")
@example("x=1@99999999999f4")
@example("x=1@S99999999999")
def test_any_text_is_a_split_or_a_schema_error(text: str) -> None:
    with suppress(SchemaError):
        assert len(columns(text)) == text.count(",") + 1
