"""Real ACDC patients for the tests of this folder."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

REAL_PATIENTS = (90, 99)


@pytest.fixture(scope="session")
def acdc_h5(request, tmp_path_factory) -> Path:
    """A folder with real volumes and slices of patients 90 and 99, or all, in WSL4MIS's layout.

    ``MAMBASEG_ACDC_H5`` names a folder that is unpacked already; otherwise the archive's own script unpacks two.
    """
    if folder := os.environ.get("MAMBASEG_ACDC_H5"):
        return Path(folder)
    archive = request.getfixturevalue("acdc_archive")
    if importlib.util.find_spec("pillow_jxl") is None:
        pytest.skip("pillow-jxl-plugin is not installed, which decodes the archive (or set MAMBASEG_ACDC_H5)")
    out = tmp_path_factory.mktemp("acdc_h5")
    chosen = ",".join(map(str, REAL_PATIENTS))
    subprocess.run([sys.executable, archive / "unpack.py", out, "--patients", chosen, "--slices"], check=True)
    return out
