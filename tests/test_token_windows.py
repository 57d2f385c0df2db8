"""Windows over ragged columns against lists of items: cut, told apart, streamed, split and resumed."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dumps import scratch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from stores import random_array

import shardstore
from shardstore.ragged import join_runs

CODECS = ("raw", "zstd", "blosc:lz4")
Array = NDArray[Any]
# Shards have 16 items in chunks of 4, unless a test says otherwise.
counts = st.lists(st.sampled_from([0, 0, 1, 2, 3, 4, 5, 15, 16, 17, 40]), max_size=20)


@dataclass
class Model:
    """What windows over some documents must be."""

    items: list[list[Any]]
    documents: list[list[int]]
    positions: list[list[int]]


def model_of(rows: list[Array], length: int, stride: int, across_rows: bool) -> Model:
    marked = [[(item, number, place) for place, item in enumerate(row)] for number, row in enumerate(rows)]
    texts = [[item for row in marked for item in row]] if across_rows else marked
    windows = [text[start : start + length] for text in texts for start in range(0, len(text) - length + 1, stride)]
    parts = [[[entry[part] for entry in window] for window in windows] for part in range(3)]
    return Model([[item.tobytes() for item in window] for window in parts[0]], parts[1], parts[2])


def documents_of(lengths: list[int], dtype: str = "uint16", item_shape: tuple[int, ...] = ()) -> list[Array]:
    values = random_array(dtype, (sum(lengths), *item_shape))
    return np.split(values, np.cumsum(lengths)[:-1]) if lengths else []


def write(path: Path, rows: list[Array], codec: str, dtype: str = "uint16", shape: tuple[int, ...] = ()) -> Path:
    item_nbytes = max(1, np.dtype(dtype).itemsize * int(np.prod(shape, dtype=int)))
    options: Any = {"shard_bytes": 16 * item_nbytes, "chunk_bytes": 4 * item_nbytes, "codec": {"tokens": codec}}
    kind = f"ragged[{dtype}{''.join(f', {n}' for n in shape)}]"
    with shardstore.Writer(path, types={"tokens": kind, "n": "int64"}, **options) as writer:
        writer.append({"tokens": rows, "n": np.arange(len(rows))})
    return path


def chosen(data: st.DataObject, store: shardstore.Store) -> tuple[Any, list[int]]:
    """Return a table of some documents, and their numbers in order."""
    how = data.draw(st.sampled_from(["store", "slice", "reversed", "list", "split"]))
    if how == "store":
        table: Any = store
    elif how == "slice":
        table = store.rows(slice(*sorted(data.draw(st.tuples(*[st.integers(0, len(store))] * 2)))))
    elif how == "reversed":
        table = store.rows(slice(None, None, data.draw(st.sampled_from([-1, -2, 3]))))
    elif how == "list":
        numbers = st.lists(st.integers(0, len(store) - 1), max_size=12) if len(store) else st.just([])
        table = store.rows(data.draw(numbers))
    else:
        table = store.split(train=0.7, val=0.3, seed=data.draw(st.integers(0, 3)))["train"]
    return table, table["n"][:].tolist()


@given(
    counts,
    st.sampled_from(CODECS),
    st.sampled_from([("uint16", ()), ("uint8", (3,)), ("datetime64[s]", (2, 1)), ("float32", (2, 0))]),
    st.sampled_from([1, 2, 3, 4, 5, 8, 16, 33, 200]),
    st.none() | st.sampled_from([1, 2, 3, 4, 7, 8, 16, 50]),
    st.booleans(),
    st.data(),
)
def test_windows_are_those_of_the_lists(
    lengths: list[int],
    codec: str,
    item: tuple[str, tuple[int, ...]],
    length: int,
    stride: int | None,
    across_rows: bool,
    data: st.DataObject,
) -> None:
    dtype, shape = item
    rows = documents_of(lengths, dtype, shape)
    with scratch() as folder:
        store = shardstore.open(write(folder / "s", rows, codec, dtype, shape))
        table, numbers = chosen(data, store)
        view = table.windows("tokens", length, stride, across_rows, documents=True, positions=True)
        model = model_of([rows[n] for n in numbers], length, length if stride is None else stride, across_rows)
        assert view.columns == ("tokens", "document", "position")
        assert len(view) == len(model.items)
        assert view["tokens"].shape == (len(view), length, *shape)
        assert view["tokens"].dtype == np.dtype(dtype)
        assert view.row_nbytes == length * (np.dtype(dtype).itemsize * int(np.prod(shape, dtype=int)) + 16)

        def check(found: dict[str, Array], which: list[int]) -> None:
            assert [array.dtype for array in found.values()] == [np.dtype(dtype), np.int64, np.int64]
            assert found["tokens"].shape == (len(which), length, *shape)
            assert [[item.tobytes() for item in window] for window in found["tokens"]] == [
                model.items[i] for i in which
            ]
            assert found["document"].tolist() == [model.documents[i] for i in which]
            assert found["position"].tolist() == [model.positions[i] for i in which]

        every = list(range(len(view)))
        check(view[:], every)
        a, b = sorted(data.draw(st.tuples(*[st.integers(0, len(view))] * 2)))
        check(view[a:b], every[a:b])
        check(view[::-2], every[::-2])
        picked = data.draw(st.lists(st.sampled_from(every), max_size=9)) if every else []
        check(view.take(picked), picked)
        check(pickle.loads(pickle.dumps(view)).take(picked), picked)
        for i in picked[:2]:
            check({name: np.asarray(value)[None] for name, value in view[i].items()}, [i])


@given(
    counts,
    st.sampled_from(CODECS),
    st.sampled_from([2, 4, 5, 8]),
    st.sampled_from([1, 3, 4, 8]),
    st.booleans(),
    st.sampled_from([False, "full", "window"]),
    st.data(),
)
def test_streams_give_every_window_once_on_all_ranks_and_go_on_where_they_were(
    lengths: list[int], codec: str, length: int, stride: int, across_rows: bool, shuffle: Any, data: st.DataObject
) -> None:
    rows = documents_of(lengths)
    with scratch() as folder:
        store = shardstore.open(write(folder / "s", rows, codec))
        table, numbers = chosen(data, store)
        view = table.windows("tokens", length, stride, across_rows, documents=True, positions=True)
        model = model_of([rows[n] for n in numbers], length, stride, across_rows)
        world_size = data.draw(st.sampled_from([1, 2]))
        options: Any = {
            "shuffle": shuffle,
            "seed": data.draw(st.integers(0, 9)),
            "window_bytes": data.draw(st.sampled_from([1, 40, 10_000])),
            "with_rows": True,
        }
        found = []
        for rank in range(world_size):
            remainder: Any = "keep" if world_size == 1 else "pad"
            ranks = {"rank": rank, "world_size": world_size, "remainder": remainder}
            for batch in view.batches(3, **options, **ranks):
                for i, number in enumerate(batch["rows"].tolist()):
                    assert [item.tobytes() for item in batch["tokens"][i]] == model.items[number]
                    assert batch["document"][i].tolist() == model.documents[number]
                    assert batch["position"][i].tolist() == model.positions[number]
                    if world_size == 1 or batch["mask"][i]:
                        found.append(number)
        assert sorted(found) == list(range(len(model.items)))
        if not shuffle and world_size == 1:
            assert found == sorted(found)

        stream = view.batches(3, **options)
        steps = data.draw(st.integers(0, len(stream)))
        delivered = [batch["rows"].tolist() for _, batch in zip(range(steps), stream, strict=False)]
        again = pickle.loads(pickle.dumps(view)).batches(2, **options)
        again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        rest = [batch["rows"].tolist() for batch in again] if steps < len(stream) else []
        assert sorted(sum(delivered + rest, [])) == list(range(len(model.items)))


def test_states_of_other_windows_are_refused(tmp_path: Path) -> None:
    store = shardstore.open(write(tmp_path / "s", documents_of([40, 3, 40]), "raw"))
    state = store.windows("tokens", 4).batches(2, shuffle=True).state_dict()
    store.windows("tokens", 4, documents=True).batches(2, shuffle=True).load_state_dict(state)
    others = [
        store.windows("tokens", 4, 3),
        store.windows("tokens", 3, 4),
        store.windows("tokens", 4, across_rows=False),
        store.rows(slice(0, 2)).windows("tokens", 4),
        store.windows("tokens", 4).rows(slice(1, None)),
        store,
    ]
    for other in others:
        with pytest.raises(shardstore.StateError, match="was saved with store="):
            other.batches(2, shuffle=True).load_state_dict(state)


@pytest.mark.parametrize("across_rows", [True, False])
def test_windows_are_split_sampled_and_mixed(tmp_path: Path, across_rows: bool) -> None:
    rows = documents_of([40, 0, 7, 40, 16, 1] * 5)
    store = shardstore.open(write(tmp_path / "s", rows, "raw"))
    view = store.windows("tokens", 4, across_rows=across_rows)
    expected = view["tokens"][:]
    parts = view.split(train=0.8, val=0.2, seed=1)
    found = np.concatenate([part["tokens"][:] for part in parts.values()])
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
    sample = view.sample(10, seed=2)
    rows_of = {tuple(window): i for i, window in enumerate(expected.tolist())}
    assert len({rows_of[tuple(window)] for window in sample["tokens"][:].tolist()}) == 10
    # Documents are split first, and windows are cut of each part.
    documents = store.split(train=0.8, val=0.2, seed=1)
    ids = [set(np.unique(part["n"][:]).tolist()) for part in documents.values()]
    assert not ids[0] & ids[1]
    for part in documents.values():
        windows = part.windows("tokens", 4, across_rows=across_rows, documents=True)
        for batch in windows.batches(5, shuffle=True):
            numbers = part["n"][:][batch["document"]]
            for window, own in zip(batch["tokens"], numbers, strict=True):
                assert all(item in rows[n] for item, n in zip(window, own.tolist(), strict=True))
    mixture = shardstore.mix({documents["train"].windows("tokens", 4): 3, documents["val"].windows("tokens", 4): 1})
    assert {batch["tokens"].shape[1:] for batch in mixture.batches(8, shuffle=True)} == {(4,)}


def test_slices_of_raw_text_are_views_whatever_the_stride(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", shard_bytes=4096 * 2, types={"t": "ragged[uint16]"}) as writer:
        writer.append({"t": documents_of([1000] * 30)})
    store = shardstore.open(tmp_path / "s")
    text = store["t"][:].values
    for stride in (1, 5, 8, 11):
        view = store.rows(slice(1, None)).windows("t", 8, stride)
        windows = view["t"][3:90]
        assert np.shares_memory(windows, text)
        assert not windows.flags.writeable
        starts = 1000 + stride * np.arange(3, 90)
        assert (windows == text[starts[:, None] + np.arange(8)]).all()
        assert view["t"].take([3])[0].flags.writeable


@pytest.mark.parametrize("codec", CODECS)
def test_long_documents_and_many_empty_ones(tmp_path: Path, codec: str) -> None:
    """Ranges in whole pages are searched where they lie; the documents' borders are at all kinds of places."""
    lengths = [0] * 300 + [70_000, 0, 0, 1, 255, 256, 257] + [0] * 5000 + [3] * 3000 + [0] * 10
    options: Any = {"codec": codec, "shard_bytes": "64KiB", "types": {"t": "ragged[uint16]"}}
    with shardstore.Writer(tmp_path / "s", **options) as writer:
        writer.append({"t": documents_of(lengths)})
    store = shardstore.open(tmp_path / "s")
    text = store["t"][:].values
    documents = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    for length, stride in ((256, 256), (257, 256), (64, 96), (1000, 7)):
        view = store.windows("t", length, stride, documents=True, positions=True)
        assert len(view) == (len(text) - length) // stride + 1
        items = np.random.default_rng(0).permutation(len(view))[:300]
        places = items[:, None] * stride + np.arange(length)
        found = view.take(items)
        assert np.array_equal(found["t"], text[places])
        assert np.array_equal(found["document"], documents[places])
        assert np.array_equal(found["position"], positions[places])
        assert view.take([])["t"].shape == (0, length)


