"""Run the bodies of the Triton kernels around the scan without a GPU, and check what their launches rely on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_interpreted_blocks.py")


@pytest.mark.slow
def test_kernels_under_the_interpreter(repository):
    pytest.importorskip("triton")
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "MAMBASEG_SCAN_BACKEND": "triton",
        "OMP_NUM_THREADS": "1",
        "PYTEST_XDIST_WORKER": "",
    }
    command = [sys.executable, "-m", "pytest", str(CASES), "-n", "0", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.parametrize("channels", [1, 16, 192, 384, 1000, 1536, 4096, 16384])
@pytest.mark.parametrize("values", [8, 16])
def test_tiles_hold_whole_rows(channels, values):
    launch = pytest.importorskip("mambaseg.kernels.norm_gate.triton_launch")
    tile = launch.choose_tile(channels, values)
    assert channels <= tile.channels < 2 * max(channels, 1)
    assert tile.warps in (1, 2, 4, 8, 16, 32)
    assert tile.rows * tile.channels >= 32 * tile.warps


def test_too_wide_rows_are_refused_with_the_fix():
    launch = pytest.importorskip("mambaseg.kernels.norm_gate.triton_launch")
    with pytest.raises(RuntimeError, match="MAMBASEG_SCAN_BACKEND=cpu"):
        launch.choose_tile(20000, 8)


@pytest.mark.parametrize("rows", [1, 24, 144, 100000])
@pytest.mark.parametrize("length", [1, 7, 64, 3136, 65536])
def test_segments_are_whole_blocks_of_steps_and_not_too_many(rows, length):
    launch = pytest.importorskip("mambaseg.kernels.causal_conv1d.triton_launch")
    for fewest in (16, 32):
        steps = launch.segment_length(rows, length, fewest)
        assert steps % launch.STEPS == 0
        assert fewest <= steps <= launch.MOST_STEPS
        assert steps == launch.MOST_STEPS or rows * -(-length // steps) <= max(rows, launch.WANTED_PROGRAMS)


@pytest.mark.parametrize("width", [1, 4, 384, 1920, 3840, 7680, 15360, 10**6])
def test_sums_over_shares_occupy_the_gpu_where_they_can(width):
    host = pytest.importorskip("mambaseg.kernels.share_sums")
    columns = host.choose_columns(width)
    programs = -(-width // columns)
    assert host.VALUES % columns == 0
    assert programs <= host.WANTED_PROGRAMS or columns == host.MOST_COLUMNS
    assert programs > host.WANTED_PROGRAMS // 3 or columns == host.FEWEST_COLUMNS
