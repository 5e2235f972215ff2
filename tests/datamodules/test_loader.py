"""Batches do not depend on workers, and a run resumes at the next batch."""

import pickle

import lightning.pytorch as L
import pytest
import torch

from mambaseg.datamodules.batch import Supervision
from mambaseg.datamodules.datasets import SliceDataset, VolumeDataset, collate
from mambaseg.datamodules.demo import DemoDataModule
from mambaseg.datamodules.loader import ResumableDataLoader, evaluation_loader
from mambaseg.datamodules.phantom import Phantom
from mambaseg.datamodules.sampling import Pool, PooledBatchSampler
from mambaseg.datamodules.transforms import create_transform
from mambaseg.errors import InputError

PHANTOM = Phantom(patients=3, depth=3, size=32)


def loader(workers=0, seed=5, batches=8, transform="published"):
    cases = PHANTOM.case_ids()
    supervision = dict.fromkeys(cases[:2], Supervision.DENSE) | dict.fromkeys(cases[2:], Supervision.NONE)
    dataset = SliceDataset(PHANTOM, supervision, create_transform(transform, (32, 32)), audit=True)
    pools = [
        Pool("labelled", dataset.indices(Supervision.DENSE), 2, drop_remainder=True),
        Pool("unlabelled", dataset.indices(Supervision.NONE), 3),
    ]
    return ResumableDataLoader(dataset, PooledBatchSampler(pools, seed, batches), workers)


def equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(torch.nan_to_num(value), torch.nan_to_num(second[name])), name
        else:
            assert value == second[name], name
    return True


@pytest.mark.parametrize("transform", ["published", "weak_strong"])
def test_batches_do_not_depend_on_the_number_of_workers(transform):
    alone, crowd = loader(0, transform=transform), loader(2, transform=transform)
    for epoch in range(2):
        for one in (alone, crowd):
            one.batch_sampler.set_epoch(epoch)
        pairs = list(zip(alone, crowd, strict=True))
        assert len(pairs) == len(alone) == 8
        assert all(equal(*pair) for pair in pairs)


def test_no_image_comes_twice_in_three_epochs():
    data = loader(transform="affine")
    images = set()
    for epoch in range(3):
        data.batch_sampler.set_epoch(epoch)
        images |= {image.numpy().tobytes() for batch in data for image in batch["image"]}
    assert len(images) == 3 * 8 * 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_loader_goes_on_with_the_next_batch(workers):
    reference = []
    whole = loader()
    for epoch in range(2):
        whole.batch_sampler.set_epoch(epoch)
        reference += list(whole)
    for taken in (0, 1, 5, 8):
        interrupted = loader(workers)
        batches = iter(interrupted)
        for _ in range(taken):
            next(batches)
        state = interrupted.state_dict()
        restored = loader(2 - workers)
        restored.load_state_dict(state)
        assert restored.state_dict() == state or taken == 8
        rest = list(restored)
        expected = reference[taken:8] if taken < 8 else reference[8:]
        assert len(rest) == len(expected)
        assert all(equal(*pair) for pair in zip(rest, expected, strict=True))


def test_a_dataset_travels_to_spawned_workers():
    data = loader(transform="weak_strong")
    first = next(iter(data))
    travelled = pickle.loads(pickle.dumps(data.dataset))
    samples = [travelled[key] for key in data.batch_sampler.batch(0, 0)]
    assert equal(collate(samples), first)


def test_state_of_another_run_is_refused():
    state = loader().state_dict()
    with pytest.raises(InputError, match=r"seed=5.*seed=6"):
        loader(seed=6).load_state_dict(state)
    with pytest.raises(InputError, match="batches_per_epoch"):
        loader(batches=9).load_state_dict(state)


def test_an_unfinished_iteration_starts_over():
    data = loader()
    first = next(iter(data))
    assert equal(first, next(iter(data)))
    assert data.state_dict()["batch"] == 1


def test_evaluation_loader_gives_whole_cases():
    cases = PHANTOM.case_ids()
    names = []
    for rank in range(2):
        for batch in evaluation_loader(VolumeDataset(PHANTOM, cases), len(cases), rank, 2):
            assert batch["image"].shape == (1, 1, 3, 32, 32)
            assert batch["label"].shape == (1, 3, 32, 32)
            assert len(batch["spacing_mm"][0]) == 3
            names += batch["case_id"]
    assert sorted(names) == sorted(cases)


class Recorder(L.LightningModule):
    """Remembers every training batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_index):
        self.seen.append((batch_index, batch["image"].double().sum().item()))
        return (self.weight * batch["image"].mean()).sum()

    def validation_step(self, batch, batch_index):
        self.log("probe", self.weight.sum(), batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveEverywhere(L.Callback):
    """Takes a checkpoint at every moment at which one can be taken."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, trainer, moment):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:02d}-{moment}.ckpt")

    def on_train_batch_end(self, trainer, *_):
        self.save(trainer, "batch")

    def on_validation_end(self, trainer, _):
        if not trainer.sanity_checking:
            self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer, _):
        self.save(trainer, "epoch")


def fit(checkpoint=None, callbacks=(), workers=0):
    data = DemoDataModule(patients=4, held_out=1, depth=3, size=(32, 32), batches_per_epoch=4, workers=workers)
    module = Recorder()
    trainer = L.Trainer(
        max_epochs=2,
        val_check_interval=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    return module.seen


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_at_the_next_batch_from_any_checkpoint(tmp_path):
    whole = fit(callbacks=[SaveEverywhere(tmp_path)])
    assert len(whole) == 8
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 12
    for checkpoint in checkpoints:
        step = int(checkpoint.name[:2])
        assert fit(checkpoint) == whole[step:], checkpoint.name
    assert fit(tmp_path / "03-batch.ckpt", workers=2) == whole[3:]
