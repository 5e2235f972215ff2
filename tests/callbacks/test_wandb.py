"""W&B offline: it holds our values, never asks, and may die without taking the training along."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from mambaseg.callbacks.overlays import PredictionOverlays
from mambaseg.callbacks.wandb import RUN_ID_FILE, WandbTracker, has_login, resolve_mode
from tests.callbacks.conftest import VAL_CASES, StubData, StubModule, make_trainer

wandb = pytest.importorskip("wandb")
Record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK, FILE_HEADER, CHUNK_HEADER = 32768, 7, 7


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def records(folder: Path) -> list[Record]:
    """Read a ``.wandb`` file: records cut into chunks (checksum, length, kind) within blocks of 32 KiB."""
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, place, parts, found = path.read_bytes(), FILE_HEADER, b"", []
    while place + CHUNK_HEADER <= len(data):
        if BLOCK - place % BLOCK < CHUNK_HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + CHUNK_HEADER])
        parts += data[place + CHUNK_HEADER : place + CHUNK_HEADER + length]
        place += CHUNK_HEADER + length
        if kind in (1, 4):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def config_of(found: list[Record]) -> dict:
    values: dict = {}
    for record in found:
        for update in (*record.run.config.update, *record.config.update):
            values[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
    return values


def history_of(found: list[Record]) -> list[dict]:
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]


def fit_in_a_process(run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.callbacks.wandb_fit", str(run), *options]
    return subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL
    )


def test_offline_run_holds_config_metrics_images_and_table(run):
    done = fit_in_a_process(run)
    assert "steps=3 mode=offline failed=False" in done.stdout, done.stderr
    found = records(run)
    config = config_of(found)
    assert config["learning_rate"] == 0.05
    assert config["note"] == 'quote " and 0.12345'
    assert set(config["code"]) == {"version", "git_sha", "git_dirty"}
    history = history_of(found)
    logged = {name: value for row in history for name, value in row.items()}
    assert "val/ensemble/dice" in logged
    assert {row["trainer/global_step"] for row in history if "loss" in row} == {0, 1, 2}
    overlay = f"overlays/{VAL_CASES[0]}"
    masks = {name.split(".")[2] for name in logged if name.startswith(f"{overlay}.masks.")}
    assert masks == {"truth", "unet", "mamba_unet", "ensemble"}
    assert logged["val/cases.nrows"] == len(VAL_CASES) * 3 * 3
    assert 0 <= logged[f"disputed/{VAL_CASES[0]}"] <= 1
    (panel,) = run.glob("wandb/offline-run-*/files/media/images/panels/*.png")
    assert panel.stat().st_size > 10_000
    (identity,) = {record.run.run_id for record in found if record.HasField("run")}
    assert (run / RUN_ID_FILE).read_text().strip() == identity


def test_training_survives_the_death_of_wandb(run):
    done = fit_in_a_process(run, "kill")
    assert done.returncode == 0
    assert "steps=6 mode=offline failed=True" in done.stdout, done.stderr
    assert done.stderr.count("Training goes on without it") == 1


def test_a_resumed_run_keeps_its_id(run):
    run.mkdir()
    (run / RUN_ID_FILE).write_text("abc123\n")
    assert WandbTracker(save_dir=run)._wandb_init["id"] == "abc123"


def test_training_survives_a_wandb_that_does_not_start(run, caplog, monkeypatch):
    def refuse(**settings):
        raise wandb.errors.UsageError("no service today")

    monkeypatch.setattr(wandb, "init", refuse)
    trainer = make_trainer(run, [PredictionOverlays(1)], logger=[WandbTracker(save_dir=run)], max_steps=3)
    trainer.fit(StubModule(), datamodule=StubData())
    assert trainer.global_step == 3
    assert caplog.text.count("W&B could not start (UsageError: no service today)") == 1


def test_unreachable_server_means_offline(run, caplog, monkeypatch):
    class Started:
        id = "abc123"
        config: ClassVar[dict] = {}

    class Config(dict):
        def update(self, values, allow_val_change):
            super().update(values)

    def init(**settings):
        modes.append(settings["mode"])
        if settings["mode"] == "online":
            raise wandb.errors.CommError("no network")
        return Started()

    modes: list[str] = []
    Started.config = Config()
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(wandb, "init", init)
    tracker = WandbTracker(save_dir=run)
    assert tracker.mode == "online"
    assert tracker.experiment.id == "abc123"
    assert modes == ["online", "offline"]
    assert (tracker.mode, tracker.failed) == ("offline", False)
    assert "records offline" in caplog.text
    assert set(Started.config["code"]) == {"version", "git_sha", "git_dirty"}


def test_disabled_leaves_nothing(run):
    tracker = WandbTracker(save_dir=run, mode="disabled")
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "variable", "key", "expected"),
    [
        ("auto", None, None, "offline"),
        ("auto", None, "k", "online"),
        ("auto", "offline", "k", "offline"),
        ("auto", "disabled", "k", "disabled"),
        ("auto", "dryrun", "k", "offline"),
        ("auto", "online", None, "offline"),
        ("online", "disabled", "k", "online"),
        ("online", None, None, "offline"),
        ("disabled", None, "k", "disabled"),
    ],
)
def test_mode(monkeypatch, wanted, variable, key, expected):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert resolve_mode(wanted) == expected


def test_login_is_found_in_netrc(monkeypatch, tmp_path):
    assert not has_login()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.hospital.example")
    assert not has_login()
    (tmp_path / "netrc").write_text("machine without sense {{\n")
    assert not has_login()


def test_other_ranks_start_nothing(run, monkeypatch):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    tracker = WandbTracker(save_dir=run)
    tracker.log_metrics({"loss": 1.0}, step=1)
    assert not (run / "wandb").exists()
