"""Run the Triton kernels' bodies without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mambaseg.kernels.selective_scan.op import CPU_CHUNK, GPU_CHUNK

CASES = Path(__file__).with_name("triton_interpreted_cases.py")


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["float32", "not float32"])
def test_kernels_under_the_interpreter(selection, repository):
    pytest.importorskip("triton")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "MAMBASEG_SCAN_BACKEND": "triton",
        "OMP_NUM_THREADS": "1",
        "PYTEST_XDIST_WORKER": "",
    }
    command = [sys.executable, "-m", "pytest", str(CASES), "-n", "0", "-q", "-k", selection, "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_tiles_divide_the_chunk():
    launch = pytest.importorskip("mambaseg.kernels.selective_scan.triton_launch")
    for d_state in (1, 2, 5, 8, 16, 32, 64, 256):
        for rows, channels in ((1, 3), (64, 192), (96, 1536)):
            for backward in (True, False):
                tile = launch.choose_tile(rows, channels, d_state, backward)
                assert all(chunk % tile.steps == 0 for chunk in (CPU_CHUNK, GPU_CHUNK))
                assert tile.channels in (8, 16, 32)
