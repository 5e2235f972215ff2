"""`mambaseg list`: every kind, and what is said of a network."""

import pytest

from mambaseg.cli import main
from mambaseg.commands.list import KINDS
from mambaseg.networks import list_networks


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_listed(kind, capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("COLUMNS", "220")
    assert main(["list", kind]) == 0
    out = capsys.readouterr().out
    assert all(row[0] in out for row in KINDS[kind]())


def test_where_there_are_no_experiments_it_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MAMBASEG_EXPERIMENTS", raising=False)
    assert main(["list"]) == 0
    output = capsys.readouterr().out.replace("\n", "")
    assert f"There are no experiments in {tmp_path / 'experiments'}" in output
    assert "<name>" not in output


def test_networks_show_size_cost_input_and_paper_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "networks"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(list_networks()) <= set(lines)
    for word in ("19,121,664", "4.447", "6.979", "1→4", "32", "2402.05079"):
        assert word in lines["mamba_unet"]
    assert "3→1000" in lines["vmamba_tiny_s1l8"]
    assert "9 L D N + L D" in out
