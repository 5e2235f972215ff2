"""A wrong option, however deep, gets one line: the file, the whole field, the value, what is allowed."""

import pytest

from mambaseg.cli import main
from mambaseg.config_errors import explain

EXPERIMENT = """
trainer: {accelerator: cpu, max_steps: 1}
tracking: {wandb: false}
data:
  class_path: mambaseg.datamodules.demo.DemoDataModule
  init_args: {patients: 2, held_out: 1, frames: 1, depth: 2, size: [32, 32], labelled_patients: 1}
model:
  class_path: mambaseg.methods.SemiMambaUNet
  init_args:
    inference: {size: [32, 32]}
    students:
      a: {network: unet, optimizer: {name: sgd, lr: 0.1}}
      b: {network: unet, optimizer: {name: adamw, lr: 0.001}}
"""
CROSS = "model.init_args.cross"
STUDENTS = "model.init_args.students"
LONGEST = 300


@pytest.fixture
def refusal(tmp_path, capsys, monkeypatch):
    """What ``fit`` says about an experiment with these settings, without the file's name, which must stand in front."""
    monkeypatch.setenv("MAMBASEG_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MAMBASEG_RUN_DIR", raising=False)
    path = tmp_path / "deep.yaml"
    path.write_text(EXPERIMENT)

    def refused(*settings, arguments=()):
        chosen = [word for setting in settings for word in ("--set", setting)]
        assert main(["fit", "--config", str(path), *chosen, *arguments]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1, told
        assert len(told) - len(str(path)) < LONGEST, told
        front, _, rest = told.strip().partition(f"{path}: ")
        assert front == "mambaseg fit: error: "
        return rest

    return refused


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            f"{CROSS}.cutmix.source=neighbours",
            f"{CROSS}.cutmix.source is 'neighbours'; it must be one of 'labelled', 'unlabelled', 'any'.",
        ),
        (f"{CROSS}.cutmx=1", f"there is no field {CROSS}.cutmx (given 1). Did you mean 'cutmix'?"),
        (f"{STUDENTS}.b.optimizer.lr=fast", f"{STUDENTS}.b.optimizer.lr is 'fast'; it must be a number."),
        (
            f"{STUDENTS}.b.schedule.name=cosin",
            f"{STUDENTS}.b.schedule.name is 'cosin'; it must be one of 'poly', 'cosine', 'constant'. "
            "Did you mean 'cosine'?",
        ),
        (
            f"{STUDENTS}.b.optimzer.lr=1",
            f"there is no field {STUDENTS}.b.optimzer.lr (given 1). Did you mean 'optimizer'?",
        ),
        (f"{STUDENTS}.b.network=null", f"{STUDENTS}.b.network is missing; give it a value."),
        (f"{STUDENTS}=null", f"{STUDENTS} is missing; give it a value."),
        (f"{STUDENTS}.b=3", f"{STUDENTS}.b is 3; it must be a mapping with the options of StudentConfig."),
        (f"{CROSS}.confidence=true", f"{CROSS}.confidence is true; it must be a number."),
        (
            "model.init_args.ablate=[superv]",
            "model.init_args.ablate has 'superv' in it; each must be one of 'supervised', 'cross', 'pooled_contrast', "
            "'pixel_contrast'. Did you mean 'supervised'?",
        ),
        ("trainer.max_epochs=many", "trainer.max_epochs is 'many'; it must be a whole number."),
        (
            "trainer.max_stpes=3",
            "there is no field trainer.max_stpes (given 3). Did you mean 'max_steps' or 'max_time'?",
        ),
        (
            "data.init_args.known.p1=densee",
            "data.init_args.known.p1 is 'densee'; it must be one of 'dense', 'scribble', 'none'. Did you mean 'dense'?",
        ),
        (
            "trainer.callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitr: x}}]",
            "there is no field trainer.callbacks.0.init_args.monitr (given 'x'). Did you mean 'monitor'?",
        ),
        (
            "model.class_path=mambaseg.methods.Supervisd",
            "model.class_path is 'mambaseg.methods.Supervisd', which does not exist. Did you mean 'Supervised'?",
        ),
        ("modle.x=3", "there is no field modle.x (given 3). Did you mean 'model'?"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(refusal, setting, told):
    assert refusal(setting) == told


def test_a_field_without_its_section_is_told_where_it_belongs(refusal):
    expected = f"there is no field cross.cutmix.source at the top; write {CROSS}.cutmix.source."
    assert refusal("cross.cutmix.source=any") == expected


def test_a_field_that_is_like_no_other_gets_the_list_of_those_that_exist(refusal):
    told = refusal(f"{CROSS}.zzz=1")
    assert told.startswith(f"there is no field {CROSS}.zzz (given 1). Known: ramp, teacher, ema_decay, ")


def test_an_option_of_the_command_line_is_told_the_same_way(refusal):
    told = refusal(arguments=["--trainer.max_stpes=3"])
    assert told == "there is no field trainer.max_stpes (given '3'). Did you mean 'max_steps' or 'max_time'?"


@pytest.mark.parametrize("arguments", [["--trainer.max_steps=some"], ["--trainer.max_steps", "some"]])
def test_a_value_of_the_command_line_is_told_and_not_that_of_the_file(refusal, arguments):
    assert refusal(arguments=arguments) == "trainer.max_steps is 'some'; it must be a whole number."


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("strategy=fsdp3", "trainer.strategy is 'fsdp3', which does not exist. Did you mean 'fsdp' or 'fsdp2'?"),
        ("strategy=zzz", "trainer.strategy is 'zzz', which does not exist. Known: auto, fsdp2, ddp, "),
        (
            "accelerator=nonsense",
            "trainer.accelerator is 'nonsense', which does not exist. Known: auto, gpu, cpu, cuda, mps, tpu.",
        ),
        ("accelerator=gpus", "trainer.accelerator is 'gpus', which does not exist. Did you mean 'gpu'?"),
        ("precision=nonsense", "trainer.precision is 'nonsense'; it must be one of 'transformer-engine', "),
        ("precision=bf16-mixd", "trainer.precision is 'bf16-mixd'; it must be one of "),
        ("devices=nonsense", "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
        ("num_nodes=0", "trainer: `num_nodes` must be a positive integer, but got 0."),
        ("strategy=fsdp", "trainer: The strategy `fsdp` requires a GPU accelerator, "),
    ],
)
def test_what_lightning_itself_refuses_is_told_in_one_line_too(refusal, option, told):
    assert refusal(arguments=[f"--trainer.{option}"]).startswith(told)


def test_an_unknown_strategy_of_the_file_is_told_like_one_of_the_command_line(refusal):
    assert refusal("trainer.strategy=dpp") == "trainer.strategy is 'dpp', which does not exist. Did you mean 'ddp'?"


def test_a_long_value_is_cut(refusal):
    told = refusal(f"{STUDENTS}.b.optimizer.lr={'9' * 500}x")
    assert told.startswith(f"{STUDENTS}.b.optimizer.lr is '999")
    assert told.endswith("...; it must be a number.")


def test_a_message_that_is_no_tree_is_kept(tmp_path):
    told = explain("No supported gpu backend found!", tmp_path, {})
    assert told == f"{tmp_path}: No supported gpu backend found!"
