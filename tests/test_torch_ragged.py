"""Ragged columns, strings and categories in PyTorch, against `Ragged` and the streams of NumPy batches."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import random_rows, tensor_bytes

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from torch.utils.data import DataLoader, RandomSampler  # noqa: E402

import shardstore  # noqa: E402
from shardstore import Blobs, Pad, Ragged, Strings  # noqa: E402
from shardstore.schema import dtype_named  # noqa: E402
from shardstore.torch import (  # noqa: E402
    PadCollate,
    RaggedTensor,
    StoreIterableDataset,
    StoreLoader,
    StoreMapDataset,
)

ROWS = 300
DTYPES = ("bool", "uint8", "uint16", "int64", "uint64", "float32", "complex128", "bfloat16", "float8_e8m0fnu")
lengths = st.lists(st.sampled_from([0, 0, 1, 2, 3, 7]), max_size=9)
dtypes = st.sampled_from(DTYPES)
shapes = st.sampled_from([(), (3,), (2, 0)])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of ragged, string, bytes and categorical columns, and of the rows' numbers."""
    path = tmp_path_factory.mktemp("torch") / "s"
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, ROWS)
    counts[-2:] = 5  # a last batch whose rows happen to be of one length
    types: Any = {"h": "ragged[bfloat16, 2]", "kind": shardstore.Categorical(["cat", "dog", "eel"])}
    codecs = {"h": "zstd", "text": "blosc:lz4"}
    with shardstore.Writer(path, types=types, codec=codecs, shard_bytes=512, chunk_bytes=64) as writer:
        writer.append(
            {
                "tokens": random_rows(counts, "uint16"),
                "h": Ragged.from_lengths(np.arange(2 * counts.sum()).reshape(-1, 2).astype("f4"), counts),
                "text": ["é" * int(count) for count in counts],
                "blob": [bytes(int(count)) for count in counts],
                "kind": rng.choice(["cat", "dog", "eel"], ROWS).tolist(),
                "n": np.arange(ROWS),
            }
        )
    return path


def same(found: Any, expected: Any) -> bool:
    """Whether what torch was given of a column, or of a row of one, is what NumPy was given, bit for bit."""
    if isinstance(expected, Strings | Blobs):
        return bool(found == expected.to_list())
    if isinstance(expected, Ragged):
        assert isinstance(found, RaggedTensor)
        return same(found.values, expected.values) and same(found.offsets, expected.offsets)
    if isinstance(expected, str | bytes):
        return bool(found == expected)
    expected = np.asarray(expected)
    assert isinstance(found, torch.Tensor)
    return (
        str(found.dtype) == f"torch.{expected.dtype}"
        and tuple(found.shape) == expected.shape
        and tensor_bytes(found) == expected.tobytes()
    )


def check_batches(found: Iterable[Any], expected: Iterable[Any]) -> int:
    """Hold batches of tensors against those of arrays, and return how many there were."""
    count = 0
    for batch, arrays in zip(found, expected, strict=True):
        assert list(batch) == list(arrays)
        for name in arrays:
            assert same(batch[name], arrays[name]), name
        count += 1
    return count


# RaggedTensor


def ragged(counts: list[int], dtype: str, shape: tuple[int, ...] = ()) -> Ragged:
    return Ragged.from_rows(random_rows(counts, dtype, shape), dtype_named(dtype), shape)


@given(lengths, dtypes, shapes, st.data())
def test_ragged_tensors_index_like_ragged_arrays(
    counts: list[int], dtype: str, shape: tuple[int, ...], data: st.DataObject
) -> None:
    rows = ragged(counts, dtype, shape)
    tensor = RaggedTensor.from_ragged("r", rows)
    assert len(tensor) == len(rows)
    assert tensor.lengths.tolist() == counts
    assert (str(tensor.dtype), tensor.item_shape, tensor.device.type) == (f"torch.{dtype}", shape, "cpu")
    assert same(tensor, rows)
    assert all(same(a, b) for a, b in zip(tensor, rows, strict=True))
    assert [np.shape(row) for row in tensor.to_list()] == [np.shape(row) for row in rows.to_list()]
    bound = st.integers(-12, 12) | st.none()
    index = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 2, -1, -3])))
    assert same(tensor[index], rows[index])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    assert same(tensor[mask], rows[mask])
    assert same(tensor[torch.from_numpy(mask)], rows[mask])
    if counts:
        picks = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=9))
        assert same(tensor[picks], rows[picks])
        assert same(tensor[torch.tensor(picks, dtype=torch.int64)], rows[picks])
        for i in picks:
            assert same(tensor[i], rows[i])
    with pytest.raises(IndexError, match="out of range"):
        tensor[len(rows)]


