"""What a step costs the host is measured on a real training with stand-ins for the passes."""

import csv
import subprocess
import sys

import pytest


@pytest.mark.parametrize("processes", ["auto", "ddp"])
def test_a_row_is_measured(repository, tmp_path, processes):
    words = ["demo", "--processes", processes, "--steps", "5", "--csv", str(tmp_path / "host.csv")]
    run = subprocess.run(
        [sys.executable, "benchmarks/host.py", *words], cwd=repository, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with (tmp_path / "host.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["experiment"], row["processes"], row["steps"]) == ("demo", processes, "5")
    assert 0 < float(row["ms_p10"]) <= float(row["ms"]) <= float(row["ms_p90"])


def test_wrong_values_are_told_in_a_line(repository, tmp_path):
    for words, told in ((["no_such"], "no_such"), (["demo", "--set", "trainer.max_step=3"], "max_steps")):
        command = [sys.executable, "benchmarks/host.py", *words, "--csv", str(tmp_path / "host.csv")]
        run = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
        assert run.returncode == 2
        assert told in run.stderr
        assert "Traceback" not in run.stderr
    assert not (tmp_path / "host.csv").exists()
