"""Run the Triton kernels' bodies without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mambaseg.kernels.selective_scan.op import CPU_CHUNK, GPU_CHUNK

SCANS, DIRECTIONS = "triton_interpreted_cases.py", "triton_interpreted_directions.py"


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "selection"), [(SCANS, "float32"), (SCANS, "not float32"), (DIRECTIONS, "test")])
def test_kernels_under_the_interpreter(cases, selection, repository):
    pytest.importorskip("triton")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "MAMBASEG_SCAN_BACKEND": "triton",
        "OMP_NUM_THREADS": "1",
        "PYTEST_XDIST_WORKER": "",
    }
    file = str(Path(__file__).with_name(cases))
    command = [sys.executable, "-m", "pytest", file, "-n", "0", "-q", "-k", selection, "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_steps_divide_the_chunk():
    launch = pytest.importorskip("mambaseg.kernels.selective_scan.triton_launch")
    for d_state in (1, 2, 5, 8, 16, 32, 64, 256):
        for rows, length, channels in ((1, 1, 3), (64, 3136, 192), (96, 49, 1536), (16, 16384, 192)):
            for backward in (True, False):
                for chunk in (CPU_CHUNK, GPU_CHUNK):
                    plan = launch.choose_plan(rows, length, channels, d_state, 0, chunk, backward)
                    assert chunk % plan.steps == 0
                    assert plan.split <= d_state