@given(lengths, dtypes, shapes, st.sampled_from(["right", "left"]), st.none() | st.integers(0, 9))
def test_padding_is_that_of_ragged_arrays(
    counts: list[int], dtype: str, shape: tuple[int, ...], side: Any, length: int | None
) -> None:
    rows = ragged(counts, dtype, shape)
    padded, kept = RaggedTensor.from_ragged("r", rows).to_padded(1, length, side)
    expected, own = rows.to_padded(1, length, side)
    assert same(padded, expected)
    assert same(kept, own)


@given(lengths, dtypes, shapes)
def test_nested_tensors_have_the_same_rows(counts: list[int], dtype: str, shape: tuple[int, ...]) -> None:
    rows = ragged(counts, dtype, shape)
    nested = RaggedTensor.from_ragged("r", rows).to_nested()
    assert nested.is_nested
    assert nested.layout == torch.jagged
    assert nested.size(0) == len(rows)
    assert all(same(a, b) for a, b in zip(nested.unbind(), rows, strict=True))
    assert nested.values().data_ptr() == rows.values.ctypes.data or not rows.values.size


def test_ragged_tensors_share_memory() -> None:
    rows = ragged([2, 0, 3], "bfloat16")
    tensor = RaggedTensor.from_ragged("r", rows)
    tensor[2].zero_()
    assert rows[2].tolist() == [0, 0, 0]
    tensor[1:][1][:] = 1
    assert rows[2].tolist() == [1, 1, 1]


def test_ragged_tensors_say_what_they_are_and_what_they_cannot_be() -> None:
    assert repr(RaggedTensor.from_ragged("r", ragged([2, 0], "uint16", (3,)))) == (
        "RaggedTensor(2 rows of uint16[3], 2 items, device='cpu')"
    )
    values = torch.zeros(3)
    for wrong in (torch.tensor([0, 3], dtype=torch.int32), torch.tensor([]), torch.tensor([[0, 3]])):
        with pytest.raises(ValueError, match="offsets must be int64 of one axis"):
            RaggedTensor(values, wrong)
    with pytest.raises(ValueError, match="single value"):
        RaggedTensor(values[0], torch.tensor([0, 3]))


def test_ragged_tensors_go_to_devices_and_through_pickle(path: Path) -> None:
    tensor = RaggedTensor.from_ragged("r", ragged([2, 0, 3], "float32"))
    moved = tensor.to("meta", non_blocking=True)
    assert (moved.values.device.type, moved.offsets.device.type, moved.device.type) == ("meta", "meta", "meta")
    received = pickle.loads(pickle.dumps(tensor))
    assert same(received, Ragged(tensor.values.numpy(), tensor.offsets.numpy()))
    batch = next(iter(StoreLoader(path, 8, device="meta")))
    assert batch["tokens"].device.type == batch["n"].device.type == "meta"
    assert isinstance(batch["text"][0], str)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_ragged_tensors_on_cuda(path: Path) -> None:
    expected = list(shardstore.open(path).batches(64))
    pinned = StoreLoader(path, 64, pin_memory=True)
    assert all(batch["tokens"].values.is_pinned() and batch["tokens"].offsets.is_pinned() for batch in pinned)
    loader = DataLoader(StoreIterableDataset(path, 64), batch_size=None, num_workers=2, pin_memory=True)
    assert all(batch["h"].values.is_pinned() for batch in loader)
    for batch, arrays in zip(StoreLoader(path, 64, device="cuda"), expected, strict=True):
        tokens = batch["tokens"]
        assert same(tokens.to("cpu"), arrays["tokens"])
        assert same(tokens[torch.tensor([3, 1], device="cuda")].to("cpu"), arrays["tokens"][[3, 1]])
        assert same(tokens.to_padded(1, 4, "left")[0].cpu(), arrays["tokens"].to_padded(1, 4, "left")[0])
        assert [len(row) for row in tokens.to_nested().unbind()] == arrays["tokens"].lengths.tolist()


