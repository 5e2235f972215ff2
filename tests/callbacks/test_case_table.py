"""The per-case tables on disk."""

import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from mambaseg.callbacks.case_table import CaseTable, scored_rows
from mambaseg.errors import InputError
from mambaseg.reports.tables import read_scores
from tests.callbacks.conftest import CLASS_NAMES, VAL_CASES, StubData, StubModule, make_trainer


def test_validation_and_test_write_their_tables(run):
    module = StubModule()
    trainer = make_trainer(run, [CaseTable()], max_steps=3)
    trainer.fit(module, datamodule=StubData())
    rows = read_scores(run / "scores_val" / "scores.json")
    assert [(r.case_id, r.predictor, r.dice) for r in rows] == [
        (r.case_id, r.predictor, r.dice) for r in module.last_scores
    ]
    assert len(rows) == len(VAL_CASES) * 3 * len(CLASS_NAMES)
    assert {path.name for path in (run / "scores_val").iterdir()} == {"scores.csv", "scores.json", "scores.md"}
    assert "- step: 3" in (run / "scores_val" / "scores.md").read_text()
    assert not (run / "scores_test").exists(), "fit never touches test cases"
    trainer.test(module, datamodule=StubData(), verbose=False)
    assert len(read_scores(run / "scores_test" / "scores.json")) == len(rows)


def test_a_module_without_scores_is_told():
    with pytest.raises(InputError, match="BoringModel has no last_scores"):
        scored_rows(BoringModel())
