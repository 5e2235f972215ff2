"""Faults from outside end in a running training or in one clear message."""

import errno
import os
import re
import signal
import time
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors import safe_open

import mambaseg.io.checkpoint_io as checkpoint_io
from mambaseg.callbacks.jsonl import JsonlLogger
from mambaseg.cli import main
from mambaseg.datamodules.datasets import SliceDataset
from mambaseg.datamodules.demo import DemoDataModule
from mambaseg.errors import TrainingFault
from mambaseg.io.checkpoint_file import damage
from mambaseg.lightning_cli import build
from mambaseg.methods.cotraining import CoTrainingModule
from mambaseg.reports.run_record import read_rows, read_run
from mambaseg.training import fit_and_summarize
from tests.methods.test_training import experiment

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def built(folder, steps=6, **tracking):
    config = experiment(steps)
    config["tracking"] |= {"checkpoint_every": 2, **tracking}
    config["model"]["init_args"]["students"]["mamba"] = config["model"]["init_args"]["students"]["cnn"]
    return build(config, folder / "t.yaml", folder, track=True)


def run(cli, folder):
    return fit_and_summarize(cli, "tiny", folder, None)


def test_a_full_disk_costs_one_checkpoint_and_no_training(tmp_path, monkeypatch, caplog):
    real, seen = checkpoint_io.write_checkpoint, []

    def write(checkpoint, path, previous=None):
        seen.append((path.name, checkpoint["global_step"]))
        if checkpoint["global_step"] == 4:
            raise FULL
        real(checkpoint, path, previous)

    monkeypatch.setattr(checkpoint_io, "write_checkpoint", write)
    cli = built(tmp_path)
    assert run(cli, tmp_path) == 0
    assert ("last.ckpt", 4) in seen
    assert ("last.ckpt", 6) in seen
    assert "No space left on device" in caplog.text
    assert "MiB free" in caplog.text
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        assert damage(path) is None
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    # The best score was at step 4 alone, its file was refused: so no score is remembered as saved.
    assert [own["best_model_path"] for key, own in saved["callbacks"].items() if "BestCheckpoint" in key] == [""]


def test_a_disk_that_stays_full_is_said_at_the_end(tmp_path, monkeypatch):
    real = checkpoint_io.write_checkpoint

    def write(checkpoint, path, previous=None):
        if checkpoint["global_step"] > 2:
            raise FULL
        real(checkpoint, path, previous)

    monkeypatch.setattr(checkpoint_io, "write_checkpoint", write)
    cli = built(tmp_path)
    with pytest.raises(TrainingFault, match=r"could not be written: No space left.*up to step 2.*RESUME=auto"):
        run(cli, tmp_path)


def test_rows_wait_for_room_on_a_full_disk(tmp_path, caplog):
    logger = JsonlLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.path.rename(tmp_path / "kept")
    logger.path.symlink_to("/dev/full")
    logger._ready = True  # repairing the last line needs a file that one can seek in
    logger.log_metrics({"loss": 2.0}, step=1)
    assert "No space left on device" in caplog.text
    logger.path.unlink()
    (tmp_path / "kept").rename(logger.path)
    with logger.path.open("a") as record:
        record.write('{"step": 1, "lo')  # as much as there was room for
    logger.log_metrics({"loss": 3.0}, step=2)
    rows, skipped = read_rows(logger.path)
    assert ([row["step"] for row in rows], skipped) == ([0, 1, 2], 0)


def test_files_beside_the_training_may_fail(tmp_path, monkeypatch, caplog):
    def refuse(*words, **options):
        raise FULL

    for name in ("case_table.write_scores", "overlays._save", "best_students.write_bytes", "run_card.write_text"):
        monkeypatch.setattr(f"mambaseg.callbacks.{name}", refuse)
    cli = built(tmp_path, overlays=1)
    assert run(cli, tmp_path) == 0
    assert caplog.text.count("Training goes on") >= 4
    best = next(c for c in cli.trainer.callbacks if type(c).__name__ == "BestStudents")
    assert best.best == {}


def memory_error(self, batch, batch_idx):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...")


