"""A tiny co-training that keeps the contract callbacks rely on, and short real fits of it."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mambaseg.callbacks.jsonl import JsonlLogger
from mambaseg.datamodules.batch import Batch, Supervision
from mambaseg.datamodules.splits import Split
from mambaseg.metrics.case_scores import CaseScores
from mambaseg.metrics.headline import headline_metric, headline_predictor

CLASS_NAMES = ("background", "RV", "Myo")
DEPTH, SIZE = 3, 24
VAL_CASES = ("patient001_frame01", "patient001_frame12", "patient002_frame01", "patient002_frame12")


def phantom(seed: int, depth: int = DEPTH) -> tuple[Tensor, Tensor]:
    """A bright disc in a grey ring: image (D, H, W) float32 and label (D, H, W) int64, the middle slice largest."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    radius = ((rows - 11) ** 2 + (columns - 10 - seed % 4) ** 2).float().sqrt()
    label = torch.zeros(depth, SIZE, SIZE, dtype=torch.long)
    for z in range(depth):
        scale = 1 - 0.3 * abs(z - depth // 2)
        label[z][radius < 9 * scale] = 2
        label[z][radius < 5 * scale] = 1
    image = 0.4 * (label == 2) + 0.9 * (label == 1) + 0.05 * torch.randn(label.shape, generator=generator)
    return image.float(), label


def sample(case_id: str, seed: int, volume: bool) -> dict[str, object]:
    image, label = phantom(seed)
    if not volume:
        image, label = image[1], label[1]
    return {"image": image[None], "label": label, "case_id": case_id}


def collate(samples: list[dict]) -> Batch:
    dims = samples[0]["label"].ndim
    return {
        "image": torch.stack([s["image"] for s in samples]),
        "label": torch.stack([s["label"] for s in samples]),
        "supervision": torch.full((len(samples),), int(Supervision.DENSE)),
        "case_id": [s["case_id"] for s in samples],
        "spacing_mm": [(1.5,) * dims for _ in samples],
    }


class StubSource:
    name = "stub"

    def case_ids(self) -> list[str]:
        return [*VAL_CASES, *(f"patient01{i}_frame01" for i in range(6))]

    def group(self, case_id: str) -> str:
        return case_id.partition("_")[0]


class StubData(pl.LightningDataModule):
    labelled_patients = 2
    source = StubSource()
    split = Split(
        name="stub_fold1",
        dataset="stub",
        train=tuple(f"patient01{i}" for i in range(6)),
        val=("patient001", "patient002"),
        test=("patient003",),
    )

    def train_dataloader(self) -> DataLoader:
        samples = [sample(f"patient01{i}_frame01", i, volume=False) for i in range(6)]
        return DataLoader(samples, batch_size=2, collate_fn=collate)

    def val_dataloader(self) -> DataLoader:
        samples = [sample(case_id, i, volume=True) for i, case_id in enumerate(VAL_CASES)]
        return DataLoader(samples, batch_size=1, collate_fn=collate)

    test_dataloader = predict_dataloader = val_dataloader


class StubModule(pl.LightningModule):
    """Two convolutional students trained by cross-entropy; the names logged are those of CoTrainingModule."""

    def __init__(self, names: tuple[str, ...] = ("unet", "mamba_unet"), learning_rate: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": learning_rate, "note": 'quote " and 0.12345'})
        self.students = nn.ModuleDict({name: nn.Conv2d(1, len(CLASS_NAMES), 3, padding=1) for name in names})
        self.class_names = CLASS_NAMES
        self.num_classes = len(CLASS_NAMES)
        self.learning_rate = learning_rate
        self.last_scores: list = []
        self.dice_after: Callable[[str, int], float] | None = None

    @property
    def student_names(self) -> list[str]:
        return list(self.students)

    @property
    def predictor_names(self) -> list[str]:
        return [*self.students, "ensemble"] if len(self.students) > 1 else list(self.students)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = {n: F.cross_entropy(s(batch["image"]), batch["label"]) for n, s in self.students.items()}
        loss = torch.stack(list(terms.values())).sum()
        self.log("loss", loss.detach(), batch_size=2)
        self.log_dict({f"loss/{n}": t.detach() for n, t in terms.items()}, batch_size=2)
        self.log_dict({"ramp_up": 0.5, "lr/unet": self.learning_rate, "pseudo/agreement": 0.75}, batch_size=2)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._scores = CaseScores(class_names=self.class_names, predictors=self.predictor_names)

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, dict[str, Tensor]]:
        slices = batch["image"][0].transpose(0, 1)
        probabilities = {name: student(slices).softmax(1) for name, student in self.students.items()}
        if len(probabilities) > 1:
            probabilities["ensemble"] = torch.stack(list(probabilities.values())).mean(0)
        predictions = {name: p.argmax(1).to(torch.uint8) for name, p in probabilities.items()}
        for name, prediction in predictions.items():
            spacing = batch["spacing_mm"][0]
            self._scores.update(batch["case_id"][0], name, prediction, batch["label"][0], spacing, surface=False)
        return {"predictions": predictions}

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        self._finish("test")

    def _finish(self, part: str) -> None:
        self.last_scores = self._scores.rows()
        for summary in self._scores.summary():
            dice = summary.foreground["dice"].mean
            if self.dice_after is not None and not self.trainer.sanity_checking:
                dice = self.dice_after(summary.predictor, self.trainer.global_step)
            self.log(f"{part}/{summary.predictor}/dice", dice)
            if summary.predictor == headline_predictor(self.predictor_names):
                self.log(headline_metric(part), dice)
            for entry in summary.foreground_classes:
                self.log(f"{part}/{summary.predictor}/dice/{entry.class_name}", entry.scores["dice"].mean)


def make_trainer(folder: Path, callbacks: list[pl.Callback], **options: object) -> pl.Trainer:
    settings: dict = {
        "default_root_dir": folder,
        "logger": JsonlLogger(folder),
        "max_steps": 6,
        "max_epochs": -1,
        "val_check_interval": 3,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 1,
    }
    return pl.Trainer(**(settings | {"callbacks": callbacks} | options))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
