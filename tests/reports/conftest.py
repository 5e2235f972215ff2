"""A finished short run with everything that a report reads."""

from pathlib import Path

import pytest
import torch

from mambaseg.callbacks.case_table import CaseTable
from mambaseg.callbacks.overlays import PredictionOverlays
from mambaseg.callbacks.run_card import RunCard
from mambaseg.callbacks.throughput import Throughput
from tests.callbacks.conftest import StubData, StubModule, make_trainer


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "semi <acdc> & co"
    torch.manual_seed(0)
    callbacks = [RunCard(), Throughput(every_n_steps=5), PredictionOverlays(num_cases=1), CaseTable()]
    trainer = make_trainer(folder, callbacks, max_steps=12)
    module = StubModule()
    trainer.fit(module, datamodule=StubData())
    trainer.test(module, datamodule=StubData(), verbose=False)
    (folder / "config.yaml").write_text("model:\n  note: <script>alert(1)</script>\n")
    return folder