def test_gpu_memory(tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(experiment(3)))
    monkeypatch.setenv("MAMBASEG_RUN_DIR", "")
    monkeypatch.setattr(CoTrainingModule, "training_step", memory_error)
    assert main(["fit", "--config", str(config), "--run-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "Tried to allocate 2.00 GiB" in error or "CUDA out of memory" in error
    assert "batch_labelled" in error
    assert "RESUME=auto" in error
    assert "Traceback" not in error


@pytest.fixture
def batches():
    """A function that returns an epoch's case names and pixel sums, and does something at the third batch."""

    def collect(workers, disturb=lambda loader: None):
        data = DemoDataModule(
            patients=2, held_out=1, frames=1, depth=3, size=(32, 32), labelled_patients=1, batch_labelled=2,
            batch_unlabelled=2, batches_per_epoch=12, workers=workers, transform="affine", seed=1,
        )  # fmt: skip
        data.setup("fit")
        loader = data.train_dataloader()
        seen = []
        for number, batch in enumerate(loader):
            seen.append((batch["case_id"], batch["image"].sum().item()))
            if number == 2:
                disturb(loader)
        return seen, loader

    return collect


def kill_a_worker(loader):
    os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_no_batch_lost(batches, caplog):
    seen, loader = batches(1, kill_a_worker)
    assert "worker process was killed" in caplog.text
    assert loader.num_workers == 1
    assert seen == batches(0)[0]
    assert loader.state_dict()["batch"] == 12


@pytest.mark.timeout(60)
def test_a_worker_killed_before_it_has_sent_anything_is_missed_soon(batches, caplog, monkeypatch):
    """With nothing on its way there is no broken message to stumble over."""
    monkeypatch.setattr("mambaseg.datamodules.loader.LOOK_S", 0.5)
    load = SliceDataset.__getitem__
    monkeypatch.setattr(SliceDataset, "__getitem__", lambda self, key: time.sleep(0.5) or load(self, key))
    seen, loader = batches(1, kill_a_worker)
    assert "worker process was killed" in caplog.text
    assert loader.num_workers == 1
    assert len(seen) == 12


def test_without_shared_memory_data_is_loaded_in_the_training_process(batches, caplog, monkeypatch):
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    real, calls = _MultiProcessingDataLoaderIter._next_data, []

    def next_data(self):
        calls.append(self)
        if len(calls) in (4, 5):
            raise RuntimeError("unable to write to file </torch_71_2>: No space left on device (28)")
        return real(self)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", next_data)
    seen, loader = batches(1)
    assert loader.num_workers == 0
    assert caplog.text.count("/dev/shm") == 2
    assert seen == batches(0)[0]


def test_too_little_shared_memory_is_seen_before_workers_fall_silent(batches, caplog, monkeypatch):
    monkeypatch.setattr("mambaseg.datamodules.loader.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    seen, loader = batches(2)
    assert loader.num_workers == 0
    assert "--shm-size" in caplog.text
    assert seen == batches(0)[0]


def test_an_error_of_the_data_itself_is_not_hidden(batches):
    def spoil(loader):
        loader.dataset.transform = None

    with pytest.raises(TypeError):
        batches(0, spoil)


def overflow_at(cli, step):
    """Let one convolution overflow at one step; return its name and type."""
    name, module = next((n, m) for n, m in cli.model.named_modules() if isinstance(m, torch.nn.Conv2d))
    module.register_forward_hook(
        lambda own, inputs, output: output * float("inf") if cli.trainer.global_step == step else None
    )
    return f"{name} ({type(module).__name__})"


def test_a_nonfinite_loss_stops_before_it_reaches_a_weight(tmp_path):
    cli = built(tmp_path)
    name = overflow_at(cli, 3)
    with pytest.raises(TrainingFault, match=rf"(?s)step 3 .*{re.escape(name)}.*up to step 2.*RESUME"):
        run(cli, tmp_path)
    assert all(torch.isfinite(p).all() for p in cli.model.parameters())
    (path,) = (tmp_path / "nonfinite").iterdir()
    with safe_open(path, "pt") as saved:
        assert saved.get_tensor("image").shape == (4, 1, 32, 32)
        assert saved.metadata()["case_id"].count("phantom") == 4
    assert damage(tmp_path / "checkpoints" / "last.ckpt") is None


def test_nonfinite_steps_can_be_skipped_and_are_counted(tmp_path, caplog):
    cli = built(tmp_path, nonfinite="skip")
    overflow_at(cli, 3)
    assert run(cli, tmp_path) == 0
    assert cli.trainer.global_step == 6
    values = cli.model.state_dict()
    assert all(torch.isfinite(v).all() for v in values.values() if v.is_floating_point())
    assert read_run(tmp_path).series["nonfinite_steps"].values == (1.0,)
    assert "first module with a non-finite output" in caplog.text
    adam = cli.trainer.optimizers[0].state_dict()["state"]
    assert {int(own["step"]) for own in adam.values()} == {5}


def test_a_loss_that_is_never_finite_ends_the_training_also_when_skipping(tmp_path, monkeypatch):
    monkeypatch.setattr("mambaseg.callbacks.finite_guard.MOST_SKIPS_IN_A_ROW", 3)
    cli = built(tmp_path, nonfinite="skip")
    before = {key: value.clone() for key, value in cli.model.named_parameters()}
    for step in range(6):
        overflow_at(cli, step)
    with pytest.raises(TrainingFault, match="step 3 "):
        run(cli, tmp_path)
    assert all(torch.equal(before[key], value) for key, value in cli.model.named_parameters())


def test_data_that_is_not_finite_is_named(tmp_path, monkeypatch):
    real = CoTrainingModule.on_train_batch_start

    def poison(self, batch, batch_idx):
        real(self, batch, batch_idx)
        if self.global_step == 1:
            batch["image"][0, 0, 0, 0] = float("nan")

    monkeypatch.setattr(CoTrainingModule, "on_train_batch_start", poison)
    with pytest.raises(TrainingFault, match="own image is not finite"):
        run(built(tmp_path), tmp_path)


def test_the_clock_may_go_backwards(tmp_path, monkeypatch):
    clock = iter(range(10**6, 0, -1000))
    monkeypatch.setattr("mambaseg.callbacks.jsonl.time.time", lambda: next(clock))
    assert run(built(tmp_path), tmp_path) == 0
    assert read_run(tmp_path).series["loss"].steps == tuple(range(6))
