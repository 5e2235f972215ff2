"""`mambaseg weights` and `fit --weights`: fetched with a checksum or on request, tried, used, and then dispensable."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from mambaseg.cli import main
from mambaseg.experiment import load_experiment, students_of, without_weights
from mambaseg.networks.weights import PUBLISHED
from tests.datamodules.range_server import serving
from tests.networks.weights.published_files import vmamba_state

NAME = "vmamba_tiny_v0"
FROZEN = "model.init_args.students.mamba.optimizer.lr=0.0"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A published file on a local server, under an id without a checksum; gives path and digest."""
    monkeypatch.setenv("MAMBASEG_WEIGHTS", str(tmp_path / "weights"))
    torch.save({"model": vmamba_state()}, tmp_path / "served.pth")
    content = (tmp_path / "served.pth").read_bytes()
    with serving() as server:
        server.content = content
        entry = replace(PUBLISHED.get(NAME), url=server.url)
        monkeypatch.setitem(PUBLISHED._entries, NAME, entry)
        yield tmp_path / "weights" / entry.file, hashlib.sha256(content).hexdigest()


def test_the_list_names_every_entry(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBASEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "220")
    assert main(["weights"]) == 0
    out = capsys.readouterr().out
    for name in PUBLISHED.names():
        assert name in out
    assert "MIT" in out


def test_nothing_is_fetched_without_a_checksum_or_consent(published, capsys):
    target, digest = published
    assert main(["weights", "fetch", NAME]) == 2
    assert "--sha256 HEX" in capsys.readouterr().err
    assert not target.exists()
    assert main(["weights", "fetch", NAME, "--sha256", "0" * 64]) == 2
    assert f"sha256 of the download is {digest}" in capsys.readouterr().err
    assert not target.exists()
    assert main(["weights", "fetch", NAME, "--sha256", digest]) == 0
    assert target.is_file()


def test_an_unverified_file_is_held_to_what_it_was(published, capsys):
    target, digest = published
    assert main(["weights", "fetch", NAME, "--unverified"]) == 0
    assert digest in capsys.readouterr().out
    assert main(["weights", "check", NAME, "--network", "unet"]) == 1
    with target.open("ab") as file:
        file.write(b"x")
    assert main(["weights", "check", NAME]) == 2
    assert f"expected {digest}" in capsys.readouterr().err


def test_a_file_without_an_address_says_where_to_put_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBASEG_WEIGHTS", str(tmp_path))
    assert main(["weights", "fetch", "vmamba_small_ema"]) == 2
    assert str(tmp_path / "vmamba_small_e238_ema.pth") in capsys.readouterr().err


def test_check_shows_what_would_load(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    torch.save(vmamba_state(embed_dim=96, d_state=16, depths=(2, 2, 2, 2)), tmp_path / "v.pth")
    assert main(["weights", "check", str(tmp_path / "v.pth"), "--network", "mamba_unet"]) == 0
    out = capsys.readouterr().out
    assert "100.0% of the encoder and what mirrors it" in out
    for words in ("loaded", "mirrored into the decoder", "missing in the file", "unexpected, left out", "17,036,064"):
        assert words in out
    assert main(["weights", "check"]) == 2
    assert main(["weights", "check", str(tmp_path / "v.pth")]) == 2


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "trainer: {accelerator: cpu, max_steps: 1, val_check_interval: 200, check_val_every_n_epoch: null,\n"
        "  num_sanity_val_steps: 0, use_distributed_sampler: false}\n"
        "tracking: {wandb: false}\n"
        "data:\n"
        "  class_path: mambaseg.datamodules.demo.DemoDataModule\n"
        "  init_args: {patients: 2, held_out: 1, frames: 1, depth: 2, size: [32, 32], labelled_patients: 1}\n"
        "model:\n"
        "  class_path: mambaseg.methods.Supervised\n"
        "  init_args:\n"
        "    inference: {size: [32, 32]}\n"
        "    students:\n"
        "      cnn: {network: unet, options: {channels: [4, 4, 4, 4, 4]}}\n"
        "      mamba:\n"
        "        network: mamba_unet\n"
        "        options: {embed_dim: 8, depths: [1, 1], d_state: 2}\n"
    )
    return path


def test_a_student_starts_from_weights_and_its_run_needs_the_file_no_more(experiment, tmp_path, capsys):
    run, weights = tmp_path / "run", tmp_path / "vmamba.pth"
    torch.save({"model": vmamba_state(depths=(1, 1))}, weights)
    fit = ["fit", "--config", str(experiment), "--run-dir", str(run), "--set", FROZEN]
    assert main([*fit, "--weights", f"mamba={weights}"]) == 0
    assert "mamba: vmamba.pth, 100.0% of the encoder" in capsys.readouterr().out
    record = json.loads((run / "weights.json").read_text())
    assert set(record) == {"mamba"}
    assert record["mamba"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    key = "layers.1.blocks.0.self_attention.A_logs"
    assert torch.equal(state[f"students.mamba.{key}"], vmamba_state(depths=(1, 1))[key])
    weights.unlink()
    assert main(["validate", "--run", str(run), "--checkpoint", "last"]) == 0
    from mambaseg.trained_model import load_trained

    assert load_trained(run, run / "checkpoints" / "last.ckpt").networks["mamba"].weights_report is None


def test_a_configuration_without_its_weights(experiment):
    config = load_experiment(experiment, ["model.init_args.students.mamba.options.weights=here.pth"])
    plain = without_weights(config)
    assert students_of(config)["mamba"]["options"].pop("weights") == "here.pth"
    assert plain == config
    assert without_weights({"model": None}) == {"model": None}


def test_weights_in_the_experiment_and_wrong_ones(experiment, tmp_path, capsys):
    text = experiment.read_text()
    experiment.write_text(
        text.replace("d_state: 2}", f"d_state: 2, weights: {{source: {tmp_path / 'missing.pth'}, mirror: false}}}}")
    )
    assert main(["fit", "--config", str(experiment)]) == 2
    error = capsys.readouterr().err
    assert "there is no such file" in error
    assert "missing.pth" in error
    experiment.write_text(text)
    assert main(["fit", "--config", str(experiment), "--weights", "somewhere.pth"]) == 2
    assert "STUDENT=PATH|ID: cnn, mamba" in capsys.readouterr().err
    assert main(["fit", "--config", str(experiment), "--weights", "vit=somewhere.pth"]) == 2
    assert "name the student" in capsys.readouterr().err
