"""Lightning's Trainer: interrupted behind any step, a run goes on with exactly the rows that it had left."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
pytest.importorskip("torchdata", reason="torchdata is not installed")
pytest.importorskip("lightning", reason="lightning is not installed")

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchdata.stateful_dataloader import StatefulDataLoader

import shardstore
from shardstore.torch import StoreIterableDataset, StoreLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
    # How Lightning uses torch.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    # What resumes here does not save again.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used"),
]

ROWS, BATCH, EPOCHS = 48, 10, 3
STEPS = 5  # of an epoch; the last is short
Rows = list[list[int]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lightning") / "s"
    with shardstore.Writer(path) as writer:
        writer.append({"y": np.arange(ROWS)})
    return path


@pytest.fixture(scope="module")
def expected(path: Path) -> Rows:
    stream = shardstore.open(path).batches(BATCH, shuffle=True, epochs=EPOCHS)
    return [batch["y"].tolist() for batch in stream]


class Model(pl.LightningModule):
    """Notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: Rows = []

    def training_step(self, batch: Any, number: int) -> Any:
        self.seen.append(batch["y"].tolist())
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ModelWithLoader(Model):
    """Makes its loader anew for every epoch, and says which it is: when it is made, and before it begins."""

    def __init__(self, path: Path, workers: int) -> None:
        super().__init__()
        self.path, self.workers = path, workers

    def train_dataloader(self) -> Any:
        dataset = StoreIterableDataset(self.path, BATCH, shuffle=True)
        dataset.set_epoch(self.trainer.current_epoch)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=self.workers)

    def on_train_epoch_start(self) -> None:
        self.trainer.train_dataloader.dataset.set_epoch(self.current_epoch)


def fit(
    model: Model, loader: Any = None, checkpoint: Path | None = None, folder: Path | None = None, **options: Any
) -> Rows:
    """Train, from a checkpoint or from the start, and return what the model saw; save behind every step and epoch."""
    callbacks = []
    if folder is not None:
        common: dict[str, Any] = {"dirpath": folder, "save_top_k": -1, "auto_insert_metric_name": False}
        callbacks = [
            ModelCheckpoint(every_n_train_steps=1, filename="step{step}", **common),
            ModelCheckpoint(every_n_epochs=1, save_on_train_epoch_end=True, filename="epoch{epoch}", **common),
        ]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=folder is not None,
        callbacks=callbacks,
        **options,
    )
    trainer.fit(model, loader, ckpt_path=checkpoint, weights_only=False)
    return model.seen


# Every step of two epochs, their last ones too.
SAVED = [(f"step{step}", step) for step in range(1, 2 * STEPS + 2)]
SAVED_BY_EPOCH = [(f"epoch{epoch}", STEPS * (epoch + 1)) for epoch in range(2)]


@pytest.fixture(params=["StoreLoader", "StatefulDataLoader", "StatefulDataLoader with 2 workers"])
def run(request: pytest.FixtureRequest, path: Path) -> Callable[..., Rows]:
    """Return what trains with a loader of a kind."""
    if request.param == "StoreLoader":
        return lambda **options: fit(Model(), StoreLoader(path, BATCH, shuffle=True), **options)
    workers = 2 if "workers" in request.param else 0
    return lambda **options: fit(ModelWithLoader(path, workers), reload_dataloaders_every_n_epochs=1, **options)


def test_a_run_goes_on_from_any_checkpoint(run: Callable[..., Rows], expected: Rows, tmp_path: Path) -> None:
    assert run(folder=tmp_path, max_epochs=EPOCHS) == expected
    for name, done in SAVED + SAVED_BY_EPOCH:
        assert run(checkpoint=tmp_path / f"{name}.ckpt", max_epochs=EPOCHS) == expected[done:], name
    for name, done in SAVED[::4]:  # the last steps of both epochs among them
        assert run(checkpoint=tmp_path / f"{name}.ckpt", max_steps=EPOCHS * STEPS) == expected[done:], name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_that_nobody_cares_for_goes_on_within_an_epoch(
    path: Path, expected: Rows, workers: int, tmp_path: Path
) -> None:
    def loader() -> Any:
        dataset = StoreIterableDataset(path, BATCH, shuffle=True)
        return StatefulDataLoader(dataset, batch_size=None, num_workers=workers)

    assert fit(Model(), loader(), folder=tmp_path, max_epochs=EPOCHS) == expected
    for name, done in SAVED:
        if done % STEPS:
            rest = fit(Model(), loader(), tmp_path / f"{name}.ckpt", max_epochs=EPOCHS)
            assert rest == expected[done:], name


def test_a_loader_can_be_used_after_a_run(path: Path, expected: Rows) -> None:
    loader = StoreLoader(path, BATCH, shuffle=True)
    assert fit(Model(), loader, max_steps=STEPS + 2) == expected[: STEPS + 2]
    assert [batch["y"].tolist() for batch in itertools.islice(loader, STEPS)] == expected[STEPS + 2 : 2 * STEPS]


class Validated(Model):
    """Notes what it is validated, tested and asked on, too."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[list[int]] = []

    def on_validation_epoch_start(self) -> None:
        self.runs.append([])

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Any, number: int) -> Any:
        self.runs[-1] += batch["y"].tolist()
        return batch["y"].sum()

    test_step = predict_step = validation_step


def test_every_validation_has_all_rows(path: Path) -> None:
    """Lightning tries two batches first, and comes again behind every epoch."""
    model = Validated()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=2, enable_model_summary=False, **options)
    validation = StoreLoader(path, BATCH)
    trainer.fit(model, StoreLoader(path, BATCH, shuffle=True), validation)
    assert model.runs == [list(range(2 * BATCH)), list(range(ROWS)), list(range(ROWS))]
    for run in (trainer.validate, trainer.test, trainer.predict):
        model.runs.clear()
        run(model, validation, **({"verbose": False} if run != trainer.predict else {}))
        assert model.runs == [list(range(ROWS))]
