"""Every callback and logger can be written down in YAML."""

import lightning.pytorch as pl
import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import Logger

YAML = {
    "mambaseg.callbacks.best_students.BestStudents": "{metric: iou}",
    "mambaseg.callbacks.case_table.CaseTable": "{to_wandb: false}",
    "mambaseg.callbacks.overlays.PredictionOverlays": "{num_cases: 2, cases: [a, b], monitor: val/unet/dice}",
    "mambaseg.callbacks.progress.RunProgress": "{line_every_seconds: 5, losses: [loss, loss/supervised]}",
    "mambaseg.callbacks.run_card.RunCard": "{note: why}",
    "mambaseg.callbacks.throughput.Throughput": "{every_n_steps: 20}",
    "mambaseg.callbacks.jsonl.JsonlLogger": "{save_dir: runs/a}",
    "mambaseg.callbacks.wandb.WandbTracker": "{save_dir: RUN, project: p, mode: disabled, tags: [a], group: g}",
}


@pytest.mark.parametrize("path", YAML)
def test_built_from_yaml(path, tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=pl.Callback | Logger)
    settings = YAML[path].replace("RUN", str(tmp_path))
    built = parser.instantiate(parser.parse_string(f"part: {{class_path: {path}, init_args: {settings}}}")).part
    assert f"{type(built).__module__}.{type(built).__qualname__}" == path
    with pytest.raises(Exception, match="misspelt"):
        parser.parse_string(f"part: {{class_path: {path}, init_args: {{misspelt: 1}}}}")
