"""The view for Weights & Biases, composed without an account."""

import sys

import pytest

from mambaseg.dashboards.workspace import compose
from mambaseg.errors import InputError


def test_without_the_extra_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(InputError, match=r"pip install 'mambaseg\[workspaces\]'"):
        compose("me", "project", ["demo/a"], ["loss"], [])


def test_the_view_has_the_metrics_the_pictures_and_the_runs():
    pytest.importorskip("wandb_workspaces", reason="the extra 'workspaces' is not installed")
    logged = ["loss", "loss/cross/a", "val/a/dice", "val/a/dice/LV", "speed/data_wait", "lr/a"]
    view = compose("me", "project", ["demo/a.1"], logged, ["case7"])
    assert (view.entity, view.project) == ("me", "project")
    shown = {section.name: section.panels for section in view.sections}
    assert list(shown) == ["Validation Dice", "Loss", "Speed", "Predictions"]
    assert [panel.y for panel in shown["Loss"]] == [["loss"], ["loss/cross/a"]]
    assert [panel.log_y for panel in shown["Validation Dice"] + shown["Loss"]] == [False, True, True]
    assert shown["Predictions"][0].media_keys == ["panels/case7"]
    assert view.runset_settings.query == r"^demo/a\.1$"
    assert '"project":"project"' in view._to_model().model_dump_json(), "it can be sent"