# Datasets and the loader


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_store(path: Path, workers: int) -> None:
    stream = shardstore.open(path).batches(64, shuffle=True, seed=3, with_rows=True)
    dataset = StoreIterableDataset(path, 64, shuffle=True, seed=3, with_rows=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    assert check_batches(loader, stream) == 5
    assert check_batches(loader, stream) == 5
    if not workers:
        stream.set_epoch(0)
        assert check_batches(StoreLoader(path, 64, shuffle=True, seed=3, with_rows=True), stream) == 5


def test_batches_too_large_to_be_sent_inline(tmp_path: Path) -> None:
    rows = random_rows([300_000, 0, 500_000], "bfloat16")
    with shardstore.Writer(tmp_path / "s") as writer:
        writer.append({"r": rows})
    dataset = StoreIterableDataset(tmp_path / "s", 3)
    loader = DataLoader(dataset, batch_size=None, num_workers=1)
    assert check_batches(loader, shardstore.open(tmp_path / "s").batches(3)) == 1


def test_tuples_of_a_mixture_and_tensors_that_are_ones_own(path: Path) -> None:
    mixture = shardstore.mix({path: 1, shardstore.open(path).rows(slice(0, 10)): 1})
    for tokens, texts in StoreLoader(mixture.select("tokens", "text"), 16, as_tuple=True):
        tokens.values.zero_()
        assert len(tokens) == len(texts)
    assert check_batches(StoreLoader(mixture, 16), mixture.batches(16)) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_tensors_and_strings(path: Path, workers: int) -> None:
    store = shardstore.open(path)
    for dataset in (StoreIterableDataset(path), StoreMapDataset(path)):
        rows = list(DataLoader(dataset, batch_size=None, num_workers=workers))
        assert sorted(int(row["n"]) for row in rows) == list(range(ROWS))
        for row in rows[::7]:
            expected = store[int(row["n"])]
            assert all(same(row[name], expected[name]) for name in expected)


def test_rows_by_number(path: Path) -> None:
    store, dataset = shardstore.open(path), StoreMapDataset(path)
    assert all(same(dataset[-1][name], value) for name, value in store[-1].items())
    for row, number in zip(dataset.__getitems__([5, 5, 2]), (5, 5, 2), strict=True):
        assert all(same(row[name], value) for name, value in store[number].items())
    assert check_batches([dataset[[7, 1]], dataset[2:4]], [store.take([7, 1]), store[2:4]]) == 2
    tokens, text = StoreMapDataset(path, ["tokens", "text"], as_tuple=True)[3]
    assert same(tokens, store["tokens"][3])
    assert text == store["text"][3]


def test_a_row_can_be_saved_and_copied(path: Path) -> None:
    row = StoreMapDataset(path, ["tokens", "h"])[9]
    file = io.BytesIO()
    torch.save(row, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for name in row:
        assert torch.equal(loaded[name], row[name])
        assert torch.equal(copy.deepcopy(row[name]), row[name])
        assert type(row[name][:1]) is torch.Tensor


def reversed_tokens(columns: dict[str, Any]) -> dict[str, Any]:
    tokens = columns["tokens"]
    turned = tokens[::-1] if isinstance(tokens, Ragged) else tokens[::-1].astype(np.int64)
    return {"tokens": turned, "pair": [columns["text"], columns["h"]], "n": columns["n"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_what_transforms_return_is_converted(path: Path, workers: int) -> None:
    dataset = StoreIterableDataset(path, 64, transform=reversed_tokens)
    expected = list(shardstore.open(path).batches(64, transform=reversed_tokens))
    for loader in (
        DataLoader(dataset, batch_size=None, num_workers=workers),
        StoreLoader(path, 64, transform=reversed_tokens),
    ):
        for batch, arrays in zip(loader, expected, strict=True):
            assert same(batch["tokens"], arrays["tokens"])
            assert same(batch["pair"][0], arrays["pair"][0])
            assert same(batch["pair"][1], arrays["pair"][1])
    views = Ragged(np.broadcast_to(np.arange(4), (3, 4))[:, ::-1], np.array([0, 1, 3]))
    found = next(iter(StoreLoader(path, 64, transform=lambda batch: views)))
    assert same(found, Ragged(views.values.copy(), views.offsets))


def states_of(path: Path) -> Iterator[tuple[Any, Any, list[Any]]]:
    """Yield, by kind, a fresh dataset or loader, its state behind three batches, and those batches."""
    arguments: Any = {"shuffle": True, "seed": 4, "epochs": 2}
    loader = StoreLoader(path, 32, **arguments)
    batches = iter(loader)
    taken = [next(batches) for _ in range(3)]
    yield StoreLoader(path, 32, **arguments), loader.state_dict(), taken
    for workers in (0, 2):
        dataset = StoreIterableDataset(path, 32, **arguments)
        batches = iter(DataLoader(dataset, batch_size=None, num_workers=workers))
        taken = [next(batches) for _ in range(3)]
        state = dataset.state_dict(delivered=3)
        yield (
            DataLoader(StoreIterableDataset(path, 32, **arguments), batch_size=None, num_workers=workers),
            state,
            taken,
        )


def test_resuming_in_the_middle_of_an_epoch(path: Path) -> None:
    expected = list(shardstore.open(path).batches(32, shuffle=True, seed=4, epochs=2))
    for fresh, state, taken in states_of(path):
        (fresh.dataset if isinstance(fresh, DataLoader) else fresh).load_state_dict(state)
        assert check_batches([*taken, *fresh], expected) == 20


# Padding


@pytest.mark.parametrize(
    ("pad", "padded"),
    [
        (Pad(), ["tokens", "h"]),
        (Pad("tokens", fill=7, length=4, side="left"), ["tokens"]),
        (Pad(["h", "text"], lengths=False), ["h", "text"]),
    ],
    ids=["all", "one", "strings"],
)
def test_batches_are_padded(path: Path, pad: Pad, padded: list[str]) -> None:
    plain, batches = (list(shardstore.open(path).batches(64, transform=use)) for use in (None, pad))
    for batch, arrays in zip(batches, plain, strict=True):
        added = [f"{name}_length" for name in padded] if pad.lengths else []
        assert list(batch) == [*arrays, *added]
        for name in arrays.keys() - set(padded):
            rows = zip(batch[name], arrays[name], strict=True)
            assert all(np.array_equal(found, expected) for found, expected in rows)
        for name in padded:
            expected, own = arrays[name].to_padded(pad.fill, pad.length, pad.side)
            assert batch[name].tobytes() == expected.tobytes()
            assert batch[name].shape == expected.shape
            if pad.lengths:
                assert batch[f"{name}_length"].tolist() == own.tolist()
    dataset = StoreIterableDataset(path, 64, transform=pad)
    for loader in (DataLoader(dataset, batch_size=None, num_workers=2), StoreLoader(path, 64, transform=pad)):
        assert check_batches(loader, batches) == 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("collate", [PadCollate(), PadCollate("tokens", fill=7, length=4, side="left")])
def test_rows_are_padded_as_whole_batches_are(path: Path, workers: int, collate: PadCollate) -> None:
    columns = ["tokens", "h", "text", "n"] if collate.columns is None else ["tokens", "blob", "kind", "n"]
    pad = Pad(collate.columns, fill=collate.fill, length=collate.length, side=collate.side)
    view = shardstore.open(path).select(*columns)
    dataset = StoreMapDataset(view)
    order = list(RandomSampler(dataset, generator=torch.Generator().manual_seed(1)))
    shuffled = DataLoader(dataset, batch_size=8, collate_fn=collate, num_workers=workers, sampler=order)
    assert check_batches(shuffled, (pad(view.take(order[i : i + 8])) for i in range(0, ROWS, 8))) == 38
    if not workers:
        # With one row in a batch, or all of one length, the keys are the same.
        last = view.rows(slice(-20, None))
        for few in (StoreMapDataset(last), StoreIterableDataset(last)):
            loader = DataLoader(few, batch_size=1, collate_fn=collate)
            assert check_batches(loader, last.batches(1, transform=pad)) == 20


def test_collating_in_spawned_workers(path: Path) -> None:
    view = shardstore.open(path).select("tokens", "text").rows(slice(0, 20))
    loader = DataLoader(
        StoreMapDataset(view), 8, collate_fn=PadCollate(), num_workers=1, multiprocessing_context="spawn"
    )
    assert check_batches(loader, view.batches(8, transform=Pad())) == 3


def test_rows_are_still_ragged_behind_a_transform_and_a_worker(path: Path) -> None:
    for workers in (0, 1):
        dataset = StoreIterableDataset(path, transform=reversed_tokens)
        rows = list(DataLoader(dataset, batch_size=None, num_workers=workers))[-2:]
        batch = PadCollate()([{"tokens": row["tokens"]} for row in rows])
        assert batch["tokens_length"].tolist() == [5, 5]
        assert batch["tokens"].dtype == torch.int64


def test_rows_of_a_store_are_padded_where_they_differ(path: Path) -> None:
    store = shardstore.open(path).select("tokens", "kind", "text")
    loader = DataLoader(store, batch_size=50, collate_fn=PadCollate())
    assert check_batches(loader, store.batches(50, transform=Pad())) == 6
    equal = PadCollate()([store[-1], store[-2]])
    assert (list(equal), tuple(equal["tokens"].shape)) == (["tokens", "kind", "text"], (2, 5))
    assert PadCollate("tokens")([store[-1], store[-2]])["tokens_length"].tolist() == [5, 5]


def test_bytes_are_padded_with_zeros(tmp_path: Path) -> None:
    rows = Ragged.from_lengths(np.array([b"ab", b"c", b"def"]), [1, 2])
    padded, own = rows.to_padded()
    assert padded.tolist() == [[b"ab", b""], [b"c", b"def"]]
    tensor, kept = RaggedTensor.from_ragged("r", rows).to_padded()
    assert tensor_bytes(tensor) == padded.tobytes()
    assert kept.tolist() == own.tolist() == [1, 2]


def test_padding_that_makes_no_sense() -> None:
    for make in (Pad, PadCollate):
        with pytest.raises(ValueError, match="side is 'up'"):
            make(side="up")
        with pytest.raises(ValueError, match="length is -1"):
            make(length=-1)
    rows = Ragged.from_lengths(np.arange(3), [1, 2])
    pads: list[tuple[Pad, dict[str, Any], type[Exception], str]] = [
        (Pad(), {"x": rows, "x_length": 1}, ValueError, "go under 'x_length', but the batch has that"),
        (Pad("y"), {"x": rows}, KeyError, "no column 'y' to pad; the batch has x"),
        (Pad("y"), {"x": rows, "y": np.arange(2)}, ValueError, "column 'y' is not ragged.*ndarray"),
        (Pad(), {"x": np.arange(2), "s": Strings.from_strings("ab")}, ValueError, "no ragged column to pad among x, s"),
    ]
    for pad, batch, error, words in pads:
        with pytest.raises(error, match=words):
            pad(batch)
    items, others = {"x": torch.arange(3)}, {"x": torch.zeros(2, 2)}
    collates: list[tuple[PadCollate, list[Any], type[Exception], str]] = [
        (PadCollate(), [{**items, "x_length": 1}, {"x": torch.arange(2), "x_length": 1}], ValueError, "'x_length'"),
        (PadCollate("y"), [items], KeyError, "no column 'y' to pad; the batch has x"),
        (PadCollate(), [(torch.arange(3),)], TypeError, "rows as dicts, found a tuple"),
        (PadCollate("x"), [{"x": "text"}], ValueError, "column 'x' cannot be padded: its rows are no arrays.*'text'"),
        (PadCollate("x"), [{"x": 3}], ValueError, "column 'x' cannot be padded: its rows are no arrays"),
        (PadCollate(), [items, others], ValueError, r"column 'x' .* items of shape \(\) and \(2,\)"),
        (PadCollate(), [items, {"x": torch.zeros(2)}], ValueError, r"torch.int64 and torch.float32"),
    ]
    for collate, rows_given, error, words in collates:
        with pytest.raises(error, match=words):
            collate(rows_given)