@pytest.mark.parametrize("how", ["aligned", "in the middle", "overlapping", "split", "within"])
def test_a_shuffled_epoch_decodes_each_chunk_about_once(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cache of decoded chunks must not hide what is decoded twice.
    monkeypatch.setattr("shardstore.access.CHUNK_CACHE_NBYTES", 1)
    lengths = np.random.default_rng(0).integers(0, 400, 4000).tolist()
    values = np.random.default_rng(0).integers(0, 50, sum(lengths)).astype(np.uint16)
    with shardstore.Writer(tmp_path / "s", codec="zstd", chunk_bytes=4096) as writer:
        writer.append({"t": shardstore.Ragged.from_lengths(values, lengths)})
    store = shardstore.open(tmp_path / "s")
    chunks = -(-len(values) // 2048)
    if how == "aligned":
        view = store.windows("t", 64)
    elif how == "in the middle":
        view = store.rows(slice(400, None)).windows("t", 100)
    elif how == "overlapping":
        view = store.windows("t", 257, stride=64)
    elif how == "split":
        view = store.split(train=0.99, val=0.01)["train"].windows("t", 64)
    else:
        view = store.windows("t", 64, across_rows=False)
    for _ in view.batches(16, shuffle="window", window_bytes=view.nbytes // 8):
        pass
    decoded = store.chunks_decoded
    assert decoded >= 0.8 * chunks
    bound = {"aligned": 1.0, "split": 1.5}.get(how, 1.2)
    assert decoded <= bound * chunks + 1, decoded / chunks


def test_in_order_overlapping_windows_decode_a_chunk_once_a_batch(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", codec="zstd", chunk_bytes=64, types={"t": "ragged[uint16]"}) as writer:
        writer.append({"t": documents_of([3200])})
    expected = shardstore.open(tmp_path / "s")["t"][0]
    store = shardstore.open(tmp_path / "s")
    view = store.windows("t", 1000, 32)
    assert np.array_equal(view["t"][:], expected[np.arange(len(view))[:, None] * 32 + np.arange(1000)])
    assert store.chunks_decoded == 100


def test_errors_name_the_argument_and_the_column(tmp_path: Path) -> None:
    store = shardstore.open(write(tmp_path / "s", documents_of([40, 3]), "raw"))
    with pytest.raises(KeyError, match="no column 'words'; the columns are tokens, n"):
        store.windows("words", 4)
    with pytest.raises(TypeError, match=r"column 'n' holds int64; windows are cut from a ragged column"):
        store.windows("n", 4)
    with pytest.raises(TypeError, match="column is a int; expected the name"):
        store.windows(4, 4)  # type: ignore[arg-type]
    bad: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, "length is 0; expected at least 1", {"length": 0}),
        (ValueError, "stride is -1; expected at least 1", {"length": 4, "stride": -1}),
        (ValueError, "length is .*; expected at most", {"length": 1 << 60}),
        (TypeError, "length is a float; expected an int", {"length": 4.0}),
        (TypeError, "stride is a bool; expected an int", {"length": 4, "stride": True}),
    ]
    for error, message, arguments in bad:
        with pytest.raises(error, match=message):
            store.windows("tokens", **arguments)
    with shardstore.Writer(tmp_path / "d", types={"document": "utf8"}) as writer:
        writer.append({"document": ["some text", "more"]})
    store = shardstore.open(tmp_path / "d")
    with pytest.raises(ValueError, match="documents=True adds 'document', but the column itself"):
        store.windows("document", 4, documents=True)
    letters = store.windows("document", 4, positions=True)
    assert letters["document"][:].tobytes() == b"some textmor"
    assert letters["position"][2].tolist() == [8, 0, 1, 2]
    with pytest.raises(TypeError, match="column 'document' holds uint8"):
        letters.windows("document", 2)


@pytest.mark.parametrize("codec", CODECS)
def test_no_documents_no_items_and_too_few(tmp_path: Path, codec: str) -> None:
    for name, lengths in (("none", []), ("empty", [0, 0]), ("short", [2, 1])):
        store = shardstore.open(write(tmp_path / name, documents_of(lengths), codec))
        for across_rows in (True, False):
            view = store.windows("tokens", 4, None, across_rows, documents=True)
            assert len(view) == 0
            assert view["tokens"][:].shape == (0, 4)
            assert view["document"][:].shape == (0, 4)
            assert list(view.batches(2, shuffle=True)) == []


def test_documents_that_do_not_lie_end_to_end_are_damage(tmp_path: Path) -> None:
    lengths = [40] * 2000
    with shardstore.Writer(tmp_path / "s", types={"t": "ragged[uint16]"}) as writer:
        writer.append({"t": documents_of(lengths)})
    path = tmp_path / "s/t/ranges/c/0/0"
    data = bytearray(path.read_bytes())
    ranges = np.frombuffer(data, np.int64, 4000).reshape(-1, 2)
    ranges[1000] -= [0, 20]
    path.write_bytes(data)
    view = shardstore.open(tmp_path / "s").windows("t", 16, documents=True)
    with pytest.raises(shardstore.CorruptionError, match="do not follow one another"):
        view["document"][:]


def test_views_of_windows_pickle_without_what_is_known_of_the_documents(tmp_path: Path) -> None:
    with shardstore.Writer(tmp_path / "s", types={"tokens": "ragged[uint16]"}) as writer:
        writer.append({"tokens": documents_of([5] * 2000)})
    store = shardstore.open(tmp_path / "s")
    view = store.rows(slice(3, None)).windows("tokens", 8, documents=True)
    assert len(pickle.dumps(view)) < 1000
    split = store.split(train=0.9, val=0.1)["train"].windows("tokens", 8)
    size = len(pickle.dumps(split))
    split["tokens"][:]
    assert len(pickle.dumps(split)) == size < 2000


@given(st.data(), st.sampled_from([np.dtype("u1"), np.dtype("u2"), np.dtype("M8[s]"), np.dtype("S3")]))
def test_runs_are_joined_into_a_given_array(data: st.DataObject, dtype: np.dtype[Any]) -> None:
    values = random_array(dtype, (3000, 2))
    length = data.draw(st.sampled_from([0, 1, 2, 7, 64, 1000]))
    step = data.draw(st.sampled_from([1, 7, 64, length or 1]))
    phase = data.draw(st.integers(0, 70))
    numbers = np.array(data.draw(st.lists(st.integers(0, (3000 - 70 - length) // step), max_size=80)), np.int64)
    starts = phase + step * numbers
    stops = starts + length
    if data.draw(st.booleans()):
        stops = np.minimum(stops + np.arange(len(starts)) * data.draw(st.sampled_from([1, 20])), 3000)
    expected = [values[a:b] for a, b in zip(starts, stops, strict=True)]
    whole = np.concatenate([values[:0], *expected])
    joined = join_runs(values, starts, stops)
    assert joined.dtype == dtype
    assert joined.tobytes() == whole.tobytes()
    out = random_array(dtype, whole.shape, seed=1)
    assert join_runs(values, starts, stops, out) is out
    assert out.tobytes() == whole.tobytes()


@pytest.mark.parametrize("codec", ["raw", "zstd"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_windows_are_datasets(tmp_path: Path, codec: str) -> None:
    torch = pytest.importorskip("torch", reason="the torch extra is not installed")
    from torch.utils.data import DataLoader

    from shardstore.torch import StoreIterableDataset, StoreMapDataset

    rows = documents_of([40, 3, 0, 17, 40, 5] * 4)
    store = shardstore.open(write(tmp_path / "s", rows, codec))
    for table in (store, store.rows(slice(None, None, -1))):
        view = table.windows("tokens", 9, 8, documents=True, positions=True)
        expected = {tuple(window) for window in view["tokens"][:].tolist()}
        streams = []
        for workers in (0, 2):
            dataset = StoreIterableDataset(view, batch_size=4, shuffle=True, seed=3)
            batches = list(DataLoader(dataset, batch_size=None, num_workers=workers))
            assert batches[0]["tokens"].dtype == torch.uint16
            assert batches[0]["document"].dtype == batches[0]["position"].dtype == torch.int64
            streams.append([window for batch in batches for window in batch["tokens"].tolist()])
        assert streams[0] == streams[1]
        assert len(streams[0]) == len(view)
        assert set(map(tuple, streams[0])) == expected
        by_number = DataLoader(StoreMapDataset(view), batch_size=4, shuffle=True)
        found = [tuple(window) for batch in by_number for window in batch["tokens"].tolist()]
        assert len(found) == len(view)
        assert set(found) == expected
