"""The run card: enough to get the numbers again."""

import hashlib
import json
import subprocess

import pytest
import torch

from mambaseg.callbacks import provenance
from mambaseg.callbacks.provenance import code_version, package_versions
from mambaseg.callbacks.run_card import RunCard, cases_by_part, describe_cases
from mambaseg.metrics.policy import EMPTY_POLICY
from tests.callbacks.conftest import VAL_CASES, StubData, StubModule, make_trainer


def fit_card(run, module=None, data=None, monkeypatch=None):
    make_trainer(run, [RunCard(note="does it <work>?")], max_steps=1).fit(
        module or StubModule(), datamodule=data or StubData()
    )
    return json.loads((run / "run_card.json").read_text(encoding="utf-8"))


def test_card_of_a_fit(run, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1337")
    monkeypatch.setattr("sys.argv", ["mambaseg", "fit", "--config", "my experiment"])
    card = fit_card(run)
    assert card["seed"] == 1337
    assert card["command"] == "mambaseg fit --config 'my experiment'"
    assert card["metric_policy"] == EMPTY_POLICY
    assert card["packages"]["torch"] == torch.__version__
    assert card["students"]["unet"] == {"network": "Conv2d", "parameters": 3 * 9 + 3}
    assert card["device"]["type"] == "cpu"
    assert card["training"]["max_steps"] == 1
    assert card["code"]["version"]
    assert card["note"] == "does it <work>?"
    assert len(card["starts"]) == 1


def test_cases_are_listed_by_part_with_a_fingerprint(run):
    data = fit_card(run)["data"]
    assert (data["split"], data["source"]) == ("stub_fold1", "stub")
    assert data["cases"]["train_labelled"]["ids"] == ["patient010_frame01", "patient011_frame01"]
    assert data["cases"]["train_other"]["count"] == 4
    assert data["cases"]["val"]["sha256"] == hashlib.sha256("\n".join(VAL_CASES).encode()).hexdigest()
    assert data["cases"]["test"]["count"] == 0, "test patients need not be in the data"


def test_all_patients_are_labelled_where_no_number_is_given():
    data = StubData()
    data.labelled_patients = None
    parts = cases_by_part(data)
    assert (len(parts["train_labelled"]), parts["train_other"]) == (6, [])


def test_fingerprint_depends_on_the_order():
    assert describe_cases(["a", "b"])["sha256"] != describe_cases(["b", "a"])["sha256"]


def test_second_start_is_added_and_a_foreign_file_replaced(run, caplog):
    fit_card(run)
    assert len(fit_card(run)["starts"]) == 2
    (run / "run_card.json").write_text("[]")
    assert len(fit_card(run)["starts"]) == 1
    assert "is not a run card" in caplog.text


@pytest.fixture
def repository_with_commit(tmp_path, monkeypatch):
    package = tmp_path / "mambaseg"
    package.mkdir()
    (package / "version.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "PACKAGE_FOLDER", package)
    code_version.cache_clear()
    yield package
    code_version.cache_clear()


def test_code_version_tells_commit_and_changes(repository_with_commit):
    clean = code_version()
    assert len(clean.git_sha) == 40
    assert clean.git_dirty is False
    (repository_with_commit / "version.py").write_text("changed")
    assert code_version() == clean, "the code that runs is the one that was loaded"
    code_version.cache_clear()
    assert code_version().git_dirty is True


def test_installed_package_does_not_take_the_commit_around_it(repository_with_commit, monkeypatch):
    installed = repository_with_commit / "site-packages" / "mambaseg"
    installed.mkdir(parents=True)
    (installed / "version.py").write_text("")
    monkeypatch.setattr(provenance, "PACKAGE_FOLDER", installed)
    monkeypatch.delenv(provenance.COMMIT_VARIABLE, raising=False)
    code_version.cache_clear()
    assert (code_version().git_sha, code_version().git_dirty) == (None, None)
    monkeypatch.setenv(provenance.COMMIT_VARIABLE, "0d8b549")
    code_version.cache_clear()
    assert (code_version().git_sha, code_version().git_dirty) == ("0d8b549", None), "told, where git cannot tell"


def test_packages_that_are_absent_are_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "RECORDED_PACKAGES", ("torch", "no-such-package"))
    assert set(package_versions()) == {"python", "torch"}
